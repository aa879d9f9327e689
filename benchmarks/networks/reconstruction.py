"""A network with the published parameter and FLOP counts of HiFuse, which no network with the blocks of Table 1 has.

The published counts go back to a revision whose blocks held layers that never ran. What is added here to
`hifuse_timm.HiFuse` reproduces all six published numbers to the last digit printed. It is a reconstruction: no source
states it, and most of it stands in the authors' public revision of June 2022. Layers that never ran are built
and not called; where the others stood decides nothing in a count.
"""

import re

import timm
import torch
from timm.layers import LayerNorm2d
from torch import nn

import hifuse_timm  # noqa: F401  (registers the networks)
from hifuse_timm.hifuse import LocalBlock

# the norms that are written by hand in the released network; those of the global branch and the head are nn.LayerNorm,
# and so is the one that the reconstruction adds to the local blocks
_HAND_WRITTEN = re.compile(r"local_stem|\.local_downsample|\.local_blocks\.\d+\.norm|\.fusion")


class HandWrittenLayerNorm(nn.Module):
    """LayerNorm over channels that is no nn.LayerNorm, so that a counter of modules does not see it."""

    def __init__(self, norm: nn.LayerNorm):
        """
        Args:
            norm: The norm whose parameters to take over.
        """
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.channels_first = isinstance(norm, LayerNorm2d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, C, H, W) if channels_first, else (..., C), and so is the result."""
        if self.channels_first:
            x = x.permute(0, 2, 3, 1)
        x = nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2) if self.channels_first else x


class ReconstructedLocalBlock(LocalBlock):
    """Local block with ConvNeXt's 7x7 depthwise convolution, one more LayerNorm, and two layers that never run."""

    def __init__(self, dim: int):
        """
        Args:
            dim: Number of channels, in and out.
        """
        super().__init__(dim)
        self.conv_dw = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.out_norm = LayerNorm2d(dim, eps=1e-6)
        self.uncalled_expansion = nn.Linear(dim, 4 * dim)
        self.uncalled_proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, C, H, W), and so is the result."""
        return self.out_norm(super().forward(x))


class ReconstructedChannelAttention(nn.Module):
    """Channel attention whose poolings are modules, as released, so that a counter of modules sees them."""

    def __init__(self, dim: int):
        """
        Args:
            dim: Number of channels, in and out.
        """
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.max_pool = nn.AdaptiveMaxPool2d(1)
        self.mlp = nn.Sequential(
            nn.Conv2d(dim, dim // 16, kernel_size=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(dim // 16, dim, kernel_size=1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, C, H, W), and so is the result."""
        return x * (self.mlp(self.avg_pool(x)) + self.mlp(self.max_pool(x))).sigmoid()


def _conv_bn(in_dim: int, out_dim: int, *after: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_dim, out_dim, kernel_size=1), nn.BatchNorm2d(out_dim), *after)


def _fusion_layers(dim: int, is_first: bool) -> dict[str, nn.Module]:
    """Layers of an HFF block that are modules of another kind in the released network, which a counter tells apart."""
    layers = dict(
        channel_attn=ReconstructedChannelAttention(dim),
        local_proj=_conv_bn(dim, dim),
        global_proj=_conv_bn(dim, dim),
        fuse_proj=_conv_bn((2 if is_first else 3) * dim, dim, nn.GELU()),
    )
    if not is_first:
        layers["previous_proj"] = _conv_bn(dim // 2, dim, nn.ReLU(), nn.AvgPool2d(kernel_size=2))
    return layers


def _global_block_extras(dim: int) -> dict[str, nn.Module]:
    """The second norm of the released global block and Swin's MLP."""
    return dict(
        norm=nn.LayerNorm(dim),
        mlp=nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)),
    )


def _fusion_extras(dim: int, is_first: bool) -> dict[str, nn.Module]:
    """Of an HFF block, the paths of the released network for another number of maps, and the revision's residual."""
    if is_first:  # built for three maps as all HFF blocks are, but has no map of a stage before
        released = dict(
            previous_proj=_conv_bn(dim // 2, dim), three_norm=nn.LayerNorm(3 * dim), three_proj=_conv_bn(3 * dim, dim)
        )
    else:
        released = dict(two_norm=nn.LayerNorm(2 * dim), two_proj=_conv_bn(2 * dim, dim))
    return released | dict(
        residual=nn.Sequential(
            nn.BatchNorm2d(3 * dim),
            nn.Conv2d(3 * dim, dim // 2, kernel_size=1),
            nn.BatchNorm2d(dim // 2),
            nn.Conv2d(dim // 2, dim // 2, kernel_size=3, padding=1),
            nn.BatchNorm2d(dim // 2),
            nn.Conv2d(dim // 2, dim, kernel_size=1),
        ),
        residual_skip=nn.Conv2d(3 * dim, dim, kernel_size=1),
    )


def create_reconstruction(model: str, num_classes: int = 7) -> nn.Module:
    """Build the reconstruction of one published count.

    Args:
        model: Registered name of the network as designed: 'hifuse_tiny', 'hifuse_small' or 'hifuse_base'.
        num_classes: Number of classes.
    """
    net = timm.create_model(model, num_classes=num_classes)
    dims = [info["num_chs"] for info in net.feature_info]
    for i, (stage, dim) in enumerate(zip(net.stages, dims, strict=True)):
        stage.local_blocks = nn.Sequential(*[ReconstructedLocalBlock(dim) for _ in stage.local_blocks])
        for block in stage.global_blocks:
            block.uncalled = nn.ModuleDict(_global_block_extras(dim))
        for name, layer in _fusion_layers(dim, is_first=i == 0).items():
            setattr(stage.fusion, name, layer)
        stage.fusion.uncalled = nn.ModuleDict(_fusion_extras(dim, is_first=i == 0))
    net.uncalled = nn.ModuleDict(dict(global_norm=nn.LayerNorm(dims[-1]), global_head=nn.Linear(dims[-1], num_classes)))
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.LayerNorm) and _HAND_WRITTEN.search(name):
            net.set_submodule(name, HandWrittenLayerNorm(module))
    return net
