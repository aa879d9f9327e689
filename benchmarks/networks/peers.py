"""mmpretrain's two networks of Table 4 as models of timm, so that timm's train.py trains them too.

`--device-modules benchmarks.networks.peers` registers them. They start from random weights, drawn as mmpretrain does.
"""

from __future__ import annotations

import logging
import warnings

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from hifuse_timm.errors import require

CONFORMER, T2T_VIT = "conformer-base-p16_3rdparty_in1k", "t2t-vit-t-24_8xb64_in1k"
NAMES = {CONFORMER: "conformer_base_p16", T2T_VIT: "t2t_vit_t_24"}  # in timm, of those in mmpretrain


def create_mmpretrain(name: str, **config) -> nn.Module:
    """A network of mmpretrain with random weights.

    Args:
        name: Its name there.
        config: What replaces its config, by part, as `head=dict(num_classes=2)`.

    Raises:
        RuntimeError: If mmpretrain is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mmcv-lite lacks compiled ops that these networks do not use, and says so
        apis = require("mmpretrain", "peers").apis
        require("mmengine.logging", "peers").MMLogger.get_current_instance().setLevel(logging.WARNING)
        # given the name, it would keep what is replaced for the next network of that name
        return apis.get_model(apis.ModelHub.get(name).config, pretrained=False, **config)


class Peer(nn.Module):
    """A classifier of mmpretrain with timm's interface.

    The logits of Conformer are the sum of those of its two classifiers, by which it predicts. Its authors train each of
    the two with a loss of its own; train.py has one loss, here that of the sum.
    """

    def __init__(
        self,
        name: str,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int = 224,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        """
        Args:
            name: Name of the network in mmpretrain.
            num_classes: Number of classes.
            in_chans: Channels of the images, 3.
            img_size: Pixels a side of the images.
            drop_rate: Dropout, 0.
            drop_path_rate: Rate of stochastic depth in the last block.
        """
        super().__init__()
        if in_chans != 3 or drop_rate:
            raise ValueError(f"{name} takes 3 channels and no dropout: in_chans {in_chans}, drop_rate {drop_rate}")
        self.num_classes = num_classes
        backbone = dict(drop_path_rate=drop_path_rate, **(dict(img_size=img_size) if name == T2T_VIT else {}))
        self.model = create_mmpretrain(name, backbone=backbone, head=dict(num_classes=num_classes))
        self.model.init_weights()  # which mmpretrain leaves to its training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, (B, num_classes), of images, (B, 3, H, W)."""
        logits = self.model(x)
        return sum(logits) if isinstance(logits, tuple) else logits


def _create(variant: str, name: str, pretrained: bool, **kwargs) -> Peer:
    return build_model_with_cfg(Peer, variant, pretrained, name=name, **kwargs)


default_cfgs = generate_default_cfgs(
    {
        "conformer_base_p16": dict(
            input_size=(3, 224, 224), num_classes=1000, first_conv="model.backbone.conv1", classifier=None
        ),
        "t2t_vit_t_24": dict(
            input_size=(3, 224, 224),
            num_classes=1000,
            fixed_input_size=True,
            classifier="model.head.layers.head",
            first_conv=None,
        ),
    }
)


@register_model
def conformer_base_p16(pretrained: bool = False, **kwargs) -> Peer:
    """Conformer-B/16, https://arxiv.org/abs/2105.03889."""
    return _create("conformer_base_p16", CONFORMER, pretrained, **kwargs)


@register_model
def t2t_vit_t_24(pretrained: bool = False, **kwargs) -> Peer:
    """T2T-ViT_t-24, https://arxiv.org/abs/2101.11986."""
    return _create("t2t_vit_t_24", T2T_VIT, pretrained, **kwargs)
