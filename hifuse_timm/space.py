"""A Hugging Face Space that serves the demo of a published network: `app.py` and what it needs."""

from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData

from .files import sha256, write_text
from .version import REPOSITORY

__all__ = ["list_space", "write_space"]

_APP, _REQUIREMENTS, _CARD = "app.py", "requirements.txt", "README.md"


def write_space(folder: Path, repo_id: str, calibration: Path | None) -> None:
    """Write the files of a Space, its card with their checksums last.

    Args:
        folder: New folder to write them to.
        repo_id: Repository of the network, which the Space loads.
        calibration: File of the network's calibration, which is copied.
    """
    folder.mkdir()
    options = ""
    if calibration is not None:
        write_text(folder / calibration.name, calibration.read_text(encoding="utf-8"))
        options = f"calibration={calibration.name!r}, "
    write_text(
        folder / _APP,
        f"""from hifuse_timm.cli.demo import serve

serve({f"hf-hub:{repo_id}"!r}, {options}host="0.0.0.0")
""",
    )
    write_text(folder / _REQUIREMENTS, f"hifuse-timm[demo] @ git+{REPOSITORY}\n")
    name = repo_id.rpartition("/")[2]
    data = SpaceCardData(title=name, sdk="gradio", app_file=_APP, models=[repo_id], tags=["medical", "hifuse"])
    checksums = "\n".join(f"- `{path.name}`: {sha256(path)}" for path in sorted(folder.iterdir()))
    SpaceCard(f"""---
{data.to_yaml()}
---

# {name}

[{repo_id}](https://huggingface.co/{repo_id}) in the browser, by [hifuse-timm]({REPOSITORY}). For research: it is no
medical device, and no diagnosis may rest on it. Images that are dropped here go to the machine that runs this Space;
give it none of patients. If the repository is private, the Space needs a token that may read it, as its secret
`HF_TOKEN`.

## Files, SHA-256

{checksums}
""").save(folder / _CARD)


def list_space(folder: Path) -> set[str]:
    """The names of the files in a folder that `write_space` wrote, and that are as it wrote them."""
    try:
        card = (folder / _CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return set()
    written = {path.name for path in folder.iterdir() if path.is_file() and f"`{path.name}`: {sha256(path)}" in card}
    return written | {_CARD} if _APP in written else set()
