"""Run timm's own model tests, unchanged, on the models of this package and the rows of Table 3: `make conformance`.

The tests are in timm's source distribution and not in its wheel, so that of the installed version is downloaded with
pip, once, into build/. Those of pretrained weights find random ones on a stand-in Hub on this machine.
"""

import contextlib
import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import timm
from hub_server import HubServer
from safetensors.torch import save

from hifuse_timm.hub import NAMESPACE

ROOT = Path(__file__).parents[1]


def timm_tests() -> Path:
    """Folder of the tests of the installed timm, fetched at the first call."""
    version = importlib.metadata.version("timm")
    source = ROOT / "build" / f"timm-{version}"
    if not source.exists():
        source.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=source.parent) as folder:
            command = [
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--no-binary",
                "timm",
                f"timm=={version}",
                "-d",
                folder,
            ]
            subprocess.run([sys.executable, "-m", *command], check=True)
            with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
                archive.extractall(folder, filter="data")
            try:
                os.rename(Path(folder) / source.name, source)
            except OSError:  # another process was first
                if not source.exists():
                    raise
    return source / "tests"


def run(expression: str, **env: str) -> int:
    """Run the tests that pytest's -k expression selects, with further environment; returns pytest's exit code."""
    env = os.environ | dict(TORCH_BACKEND="hifuse_timm", PYTHONPATH=str(ROOT)) | env
    env.pop("GITHUB_ACTIONS", None)  # under which timm drops tests
    command = [sys.executable, "-m", "pytest", "test_models.py", "-q", "-k", expression, "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=timm_tests(), env=env).returncode


def run_on_rows(expression: str) -> int:
    """As `run`, on the rows of Table 3 as narrow networks, `ablation_*`."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return run(expression, TORCH_BACKEND="ablated_models", PYTHONPATH=path)


@contextlib.contextmanager
def stand_in_hub() -> Iterator[dict[str, str]]:
    """A Hub with random weights under every registered tag; gives the environment in which the client finds it."""
    with HubServer() as hub, tempfile.TemporaryDirectory() as cache:
        for name in timm.list_pretrained("hifuse_*"):
            hub.add(f"{NAMESPACE}/{name}", {"model.safetensors": save(timm.create_model(name).state_dict())})
        yield dict(HF_ENDPOINT=hub.url, HF_HOME=cache, HF_HUB_DISABLE_XET="1", HF_HUB_OFFLINE="0")
        if hub.requests["GET", "resolve"] == 0:
            sys.exit("error: timm's tests downloaded no weights from the stand-in Hub")


if __name__ == "__main__":
    with stand_in_hub() as environment:
        code = run("hifuse", **environment)
    sys.exit(code or run_on_rows("ablation_"))
