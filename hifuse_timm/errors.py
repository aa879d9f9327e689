"""What errors say: which extra to install, what another library said in one line, long lists cut."""

import importlib
from collections.abc import Iterable
from types import ModuleType

from .text import abbreviate
from .version import REPOSITORY

__all__ = ["describe_install", "first_line", "require", "shorten"]

_LONGEST_NAME = 150  # characters


def describe_install(extra: str) -> str:
    """How to install an extra, whether or not the package is released, and in a clone."""
    return f"pip install 'hifuse-timm[{extra}] @ git+{REPOSITORY}', or in a clone pip install -e '.[{extra}]'"


def require(name: str, extra: str) -> ModuleType:
    """Import a module that an extra brings.

    Raises:
        RuntimeError: If it cannot be imported; says how to install the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise RuntimeError(f"{name} cannot be imported ({e}): {describe_install(extra)}") from e


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's name where there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shorten(names: Iterable, most: int = 12) -> str:
    """Names in a row, long ones cut in the middle, and how many more there are behind the first of them."""
    names = [abbreviate(name, _LONGEST_NAME) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
