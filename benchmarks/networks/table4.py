"""The networks of the paper's Table 4: where each comes from, and the counts that the paper gives for it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import timm
from torch import nn

import hifuse_timm  # noqa: F401  (registers the networks)
from hifuse_timm.paper import PAPER_RESULTS

from .peers import CONFORMER, T2T_VIT, create_mmpretrain
from .reconstruction import create_reconstruction


@dataclass(frozen=True)
class Form:
    """One form of a network, as it is built, counted and measured.

    Attributes:
        model: Name of the network in its library.
        label: What tells the form from the others of its network.
        library: 'timm', 'mmpretrain' or 'reconstruction', which is `benchmarks.networks.reconstruction`.
        img_size: Pixels a side of its input.
        num_classes: Number of classes.
        reason: Why its counts are not the published ones, where they are not.
        missed: Pattern of the names of modules that the paper's counter missed in this network.
        kwargs: Further arguments of the network.
    """

    model: str
    label: str = ""
    library: str = "timm"
    img_size: int = 224
    num_classes: int = 1000
    reason: str = ""
    missed: str = ""
    kwargs: dict = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Network:
    """A row of Table 4.

    Attributes:
        name: Name in the tables made here.
        method: Name in the paper, under which `hifuse_timm.paper` has its metrics.
        params: Published parameters, in millions.
        flops: Published FLOPs, in 10^9 multiply-accumulates at batch 1.
        forms: Forms in which the network is built, the one that is measured first.
        img_size: Pixels a side of the input for which the published FLOPs hold.
    """

    name: str
    method: str
    params: float
    flops: float
    forms: tuple[Form, ...]
    img_size: int = 224

    @property
    def accuracy(self) -> float:
        """Published accuracy on ISIC2018, in percent."""
        return PAPER_RESULTS["isic2018"][self.method][0]


def _hifuse_forms(model: str) -> tuple[Form, ...]:
    return (
        Form(
            model,
            "as designed",
            num_classes=7,
            reason="the published counts include 7x7 convolutions and layers that never run: see the reconstruction",
        ),
        Form(
            f"{model}_dense",
            "as released",
            num_classes=7,
            reason="the 3x3 of the released IRMLP mixes channels; the published FLOPs are those of a depthwise one",
        ),
        Form(f"{model}_reconstruction", "published count reconstructed", library="reconstruction", num_classes=7),
    )


def _vit_forms(model: str) -> tuple[Form, ...]:
    return (
        Form(
            f"{model}_384",
            "at 384",
            img_size=384,
            reason="the paper's counter missed the query, key, value and output projections in nn.MultiheadAttention",
            missed=r"\.attn\.(qkv|proj)$",
        ),
        Form(f"{model}_224", "at 224"),
    )


_VGG_FORMS = (
    Form("vgg19", reason="the published parameters are those with BatchNorm"),
    Form("vgg19_bn", "with BatchNorm"),
)
_T2T_FORMS = (Form(T2T_VIT, library="mmpretrain"),)
_CONFORMER_FORMS = (Form(CONFORMER, library="mmpretrain"),)

NETWORKS = (
    Network("ConvNeXt-B", "ConvNeXt-B", 88.59, 15.36, (Form("convnext_base"),)),
    Network("VGG-19", "VGG-19", 143.68, 19.67, _VGG_FORMS),
    Network("Mixer-L/16", "Mixer-L/16", 208.20, 44.57, (Form("mixer_l16_224"),)),
    Network("T2T-ViT_t-24", "T2T-ViT_t-24", 64.00, 12.69, _T2T_FORMS),
    Network("DeiT-B", "DeiT-base", 86.57, 16.86, (Form("deit_base_patch16_224"),)),
    Network("ViT-B/16", "VIT-B/16", 86.86, 33.03, _vit_forms("vit_base_patch16"), img_size=384),
    Network("Swin-B", "Swin-B", 87.77, 15.14, (Form("swin_base_patch4_window7_224"),)),
    Network("ViT-B/32", "VIT-B/32", 88.30, 8.56, _vit_forms("vit_base_patch32"), img_size=384),
    Network("Conformer-B/16", "Conformer-base-p16", 83.29, 22.89, _CONFORMER_FORMS),
    Network("HiFuse-Tiny", "HiFuse_Tiny", 82.49, 8.13, _hifuse_forms("hifuse_tiny")),
    Network("HiFuse-Small", "HiFuse_Small", 93.82, 8.84, _hifuse_forms("hifuse_small")),
    Network("HiFuse-Base", "HiFuse_Base", 127.80, 10.97, _hifuse_forms("hifuse_base")),
)


def forms(patterns: list[str] | None = None) -> Iterator[tuple[Network, Form]]:
    """The forms of the networks of Table 4 whose name in the paper or in their library matches a pattern, all for None.

    Raises:
        ValueError: If a pattern, in which * and ? are wildcards, matches none.
    """
    rows = [(network, form) for network in NETWORKS for form in network.forms]
    if patterns is None:
        yield from rows
        return
    matches = {
        pattern: [
            row for row in rows if any(fnmatchcase(n.lower(), pattern.lower()) for n in (row[0].name, row[1].model))
        ]
        for pattern in patterns
    }
    for pattern, found in matches.items():
        if not found:
            names = ", ".join(f"{network.name} ({form.model})" for network, form in rows)
            raise ValueError(f"models: no network is named {pattern!r}, expected one of {names}, or a pattern of them")
    yield from (row for row in rows if any(row in found for found in matches.values()))


def find_form(model: str) -> Form:
    """The form of that name, of Table 4's networks or of any that timm has registered.

    Raises:
        ValueError: If there is none.
    """
    for network in NETWORKS:
        for form in network.forms:
            if form.model == model:
                return form
    if not timm.is_model(model):
        names = ", ".join(form.model for network in NETWORKS for form in network.forms)
        raise ValueError(f"models: {model!r} is no network of Table 4 ({names}) and none that timm has registered")
    cfg = timm.get_pretrained_cfg(model)
    return Form(model, img_size=cfg.input_size[-1], num_classes=cfg.num_classes)


def find_network(form: Form) -> Network | None:
    """The network of Table 4 that a form is of."""
    return next((network for network in NETWORKS if form in network.forms), None)


def timm_arguments(form: Form, img_size: int | None = None) -> dict:
    """Arguments of timm's create_model for a form.

    Args:
        form: A form that timm builds.
        img_size: Pixels a side of its input where that is not the form's own.
    """
    arguments = dict(model_name=form.model, num_classes=form.num_classes, **form.kwargs)
    if img_size not in (None, form.img_size):
        # HiFuse takes any size, and makes its masks at construction for the one that it is told
        if timm.get_pretrained_cfg(form.model).fixed_input_size or form.model.startswith("hifuse"):
            arguments["img_size"] = img_size
    return arguments


def create_network(form: Form, img_size: int | None = None, **kwargs) -> nn.Module:
    """Build a network with random weights, in eval mode.

    Args:
        form: What to build.
        img_size: Pixels a side of its input where that is not the form's own.
        kwargs: Further arguments of the network, for timm's alone.

    Raises:
        RuntimeError: If the library that has the network is not installed.
        ValueError: If the library takes no such arguments or input size.
    """
    if form.library == "timm":
        return timm.create_model(**timm_arguments(form, img_size) | kwargs).eval()
    if kwargs := form.kwargs | kwargs:
        raise ValueError(f"models: {form.model} is built by {form.library}, which takes no {', '.join(kwargs)}")
    if form.library == "reconstruction":
        return create_reconstruction(form.model.removesuffix("_reconstruction"), form.num_classes).eval()
    return create_mmpretrain(form.model).eval()
