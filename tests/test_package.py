"""The wheel holds the package whole and nothing else, and says what is true of it."""

import re
import subprocess
import sys
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from hifuse_timm import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that `pip wheel .` builds of this tree."""
    # The build writes beside pyproject.toml, so it gets a folder of links; what earlier builds left stays out.
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("out")
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name != "build" and path.suffix != ".egg-info":
            (tree / path.name).symlink_to(path)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, tree]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    with ZipFile(next(out.glob("*.whl"))) as wheel:
        yield wheel


@pytest.fixture
def metadata(wheel) -> Message:
    return message_from_bytes(wheel.read(f"hifuse_timm-{__version__}.dist-info/METADATA"))


def test_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    files = (path for path in (ROOT / "hifuse_timm").rglob("*") if path.is_file())
    expected = {path.relative_to(ROOT).as_posix() for path in files if path.parent.name != "__pycache__"}
    assert {"hifuse_timm/py.typed", "hifuse_timm/hifuse.py", "hifuse_timm/recipes/isic2018.yaml"} <= expected
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected


def test_workflow_runs_the_oldest_and_the_newest_python_that_the_wheel_names(metadata):
    prefix = "Programming Language :: Python :: 3."
    minors = sorted(int(c.removeprefix(prefix)) for c in metadata.get_all("Classifier") if c.startswith(prefix))
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"] == {"python-version": [f"3.{minors[0]}", f"3.{minors[-1]}"]}
    assert metadata["Requires-Python"] == f">=3.{minors[0]}"


def test_citation_file_names_this_version_and_the_paper_as_the_readme_does():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    paper = citation["preferred-citation"]
    keys = dict(title="title", journal="journal", volume="volume", pages="start", year="year", doi="doi")
    expected = {field: str(paper[key]) for field, key in keys.items()}
    expected["author"] = " and ".join(
        f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]
    )
    expected["eprint"] = paper["identifiers"][0]["value"].removeprefix("arXiv:")
    entry = dict(re.findall(r"^ +(\w+) += \{(.*)\}", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    assert entry == expected | {"archivePrefix": "arXiv"}
