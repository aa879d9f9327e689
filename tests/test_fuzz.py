"""Damaged and odd files end in a success or in one line: a hundred inputs of `make fuzz`, and what it would see."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import fuzz
import numpy as np
import pytest
from fuzz_inputs import KINDS, Command, Originals


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    found = Originals.make(tmp_path_factory.mktemp("fuzz") / "originals")
    fuzz.warm_up(found, found.folder.parent / "warm")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_odd_files_end_in_a_success_or_in_one_line(kind, originals):
    endings = {}
    for i in range(20):
        number = i * len(KINDS) + list(KINDS).index(kind)
        endings[number] = fuzz.run_input(number, 0, originals, originals.folder.parent / f"{number}")
    assert {n: ending for n, ending in endings.items() if ending[0] not in (fuzz.SUCCESS, fuzz.REFUSAL)} == {}
    assert {ending for ending, _ in endings.values()} == {fuzz.SUCCESS, fuzz.REFUSAL}


def test_number_and_seed_make_the_same_input(originals, tmp_path):
    made = []
    for run in ("a", "b"):
        for number in range(4 * len(KINDS)):
            folder = tmp_path / run / f"{number}"
            folder.mkdir(parents=True)
            fuzz.make_input(number, 3, originals, folder)
        files = sorted(path for path in (tmp_path / run).rglob("*") if path.is_file())
        made.append({os.path.relpath(path, tmp_path / run): path.read_bytes() for path in files})
    assert made[0] == made[1]


def refuse(*lines: str) -> int:
    print(*lines, sep="\n", file=sys.stderr)
    return 1


def fill_memory(_) -> int:
    np.ones(fuzz.MOST_GROWTH // 8 + (1 << 22))
    return refuse("error: no")


def leave(name: str) -> int:
    Path(name).write_text("a")
    return 0


@pytest.mark.parametrize(
    "command, ending",
    [
        (lambda _: leave("out"), "success"),
        (lambda _: refuse("a warning\non two lines", "error: no"), "refusal"),
        (lambda _: {}["a"], "KeyError"),
        (lambda _: sys.exit(2), "SystemExit"),
        (lambda _: 3, "exit code 3"),
        (lambda _: 0, "no output"),
        (lambda _: leave("out") or leave("other"), "files left"),
        (lambda _: leave("out") or refuse("error: no"), "files left"),
        (lambda _: leave("in") or refuse("error: no"), "input changed"),
        (lambda _: refuse("no"), "exit code 1"),
        (lambda _: refuse("error: no", "and no"), "no line"),
        (lambda _: refuse("error: " + "no" * 2000), "no line"),
        (lambda _: leave("../elsewhere") or leave("out"), "writes elsewhere"),
        (lambda _: Path("../private/secret.json").read_text() and leave("out"), "reads elsewhere"),
        (lambda _: socket.create_connection(("127.0.0.1", 9)), "connects"),
        (lambda _: subprocess.run(["true"]) and leave("out"), "starts a program"),
        (lambda _: exec(compile("1", Path("in").resolve(), "exec")) or leave("out"), "runs code"),
        (fill_memory, "memory"),
    ],
)
def test_fuzzer_sees(command, ending, originals, tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private/secret.json").write_text("{}")
    folder = tmp_path / "input"
    folder.mkdir()
    (folder / "in").write_text("as it is")
    assert fuzz.run_watched(Command(["convert"], "out"), folder, originals.folder, command)[0] == ending


def test_fuzzer_lets_a_table_be_written_with_exit_code_1(originals, tmp_path):
    for partial, ending in ((True, "success"), (False, "files left")):
        (tmp_path / "out").unlink(missing_ok=True)
        command = Command(["predict"], "out", partial)
        assert fuzz.run_watched(command, tmp_path, originals.folder, lambda _: leave("out") or 1)[0] == ending


def test_fuzzer_sees_a_command_without_end(originals, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "LONGEST_TIME", 1)

    def wait(_):
        while True:
            pass

    assert fuzz.run_watched(Command(["convert"], "out"), tmp_path, originals.folder, wait)[0] == "TookTooLong"
