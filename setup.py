"""What pyproject.toml cannot say: the README as PyPI shows it, where no link of the repository leads anywhere."""

import re
import runpy
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def make_absolute(readme: str, repository: str, tag: str) -> str:
    """The README with its links and pictures as addresses in a repository at a tag."""
    pages = f"{repository}/blob/{tag}/"
    files = pages.replace("https://github.com/", "https://raw.githubusercontent.com/").replace("/blob/", "/")
    relative = r"(?!https?:|mailto:|#)"
    readme = re.sub(rf'((?:src|srcset)="|!\[[^]]*\]\(){relative}', rf"\g<1>{files}", readme)
    readme = re.sub(rf"(?<!!)(\[(?:[^][]|\[[^]]*\])*\]\(){relative}", rf"\g<1>{pages}", readme)
    return readme.replace("](#", f"]({pages}README.md#")


if __name__ == "__main__":
    version = runpy.run_path(str(ROOT / "hifuse_timm/version.py"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    setup(
        long_description=make_absolute(readme, version["REPOSITORY"], f"v{version['__version__']}"),
        long_description_content_type="text/markdown",
    )
