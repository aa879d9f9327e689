"""Files and folders take their place whole, or not at all; what is no file is written into; what a user keeps stays."""

import errno
import os
import resource
import stat
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch

from hifuse_timm import files
from hifuse_timm.checkpoint import save_weights
from hifuse_timm.files import (
    check_replaceable,
    check_writable,
    replacing_file,
    replacing_folder,
    write_json,
    write_text,
)


def list_text(folder: Path) -> set[str]:
    return {"text"}


def write(kind, path: Path, text: str, error: BaseException | None = None) -> None:
    with replacing_folder(path, list_text) if kind == "folder" else replacing_file(path) as beside:
        (beside / "text" if kind == "folder" else beside).write_text(text)
        if error is not None:
            raise error


def read(path: Path) -> str:
    return (path / "text" if path.is_dir() else path).read_text()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(params=["file", "folder"])
def kind(request):
    return request.param


def test_new_takes_the_place_of_old(kind, tmp_path):
    for text in ("old", "new"):
        write(kind, tmp_path / "out", text)
        assert read(tmp_path / "out") == text and names(tmp_path) == {"out"}


@pytest.mark.parametrize("before", [set(), {"out"}], ids=["new", "again"])
def test_failure_leaves_what_was_there(kind, before, tmp_path):
    for name in before:
        write(kind, tmp_path / name, "old")
    with pytest.raises(KeyError):
        write(kind, tmp_path / "out", "new", KeyError())
    assert names(tmp_path) == before
    assert all(read(tmp_path / name) == "old" for name in before)


@pytest.mark.parametrize("before", [set(), {"out"}], ids=["new", "again"])
def test_old_comes_back_where_new_cannot_take_its_place(kind, before, tmp_path, monkeypatch):
    for name in before:
        write(kind, tmp_path / name, "old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target.name == "out" and self.name != "old":
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError):
        write(kind, tmp_path / "out", "new")
    assert names(tmp_path) == before
    assert all(read(tmp_path / name) == "old" for name in before)


def test_links_lead_to_what_is_written(kind, tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large" / "data")
    for text in ("old", "new"):
        write(kind, tmp_path / "out", text)
        assert (tmp_path / "out").is_symlink() and read(tmp_path / "large" / "data") == text
        assert names(tmp_path / "large") == {"data"}


# Files


def test_modes_stay_and_new_files_have_those_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "new", "")
        write("folder", tmp_path / "out", "")
        save_weights({"weight": torch.zeros(2)}, tmp_path / "a.safetensors")
        modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "out", "out/text", "a.safetensors")]
        assert modes == [0o640, 0o750, 0o640, 0o640]
        for name, mode in (("new", 0o604), ("out", 0o2775), ("a.safetensors", 0o666)):
            (tmp_path / name).chmod(mode)
        write_text(tmp_path / "new", "again")
        write("folder", tmp_path / "out", "again")
        save_weights({"weight": torch.zeros(2)}, tmp_path / "a.safetensors")
        modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "out", "a.safetensors")]
        assert modes == [0o604, 0o2775, 0o666]
    finally:
        os.umask(before)


def test_fifo_is_written_into(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    received = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_text()))
    reader.start()
    check_writable(tmp_path / "pipe")
    write_json(tmp_path / "pipe", {"accuracy": 0.5})
    reader.join(10)
    assert received == ['{\n "accuracy": 0.5\n}\n'] and (tmp_path / "pipe").is_fifo()


def test_device_is_written_into():
    device = os.stat("/dev/null")
    check_writable("/dev/null")
    write_text("/dev/null", "text")
    assert os.path.samestat(os.stat("/dev/null"), device)
    with pytest.raises(OSError, match="No space left on device"):
        write_text("/dev/full", "text")


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_standard_output_is_written_in_its_turn_where_it_is_a_file_too(path, tmp_path, monkeypatch, capfd):
    (tmp_path / "link").symlink_to("/dev/stdout")
    monkeypatch.chdir(tmp_path)
    with open(1, "w", closefd=False) as stdout:  # buffered, as where it is no terminal
        monkeypatch.setattr(sys, "stdout", stdout)
        print("a")
        write_text(path, "b\n")
        print("c")
    assert stat.S_ISREG(os.fstat(1).st_mode) and capfd.readouterr().out == "a\nb\nc\n"
    assert names(tmp_path) == {"link"} and (tmp_path / "link").is_symlink()


def test_file_that_is_held_in_its_place_is_written_into(tmp_path, monkeypatch):
    (tmp_path / "out").write_text("a longer text")
    inode = (tmp_path / "out").stat().st_ino
    monkeypatch.setattr(files, "_is_held", lambda path: path == tmp_path / "out")  # as a file mounted in a container
    write_text(tmp_path / "out", "text")
    assert (tmp_path / "out").read_text() == "text" and (tmp_path / "out").stat().st_ino == inode
    assert names(tmp_path) == {"out"}


def test_mount_points_are_held_in_their_place(tmp_path):
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    assert all(files._is_held(Path(mount)) for mount in mounts)
    assert not files._is_held(tmp_path)


