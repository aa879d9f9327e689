"""The command line: help costs nothing, Ctrl-C is a line, and what was measured outlives what it is printed to."""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from benchmarks.__main__ import main as benchmarks_main
from hifuse_timm.__main__ import main

# Prints what the package, and then the help of each command, import beside timm and what it imports.
IMPORTS = """\
import json, sys
import timm

def imported_since(before):
    ours = ("hifuse_timm", *sys.stdlib_module_names)
    return sorted(name for name in sys.modules.keys() - before if name.partition(".")[0] not in ours)

with_timm = set(sys.modules)
import hifuse_timm
imported = {"import": imported_since(with_timm)}
from hifuse_timm.__main__ import main
for command in sys.argv[1:]:
    try:
        main([command, "--help"])
    except SystemExit:
        imported[command] = imported_since(with_timm)
print(json.dumps(imported))
"""

COMMANDS = [
    "example",
    "prepare",
    "evaluate",
    "average",
    "compare",
    "calibrate",
    "report",
    "predict",
    "publish",
    "recipe",
    "warm-start",
    "convert",
    "explain",
    "demo",
    "export",
    "run",
]


def run(*command, redirection="") -> subprocess.CompletedProcess:
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1]), OMP_NUM_THREADS="1")
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh"]
    return subprocess.run([*shell, sys.executable, *command], env=env, capture_output=True, text=True, timeout=120)


def test_help_imports_no_more_than_timm_does():
    result = run("-c", IMPORTS, *COMMANDS)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == {key: [] for key in ["import", *COMMANDS]}


@pytest.mark.parametrize(
    "command, work",
    [
        (lambda: main(["recipe", "isic2018"]), "hifuse_timm.recipes.recipe_path"),
        (lambda: benchmarks_main(["complexity"]), "benchmarks.complexity.run"),
    ],
)
def test_interruption_is_one_line(command, work, monkeypatch, capsys):
    monkeypatch.setattr(work, lambda args: signal.raise_signal(signal.SIGINT))
    assert command() == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_names_in_errors_move_no_cursor(capsys):
    assert main(["convert", "\x1b[2Jgone.pth", "out.safetensors"]) == 1
    assert capsys.readouterr().err == r"error: checkpoint \x1b[2Jgone.pth does not exist or is not a file" + "\n"


def test_bugs_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("hifuse_timm.recipes.recipe_path", {}.__getitem__)
    with pytest.raises(KeyError):
        main(["recipe", "isic2018"])


# Finished work, printed to what does not take it


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """The arguments of an evaluation with a class that ASCII lacks."""
    folder = tmp_path_factory.mktemp("evaluation")
    rng = np.random.default_rng(0)
    for name in ("Übergang", "polyp"):
        (folder / "data" / "test" / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
                folder / "data" / "test" / name / f"{i}.png"
            )
    args = argparse.Namespace(num_classes=2, img_size=32)
    model = timm.create_model("test_convnext", num_classes=2)
    torch.save(dict(state_dict=model.state_dict(), args=args), folder / "last.pth.tar")
    options = ["--checkpoint", str(folder / "last.pth.tar"), "--data-dir", str(folder / "data")]
    return ["evaluate", "--model", "test_convnext", *options, "--workers", "0", "--resamples", "20"]


@pytest.fixture(scope="module")
def average(tmp_path_factory, evaluation):
    """The arguments of an average of two such evaluations."""
    runs = [str(tmp_path_factory.mktemp("runs") / f"{seed}.json") for seed in (0, 1)]
    for seed, path in enumerate(runs):
        assert main([*evaluation, "--json", path, "--seed", str(seed), "--batch-size", str(seed + 1)]) == 0
    return ["average", *runs]


@pytest.mark.parametrize("command", ["evaluate", "average"])
def test_class_that_a_terminal_cannot_show_is_printed_escaped(command, request, monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert main(request.getfixturevalue("evaluation" if command == "evaluate" else "average")) == 0
    assert b"\\xdcbergang" in sys.stdout.buffer.getvalue()


@pytest.mark.parametrize("command", ["evaluate", "average"])
@pytest.mark.parametrize("output", ["full", "pipe", "closed"])
def test_files_are_written_whatever_becomes_of_what_is_printed(command, output, request, monkeypatch, tmp_path, capsys):
    arguments = request.getfixturevalue("evaluation" if command == "evaluate" else "average")
    reading, writing = os.pipe()
    os.close(reading)
    stdout, reason = {
        "full": (open("/dev/full", "w"), "cannot be written: No space left on device"),
        "pipe": (os.fdopen(writing, "w"), "cannot be written: Broken pipe"),
        "closed": (None, "is closed"),
    }[output]
    monkeypatch.setattr("sys.stdout", stdout)
    assert main([*arguments, "--json", str(tmp_path / "result.json")]) == 1
    assert "Übergang" in json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["per_class"]
    assert capsys.readouterr().err == f"error: standard output {reason}\n"


def test_lost_output_is_one_error_and_none_of_the_interpreters():
    result = run("-m", "hifuse_timm", "recipe", "isic2018", redirection="> /dev/full")
    assert result.returncode == 1
    assert "No space left on device" in result.stderr and result.stderr.count("\n") == 1


def test_figures_are_printed_where_they_cannot_be_written(evaluation, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("hifuse_timm.cli.evaluate.write_json", lambda *args: os.write(-1, b""))
    assert main([*evaluation, "--json", str(tmp_path / "result.json")]) == 1
    printed = capsys.readouterr()
    assert "Übergang" in printed.out and "Bad file descriptor" in printed.err
