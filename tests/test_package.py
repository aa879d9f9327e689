"""The wheel holds the package whole and nothing else, says what is true of it, and is what a release publishes."""

import os
import re
import subprocess
import sys
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from test_docs import find_targets, read_blocks

from hifuse_timm import __version__
from hifuse_timm.version import REPOSITORY

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
    weights = "hifuse_timm/weights/pneumoniamnist"
    for name in (
        *("hifuse_timm/py.typed", "hifuse_timm/hifuse.py", "hifuse_timm/recipes/isic2018.yaml"),
        *(f"{weights}/model.safetensors", f"{weights}/config.json", f"{weights}/README.md"),
        f"{weights}/examples/normal-test1.png",
    ):
        assert name in expected
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected


def test_readme_on_pypi_leads_to_this_version_on_github(metadata):
    readme, shown = (ROOT / "README.md").read_text(), metadata.get_payload()
    links, pictures = find_targets(readme)
    pages, files = f"{REPOSITORY}/blob/v{__version__}", f"{REPOSITORY}/v{__version__}"
    files = files.replace("https://github.com", "https://raw.githubusercontent.com")
    absolute = [re.sub(r"^#", f"{pages}/README.md#", link) for link in links]
    absolute = [link if link.startswith("https:") else f"{pages}/{link}" for link in absolute]
    assert find_targets(shown) == (absolute, [f"{files}/{picture}" for picture in pictures])
    assert absolute != links and pictures
    assert read_blocks(shown, "", "python") == read_blocks(readme, "", "python")
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_workflow_runs_the_oldest_and_the_newest_python_that_the_wheel_names(metadata):
    prefix = "Programming Language :: Python :: 3."
    minors = sorted(int(c.removeprefix(prefix)) for c in metadata.get_all("Classifier") if c.startswith(prefix))
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"] == {"python-version": [f"3.{minors[0]}", f"3.{minors[-1]}"]}
    assert metadata["Requires-Python"] == f">=3.{minors[0]}"


@pytest.fixture
def release() -> dict:
    return yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())


def test_release_publishes_what_was_built_and_checked_and_nothing_else(release):
    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads the key `on` as true
    build, publish = release["jobs"]["build"], release["jobs"]["publish"]
    commands = "\n".join(step.get("run", "") for step in build["steps"])
    for check in (
        "twine check --strict dist/*",
        "import timm, hifuse_timm",
        "hifuse-timm example",
        "make reproduce",
        "make test",
    ):
        assert check in commands
    upload, (download, to_pypi) = build["steps"][-1], publish["steps"]
    assert (publish["needs"], upload["with"]["name"]) == ("build", download["with"]["name"])
    assert upload["with"]["path"] == download["with"]["path"] == "dist/"
    assert to_pypi["uses"].startswith("pypa/gh-action-pypi-publish@") and "with" not in to_pypi


def test_release_alone_may_speak_for_the_project_at_pypi(release):
    assert release["permissions"] == {"contents": "read"}
    assert "permissions" not in release["jobs"]["build"]
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert release["jobs"]["publish"]["environment"] == "pypi"


def test_workflows_take_the_same_actions(release):
    ci = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    actions = [step["uses"] for job in release["jobs"].values() for step in job["steps"] if "uses" in step]
    assert {step["uses"] for step in ci["jobs"]["test"]["steps"] if "uses" in step} <= set(actions)
    assert all(re.search(r"@v\d", action) for action in actions)


@pytest.mark.parametrize("tag, code", [(f"v{__version__}", 0), (__version__, 1), ("v9.9.9", 1)])
def test_release_wants_the_tag_of_its_version(tag, code, release):
    script = next(
        step["run"] for step in release["jobs"]["build"]["steps"] if step.get("name") == "The tag is the version"
    )
    environment = dict(os.environ, GITHUB_REF_NAME=tag, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert subprocess.run(["bash", "-e", "-c", script], cwd=ROOT, env=environment, timeout=60).returncode == code


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