def test_link_planted_beside_the_output_is_not_followed(kind, tmp_path, monkeypatch):
    """Nobody can guess what is written before it is renamed, nor reach into it."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "text").write_text("mine")
    guess = iter(["guessed", "other"])
    monkeypatch.setattr(tempfile, "_get_candidate_names", lambda: guess)
    (tmp_path / ".writing-guessed").symlink_to(tmp_path / "victim")
    with replacing_folder(tmp_path / "out", list_text) if kind == "folder" else replacing_file(tmp_path / "out") as new:
        assert new.parent == tmp_path / ".writing-other" and stat.S_IMODE(new.parent.stat().st_mode) == 0o700
        (new / "text" if kind == "folder" else new).write_text("text")
    assert names(tmp_path / "victim") == {"text"} and read(tmp_path / "victim") == "mine"
    assert read(tmp_path / "out") == "text"


def test_names_are_drawn_anew_for_every_write(kind, tmp_path):
    seen = set()
    for _ in range(3):
        with (
            replacing_folder(tmp_path / "out", list_text) if kind == "folder" else replacing_file(tmp_path / "out") as f
        ):
            seen.add(f.parent.name)
            (f / "text" if kind == "folder" else f).write_text("")
    assert len(seen) == 3 and not any(str(os.getpid()) in name for name in seen)


@pytest.fixture
def full_disk():
    """A limit for files in the place of a disk that is full; writing fails with an OSError, as there."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    "write_large",
    [
        lambda path: write_text(path, "x" * (1 << 17)),
        lambda path: save_weights({"weight": torch.zeros(1 << 17)}, path),
    ],
    ids=["text", "weights"],
)
def test_full_disk_is_an_os_error_and_the_old_file_stays(write_large, tmp_path, full_disk):
    (tmp_path / "out").write_text("old")
    with pytest.raises(OSError, match="File too large"):
        write_large(tmp_path / "out")
    assert names(tmp_path) == {"out"} and read(tmp_path / "out") == "old"


# Folders


@pytest.mark.parametrize("held", [False, True], ids=["folder", "mount point"])
@pytest.mark.parametrize("when", range(3))
def test_interrupt_leaves_the_old_folder_or_the_new_one(when, held, tmp_path, monkeypatch):
    """Ctrl-C comes behind each of the renames."""
    monkeypatch.setattr(files, "_is_held", lambda path: held)
    write("folder", tmp_path / "out", "old")
    rename, done = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        rename(self, target)
        done.append(target)
        if len(done) == when + 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", interrupted)
        try:
            write("folder", tmp_path / "out", "new")
        except KeyboardInterrupt:
            assert read(tmp_path / "out") == "old"
        else:
            assert read(tmp_path / "out") == "new" and len(done) <= when
    assert names(tmp_path) == {"out"} and names(tmp_path / "out") == {"text"}


def test_mount_point_stays_and_changes_its_content(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_is_held", lambda path: path.name == "out")
    (tmp_path / "out").mkdir()
    inode = (tmp_path / "out").stat().st_ino
    for text in ("old", "new"):
        with replacing_folder(tmp_path / "out", list_text) as new:
            assert new.is_relative_to(tmp_path / "out")  # there is room, and what lies beside may be no volume
            (new / "text").write_text(text)
        assert read(tmp_path / "out") == text and names(tmp_path / "out") == {"text"}
    assert (tmp_path / "out").stat().st_ino == inode
    with pytest.raises(KeyError):
        write("folder", tmp_path / "out", "newer", KeyError())
    assert read(tmp_path / "out") == "new" and names(tmp_path / "out") == {"text"}


def test_what_a_killed_run_left_is_in_nobodys_way(tmp_path):
    for name in (f".out.{os.getpid()}.partial", f".out.{os.getpid()}.before", f".out.{os.getpid()}"):
        (tmp_path / name).mkdir()
    write("folder", tmp_path / "out", "old")
    write("folder", tmp_path / "out", "new")
    assert read(tmp_path / "out") == "new"


@pytest.mark.parametrize("held", [False, True], ids=["folder", "mount point"])
@pytest.mark.parametrize("kept", ["note", "runs/model_best.pth.tar", "empty/", "link"])
def test_folder_with_anything_else_is_refused_and_stays(kept, held, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_is_held", lambda path: held)

    def keep():
        path = tmp_path / "out" / kept
        path.parent.mkdir(exist_ok=True)
        if kept == "link":
            path.symlink_to(tmp_path)
        else:
            path.mkdir() if kept.endswith("/") else path.write_text("mine")

    write("folder", tmp_path / "out", "old")
    match = f"out holds other files, {kept.rstrip('/')} among them: give a new folder"
    with pytest.raises(FileExistsError, match=match):
        with replacing_folder(tmp_path / "out", list_text) as new:
            (new / "text").write_text("new")
            keep()  # which appears while the new folder is filled
    with pytest.raises(FileExistsError, match=match):
        check_replaceable(tmp_path / "out", list_text)
    assert read(tmp_path / "out") == "old" and os.path.lexists(tmp_path / "out" / kept)
    assert names(tmp_path) == {"out"} and len(names(tmp_path / "out")) == 2


# Checks before long work


def test_what_cannot_be_written_is_named_before(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "none" / "file")
    for path, directory, words in [
        ("none/file", False, "none, to write file in, does not exist"),
        ("dangling", False, "none, to write dangling in, does not exist"),
        ("file/file", False, "file, to write file in, is no folder"),
        ("file/a/b", True, "file, to write b in, is no folder"),
        (".", False, "is a folder, expected a file"),
        ("file", True, "is a file, expected a folder"),
    ]:
        with pytest.raises(OSError, match=words):
            check_writable(tmp_path / path, directory)
    for path, directory in [("file", False), ("new", False), (".", True), ("a/b", True), ("/dev/stdout", False)]:
        check_writable(tmp_path / path, directory)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for path, directory, words in [
        ("file", False, "file is not writable"),
        ("new", False, f"{tmp_path.name}, to write new in, is not writable"),
        ("a/b", True, f"{tmp_path.name}, to write b in, is not writable"),
    ]:
        with pytest.raises(PermissionError, match=words):
            check_writable(tmp_path / path, directory)
