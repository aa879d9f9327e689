"""Files and folders take their place whole, or not at all."""

from pathlib import Path

import pytest

from hifuse_timm.files import replacing_file, replacing_folder


def write(kind, path: Path, text: str, error: Exception | None = None) -> None:
    with kind(path) as beside:
        (beside / "text" if kind is replacing_folder else beside).write_text(text)
        if error is not None:
            raise error


def read(path: Path) -> str:
    return (path / "text" if path.is_dir() else path).read_text()


@pytest.fixture(params=[replacing_file, replacing_folder])
def kind(request):
    return request.param


def test_new_takes_the_place_of_old(kind, tmp_path):
    for text in ("old", "new"):
        write(kind, tmp_path / "out", text)
        assert read(tmp_path / "out") == text and [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("names", [[], ["out"]])
def test_failure_leaves_what_was_there(kind, names, tmp_path):
    for name in names:
        write(kind, tmp_path / name, "old")
    with pytest.raises(KeyError):
        write(kind, tmp_path / "out", "new", KeyError())
    assert [p.name for p in tmp_path.iterdir()] == names
    assert all(read(tmp_path / name) == "old" for name in names)


@pytest.mark.parametrize("names", [[], ["out"]])
def test_old_comes_back_where_new_cannot_take_its_place(kind, names, tmp_path, monkeypatch):
    for name in names:
        write(kind, tmp_path / name, "old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target.name == "out" and not self.name.endswith(".before"):
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError):
        write(kind, tmp_path / "out", "new")
    assert [p.name for p in tmp_path.iterdir()] == names
    assert all(read(tmp_path / name) == "old" for name in names)


def test_folder_is_made_where_a_link_leads(tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large" / "data")
    for text in ("old", "new"):
        write(replacing_folder, tmp_path / "out", text)
        assert (tmp_path / "out").is_symlink() and read(tmp_path / "large" / "data") == text
        assert [p.name for p in (tmp_path / "large").iterdir()] == ["data"]
