"""The five networks of the paper's ablation, Table 3."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass

from timm.utils import ParseKwargs


@dataclass(frozen=True)
class Configuration:
    """A row of Table 3.

    Attributes:
        name: Name in the paper.
        slug: Name for files.
        arguments: What makes hifuse_tiny this row, as one types it after `--model-kwargs`.
        accuracy: Published accuracy on ISIC2018, in percent.
        f1: Published F1 on ISIC2018, in percent.
        precision: Published precision on ISIC2018, in percent.
        recall: Published recall on ISIC2018, in percent.
    """

    name: str
    slug: str
    arguments: tuple[str, ...]
    accuracy: float
    f1: float
    precision: float
    recall: float


CONFIGURATIONS = (
    Configuration("Local Path", "local", ("branches=local",), 77.12, 54.12, 60.03, 52.77),
    Configuration(
        "+ Global Block",
        "global",
        ("branch_attention=False", "irmlp=False", "shortcut=False"),
        79.59,
        64.32,
        64.24,
        64.66,
    ),
    Configuration("+ Channel&Spatial Attn", "attention", ("irmlp=False", "shortcut=False"), 80.85, 66.26, 69.20, 64.60),
    Configuration("+ IRMLP", "irmlp", ("shortcut=False",), 81.32, 69.53, 72.20, 68.28),
    Configuration("+ Shortcut (HiFuse-Tiny)", "shortcut", (), 82.99, 72.99, 73.67, 72.87),
)


def parse_arguments(arguments: Sequence[str]) -> dict:
    """Arguments of a network as timm's scripts read them after --model-kwargs."""
    parser = ArgumentParser()
    parser.add_argument("--model-kwargs", nargs="*", default={}, action=ParseKwargs)
    return parser.parse_args(["--model-kwargs", *arguments]).model_kwargs
