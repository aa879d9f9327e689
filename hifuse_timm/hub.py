from dataclasses import dataclass


@dataclass(frozen=True)
class Dataset:
    num_classes: int
    license: str


DATASETS = {"isic2018": Dataset(7, "cc-by-nc-4.0"), "covid19ct": Dataset(2, "other"), "kvasir": Dataset(8, "other")}
NAMESPACE = "hifuse-timm"


def resolve_weights(variant, **kwargs):
    return kwargs
