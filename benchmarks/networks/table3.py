"""The rows of the paper's ablation, Table 3: what is published, and which arguments of `HiFuse` make each network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Configuration:
    """A row of Table 3, hifuse_tiny with some of its parts.

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

    def spec(self, model_kwargs: tuple[str, ...] = ()) -> str:
        """The network as a spec, see `benchmarks.networks.specs`, with further arguments."""
        arguments = ",".join((*self.arguments, *model_kwargs))
        return f"hifuse_tiny[{arguments}]" if arguments else "hifuse_tiny"


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


def find_configuration(slug: str) -> Configuration:
    """The row of that slug."""
    return next(row for row in CONFIGURATIONS if row.slug == slug)
