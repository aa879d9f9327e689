"""Published results to put beside those of a study: the paper's Tables 4 to 6, and MedMNIST's."""

from __future__ import annotations

from dataclasses import dataclass

from hifuse_timm.paper import PAPER_METHODS, PAPER_RESULTS

TABLES = dict(isic2018="Table 4", covid19ct="Table 5", kvasir="Table 6")  # of the paper, by dataset
_METHODS = PAPER_METHODS | dict(conformer_base_p16="Conformer-base-p16", t2t_vit_t_24="T2T-ViT_t-24")


@dataclass(frozen=True)
class Published:
    """A published row.

    Attributes:
        name: Name of the network, and where it is published.
        metrics: Its metrics, in percent, those that are published.
    """

    name: str
    metrics: dict[str, float]


def _medmnist(name: str, auroc: float, accuracy: float) -> Published:
    return Published(f"{name}, MedMNIST v2", dict(accuracy=100 * accuracy, auroc=100 * auroc))


# Of the test images, by dataset. PneumoniaMNIST: Table 3 of Yang et al., MedMNIST v2, Scientific Data 10, 41 (2023);
# the number behind a ResNet is the size that the images of 28 pixels were resized to.
OTHERS = dict(
    pneumoniamnist=(
        _medmnist("ResNet-18 (28)", 0.944, 0.854),
        _medmnist("ResNet-18 (224)", 0.956, 0.864),
        _medmnist("ResNet-50 (28)", 0.948, 0.854),
        _medmnist("ResNet-50 (224)", 0.962, 0.884),
        _medmnist("auto-sklearn", 0.942, 0.855),
        _medmnist("AutoKeras", 0.947, 0.878),
        _medmnist("Google AutoML Vision", 0.991, 0.946),
    )
)


def find_row(model: str, dataset: str | None) -> Published | None:
    """The paper's row of a network, by its spec; None where the paper has none, as of other widths."""
    method = _METHODS.get(model)
    if method is None or dataset not in PAPER_RESULTS:
        return None
    names = ("accuracy", "f1", "precision", "recall")
    metrics = dict(zip(names, PAPER_RESULTS[dataset][method], strict=True))
    return Published(f"{method}, {TABLES[dataset]}", metrics)
