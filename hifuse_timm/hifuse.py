"""HiFuse: three branches, local (convolutions), global (shifted-window attention) and fused, at four scales.

Paper: `HiFuse: Hierarchical Multi-Scale Feature Fusion Network for Medical Image Classification`
- https://arxiv.org/abs/2209.10218

Equation and table numbers below are the paper's. Where the paper leaves a choice open, the network follows what its
authors released, so that weights trained with their code load (`hifuse_timm.convert`) and give the same outputs.

Maps are (B, C, H, W) tensors, tokens their (B, H*W, C) view. What computes both fast is in `hifuse_timm.layers`.
"""

from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import (
    ConvNormAct,
    DropPath,
    NormMlpClassifierHead,
    calculate_drop_path_rates,
    get_device_dtype,
    trunc_normal_,
)
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models._manipulate import named_apply
from timm.utils import reparameterize_model
from torch import nn

from .convert import checkpoint_filter_fn
from .datasets import DATASETS
from .hub import NAMESPACE, check_tag, resolve_weights
from .layers.attention import ShiftedWindowAttention
from .layers.chunking import checkpoint_module, count_chunks, run_in_chunks
from .layers.linear import fold_norm_after, fold_norm_before, linear_act, make_linear, mlp
from .layers.maps import LayerNorm2d, LinearNormAct, PatchMerging2d, concatenate, pad_map, to_map, to_tokens

__all__ = ["HiFuse"]  # register_model adds the entrypoints

torch.fx.wrap("concatenate")  # by its name in this module, where it is called


class GlobalBlock(nn.Module):
    """Global feature block, Eq. 2: LayerNorm, (shifted) window attention, 1x1 layer, GELU, and the input added."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        shift_size: int = 0,
        map_size: tuple[int, int] = (56, 56),
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ):
        """
        Args:
            dim: Number of channels, in and out.
            num_heads: Number of attention heads, a divisor of dim.
            window_size: Tokens a side of a window.
            shift_size: Tokens by which the windows are shifted up and left, 0 for W-MSA.
            map_size: Height and width of the maps for which the mask is made at construction.
            attn_drop: Dropout rate of the attention weights.
            proj_drop: Dropout rate after the attention's projection.
            drop_path: Stochastic depth rate.
        """
        dd = dict(device=device, dtype=dtype)
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-5, **dd)
        self.attn = ShiftedWindowAttention(
            dim,
            num_heads,
            window_size=window_size,
            shift_size=shift_size,
            map_size=map_size,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            **dd,
        )
        self.fc = nn.Linear(dim, dim, **dd)
        self.act = nn.GELU()
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    @torch.no_grad()
    def fuse(self) -> "GlobalBlock":
        """Make one Linear of the attention's projection and the 1x1 layer behind it, for inference."""
        if isinstance(self.attn.proj, nn.Linear):
            proj, fc = self.attn.proj, self.fc
            bias = F.linear(proj.bias, fc.weight, fc.bias)
            self.fc, self.attn.proj = make_linear(fc.weight @ proj.weight, bias), nn.Identity()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, C, H, W), and so is the result."""
        height, width = x.shape[2], x.shape[3]
        tokens = self.attn(self.norm(to_tokens(x)), height, width)
        tokens = self.act(self.fc(tokens)) if torch.jit.is_scripting() else linear_act(tokens, self.fc, self.act)
        return x + self.drop_path(to_map(tokens, height, width))


class LocalBlock(nn.Module):
    """Local feature block, Eq. 3: depthwise 3x3 convolution, LayerNorm, 1x1 layer, GELU, and the input added."""

    def __init__(self, dim: int, drop_path: float = 0.0, device=None, dtype=None):
        """
        Args:
            dim: Number of channels, in and out.
            drop_path: Stochastic depth rate.
        """
        dd = dict(device=device, dtype=dtype)
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, **dd)
        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.fc = nn.Linear(dim, dim, **dd)
        self.act = nn.GELU()
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, C, H, W), and so is the result."""
        height, width = x.shape[2], x.shape[3]
        tokens = self.norm(to_tokens(self.conv_dw(x)))
        tokens = self.act(self.fc(tokens)) if torch.jit.is_scripting() else linear_act(tokens, self.fc, self.act)
        return x + self.drop_path(to_map(tokens, height, width))


class SpatialAttention(nn.Module):
    """Spatial attention SA, Eq. 4, and its product with the map, Eq. 5."""

    def __init__(self, device=None, dtype=None):
        dd = dict(device=device, dtype=dtype)
        super().__init__()
        self.conv = ConvNormAct(2, 1, kernel_size=7, apply_act=False, **dd)

    @torch.no_grad()
    def fuse(self) -> "SpatialAttention":
        """Fold the BatchNorm into the convolution, for inference."""
        if isinstance(self.conv, ConvNormAct):
            conv, norm = self.conv.conv, self.conv.bn
            conv.weight, conv.bias = nn.utils.fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            self.conv = conv
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, C, H, W), and so is the result."""
        pooled = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)  # B 2 H W
        return x * self.conv(pooled).sigmoid()


class ChannelAttention(nn.Module):
    """Channel attention CA, Eq. 4, and its product with the map, Eq. 5."""

    def __init__(self, dim: int, reduction: int = 16, device=None, dtype=None):
        """
        Args:
            dim: Number of channels, in and out.
            reduction: Factor by which the hidden layer of the MLP is narrower.
        """
        dd = dict(device=device, dtype=dtype)
        super().__init__()
        hidden_dim = max(dim // reduction, 1)
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden_dim, bias=False, **dd),
            nn.ReLU(),
            nn.Linear(hidden_dim, dim, bias=False, **dd),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, C, H, W), and so is the result."""
        average, maximum = x.mean(dim=(2, 3)), x.amax(dim=(2, 3))  # B C
        return x * (self.mlp(average) + self.mlp(maximum)).sigmoid()[:, :, None, None]


class InvertedResidualMlp(nn.Module):
    """Inverted residual MLP (IRMLP), Eq. 4: LayerNorm, 3x3 convolution with its input added, two 1x1 layers."""

    def __init__(self, dim: int, out_dim: int, mlp_ratio: int = 4, dense: bool = False, device=None, dtype=None):
        """
        Args:
            dim: Number of channels in.
            out_dim: Number of channels out.
            mlp_ratio: Width of the hidden layer as a multiple of dim.
            dense: Whether the 3x3 convolution mixes channels, as in the released network, or is depthwise (Table 1).
        """
        dd = dict(device=device, dtype=dtype)
        super().__init__()
        self.grad_checkpointing = False
        self.norm = LayerNorm2d(dim, eps=1e-6, **dd)
        self.conv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=1 if dense else dim, bias=False, **dd)
        self.act = nn.GELU()
        self.bn1 = nn.BatchNorm2d(dim, **dd)
        self.fc1 = nn.Linear(dim, mlp_ratio * dim, bias=False, **dd)
        self.fc2 = nn.Linear(mlp_ratio * dim, out_dim, bias=False, **dd)
        self.bn2 = nn.BatchNorm2d(out_dim, **dd)

    def fuse(self) -> "InvertedResidualMlp":
        """Fold each BatchNorm into the 1x1 layer beside it, for inference."""
        if isinstance(self.bn1, nn.BatchNorm2d):
            self.fc1, self.bn1 = fold_norm_before(self.bn1, self.fc1), nn.Identity()
            self.fc2, self.bn2 = fold_norm_after(self.fc2, self.bn2), nn.Identity()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, C, H, W); the result: (B, out_dim, H, W)."""
        x = self.norm(x)
        x = self.bn1(x + self.act(self.conv(x)))
        tokens = to_tokens(x)
        if torch.jit.is_scripting():
            tokens = self.fc2(self.act(self.fc1(tokens)))
        else:
            tokens = mlp(tokens, self.fc1, self.act, self.fc2, checkpointing=self.grad_checkpointing)
        return self.bn2(to_map(tokens, x.shape[2], x.shape[3]))


class HierarchicalFeatureFusion(nn.Module):
    """Hierarchical feature fusion block (HFF), Eq. 5 and Figure 2.

    Fuses the local and the global map of a stage with the fused map of the stage before, if there is one. The parts
    that Table 3 adds one after the other can be left out; what is then in their place, of which the paper says nothing,
    is the least that works.
    """

    def __init__(
        self,
        dim: int,
        previous_dim: int | None = None,
        dense: bool = False,
        branch_attention: bool = True,
        irmlp: bool = True,
        shortcut: bool = True,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ):
        """
        Args:
            dim: Number of channels of the local, the global and the fused map.
            previous_dim: Number of channels of the fused map of the stage before, None in the first stage.
            dense: Whether the 3x3 convolution of the IRMLP mixes channels.
            branch_attention: Whether spatial and channel attention weigh the local and the global map, which otherwise
                reach the IRMLP unchanged.
            irmlp: Whether the IRMLP fuses the three maps; otherwise a 1x1 convolution, 3C to C, with BatchNorm does.
            shortcut: Whether the term u, the projected and pooled map of the stage before, is added in the end. It is
                among the maps that are fused in either case.
            drop_path: Stochastic depth rate of the IRMLP; without a shortcut, as in the first stage, there is none.
        """
        dd = dict(device=device, dtype=dtype)
        super().__init__()
        self.shortcut = shortcut
        self.spatial_attn = SpatialAttention(**dd) if branch_attention else nn.Identity()
        self.channel_attn = ChannelAttention(dim, **dd) if branch_attention else nn.Identity()
        self.local_proj = LinearNormAct(dim, dim, **dd)
        self.global_proj = LinearNormAct(dim, dim, **dd)
        if previous_dim is None:
            self.previous_proj = None
            num_maps = 2
        else:
            self.previous_proj = nn.Sequential(
                LinearNormAct(previous_dim, dim, act_layer=nn.ReLU, **dd),
                nn.AvgPool2d(kernel_size=2),
            )
            num_maps = 3
        self.norm = LayerNorm2d(num_maps * dim, eps=1e-6, **dd)
        self.fuse_proj = LinearNormAct(num_maps * dim, dim, act_layer=nn.GELU, **dd)
        self.irmlp = (
            InvertedResidualMlp(3 * dim, dim, dense=dense, **dd) if irmlp else LinearNormAct(3 * dim, dim, **dd)
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(
        self, local_map: torch.Tensor, global_map: torch.Tensor, previous: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Args:
            local_map: Local map L of this stage, (B, C, H, W).
            global_map: Global map G of this stage, (B, C, H, W).
            previous: Fused map of the stage before, (B, previous_dim, 2H, 2W), None in the first stage.

        Returns:
            Fused map F of this stage, (B, C, H, W).
        """
        attended = [self.channel_attn(global_map), self.spatial_attn(local_map)]
        maps = [self.local_proj(local_map), self.global_proj(global_map)]
        shortcut: torch.Tensor | None = None
        if self.previous_proj is not None:
            assert previous is not None, "previous: the fused map of the stage before is missing"
            shortcut = self.previous_proj(previous)
            maps = [shortcut] + maps
        fused = self.fuse_proj(self.norm(concatenate(maps)))
        fused = self.irmlp(concatenate(attended + [fused]))
        return shortcut + self.drop_path(fused) if shortcut is not None and self.shortcut else fused


class HiFuseStage(nn.Module):
    """One stage: each branch downsampled and run through its blocks, then the HFF block over the three maps.

    A stage without global blocks is one of the local branch alone: nothing is fused, and the local map takes the place
    of the fused one.
    """

    def __init__(
        self,
        dim: int,
        previous_dim: int | None,
        local_depth: int,
        global_depth: int,
        num_heads: int,
        window_size: int = 7,
        map_size: tuple[int, int] = (56, 56),
        dense: bool = False,
        branch_attention: bool = True,
        irmlp: bool = True,
        shortcut: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        local_drop_path: list[float] | None = None,
        global_drop_path: list[float] | None = None,
        device=None,
        dtype=None,
    ):
        """
        Args:
            dim: Number of channels of the three maps.
            previous_dim: Number of channels in the stage before, None in the first stage, which does not downsample.
            local_depth: Number of local blocks.
            global_depth: Number of global blocks, 0 for the local branch alone.
            num_heads: Number of attention heads.
            window_size: Tokens a side of an attention window.
            map_size: Height and width of the maps for which the window masks are made.
            dense: Whether the 3x3 convolution of the IRMLP mixes channels.
            branch_attention: Whether the HFF block has spatial and channel attention.
            irmlp: Whether the HFF block has an IRMLP.
            shortcut: Whether the HFF block has a shortcut.
            attn_drop: Dropout rate of the attention weights.
            proj_drop: Dropout rate after the attention's projection.
            local_drop_path: Stochastic depth rate of each local block.
            global_drop_path: Stochastic depth rate of each global block; the HFF block takes the stage's highest.
        """
        dd = dict(device=device, dtype=dtype)
        super().__init__()
        self.dim = dim
        self.stride = 1 if previous_dim is None else 2  # tokens a side of the stage before for one of this stage
        self.grad_checkpointing = False
        local_drop_path = local_drop_path or [0.0] * local_depth
        global_drop_path = global_drop_path or [0.0] * global_depth
        if previous_dim is None:
            self.local_downsample = nn.Identity()
            self.global_downsample = nn.Identity()
        else:
            self.local_downsample = nn.Sequential(
                LayerNorm2d(previous_dim, eps=1e-6, **dd),
                nn.Conv2d(previous_dim, dim, kernel_size=2, stride=2, **dd),
            )
            self.global_downsample = PatchMerging2d(previous_dim, dim, norm_layer=partial(nn.LayerNorm, eps=1e-5), **dd)
        self.local_blocks = nn.Sequential(*[LocalBlock(dim, drop_path=rate, **dd) for rate in local_drop_path])
        if global_depth == 0:
            self.global_downsample = self.global_blocks = self.fusion = None
            return
        self.global_blocks = nn.Sequential(
            *[
                GlobalBlock(
                    dim,
                    num_heads,
                    window_size=window_size,
                    shift_size=window_size // 2 if i % 2 else 0,
                    map_size=map_size,
                    attn_drop=attn_drop,
                    proj_drop=proj_drop,
                    drop_path=rate,
                    **dd,
                )
                for i, rate in enumerate(global_drop_path)
            ]
        )
        self.fusion = HierarchicalFeatureFusion(
            dim,
            previous_dim,
            dense=dense,
            branch_attention=branch_attention,
            irmlp=irmlp,
            shortcut=shortcut,
            drop_path=max(local_drop_path[-1], global_drop_path[-1]),
            **dd,
        )

    def fuse(self) -> "HiFuseStage":
        """Freeze the weights, for inference; what folds, folds itself."""
        return self.requires_grad_(False)

    def forward(
        self, local_map: torch.Tensor, global_map: torch.Tensor | None, fused: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Local, global and fused map of the stage before, (B, C', H', W'), to those of this one, (B, C, H, W)."""
        if not torch.jit.is_scripting():
            num_chunks = count_chunks(self, local_map, self.dim / self.stride**2, halve=fused is None)
            if num_chunks > 1:
                return run_in_chunks(self.fuse_maps, num_chunks, local_map, global_map, fused)
        return self.fuse_maps(local_map, global_map, fused)

    def fuse_maps(
        self, local_map: torch.Tensor, global_map: torch.Tensor | None, fused: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """The stage for all images at once, as forward()."""
        local_map = self.local_downsample(local_map)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            local_map = checkpoint_seq(self.local_blocks, local_map)
        else:
            local_map = self.local_blocks(local_map)
        if self.fusion is None:
            return local_map, None, local_map
        assert global_map is not None, "global_map: the global map of the stage before is missing"
        global_map = self.global_downsample(global_map)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            global_map = checkpoint_seq(self.global_blocks, global_map)
            fused = checkpoint_module(self.fusion, local_map, global_map, fused)
        else:
            global_map = self.global_blocks(global_map)
            fused = self.fusion(local_map, global_map, fused)
        return local_map, global_map, fused


@torch.fx.wrap
def pad_image(x: torch.Tensor, in_chans: int, multiple: int) -> torch.Tensor:
    """Check a batch of images and pad it with zeros at the bottom and right to the next multiple a side.

    Args:
        x: Images, (B, in_chans, H, W), at least 32 pixels a side.
        in_chans: Number of channels that the network takes.
        multiple: Pixels a side of which the result is a multiple.

    Raises:
        ValueError: If x is not a batch of images with in_chans channels and sides of at least 32 pixels.
    """
    if x.dim() != 4:
        raise ValueError(f"input has {x.dim()} dimensions, expected 4: (batch, {in_chans}, height, width)")
    channels, height, width = x.shape[1], x.shape[2], x.shape[3]
    if channels != in_chans:
        raise ValueError(
            f"input has {channels} channels, expected {in_chans}: (batch, {in_chans}, height, width); "
            "create the model with in_chans for another number"
        )
    if height < 32 or width < 32:
        raise ValueError(f"input is {height}x{width} pixels, expected at least 32 a side")
    return pad_map(x, multiple)


class HiFuse(nn.Module):
    """HiFuse, Figure 1 and Table 1.

    Only the fused map of the last stage reaches the head. Any input size from 32 pixels a side up works: the image is
    padded with zeros at the bottom and right to the next multiple of the last stage's stride.

    The rows of the ablation, Table 3, are `branches='local'`; then both branches without `branch_attention`, `irmlp`
    and `shortcut`; and these three added one after the other, up to the whole network, which is the default. Where the
    local branch is alone, its maps are the features, and that of the last stage reaches the head.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: tuple[int, ...] = (96, 192, 384, 768),
        depths: tuple[int, ...] = (2, 2, 2, 2),
        global_depths: tuple[int, ...] | None = None,
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window_size: int = 7,
        dense: bool = False,
        branches: str = "local+global",
        branch_attention: bool | None = None,
        irmlp: bool | None = None,
        shortcut: bool | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        """
        Args:
            img_size: Height and width, or both as one number, for which the window masks are made at construction;
                images of other sizes work too.
            in_chans: Number of image channels.
            num_classes: Number of classes, 0 for pooled features.
            global_pool: Pooling of the head: 'avg', 'max', 'avgmax', 'fast' or '' for none.
            dims: Number of channels of each stage.
            depths: Number of blocks of each stage, in the local branch and, unless global_depths says otherwise, in
                the global one.
            global_depths: Number of blocks of each stage in the global branch.
            num_heads: Number of attention heads of each stage, in the global branch.
            window_size: Tokens a side of an attention window.
            dense: Whether the 3x3 convolution of the IRMLPs mixes channels, as in the released network, instead of
                being depthwise as in the published one.
            branches: 'local+global', or 'local' for the local branch alone, without HFF blocks.
            branch_attention: Whether the HFF blocks weigh the local map by spatial and the global one by channel
                attention, instead of taking them unchanged. Like irmlp and shortcut, on wherever there are HFF blocks.
            irmlp: Whether the HFF blocks end in an IRMLP, instead of a 1x1 convolution with BatchNorm.
            shortcut: Whether the HFF blocks add the fused map of the stage before to what they fuse.
            drop_rate: Dropout rate before the classifier.
            drop_path_rate: Stochastic depth rate of the last block of each branch; grows linearly from 0 at the first.
            attn_drop_rate: Dropout rate of the attention weights.
            proj_drop_rate: Dropout rate after the attention's projection.

        Raises:
            ValueError: If depths, global_depths, dims and num_heads are not of one length, hold a number under 1, or
                a number of heads does not divide its width; or if a part is asked for where there is nothing that it
                could be a part of.
        """
        super().__init__()
        dd = dict(device=device, dtype=dtype)
        parts = _resolve_parts(
            branches, global_depths, dense, branch_attention=branch_attention, irmlp=irmlp, shortcut=shortcut
        )
        if branches == "local":
            _check_architecture(dims=dims, depths=depths)
            global_depths = num_heads = (0,) * len(dims)
        else:
            global_depths = depths if global_depths is None else global_depths
            _check_architecture(dims=dims, depths=depths, global_depths=global_depths, num_heads=num_heads)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = dims[-1]
        self.stride = 4 * 2 ** (len(dims) - 1)  # pixels of an image for a token of the last map
        img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)

        self.local_stem = nn.Sequential(
            nn.Conv2d(in_chans, dims[0], kernel_size=4, stride=4, **dd),
            LayerNorm2d(dims[0], eps=1e-6, **dd),
        )
        self.global_stem = None
        if branches != "local":
            self.global_stem = nn.Sequential(
                nn.Conv2d(in_chans, dims[0], kernel_size=4, stride=4, **dd),
                LayerNorm2d(dims[0], eps=1e-5, **dd),
            )

        local_rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        global_rates = calculate_drop_path_rates(drop_path_rate, list(global_depths), stagewise=True)
        self.feature_info = []
        stages = []
        for i, dim in enumerate(dims):
            reduction = 4 * 2**i
            stages.append(
                HiFuseStage(
                    dim,
                    dims[i - 1] if i > 0 else None,
                    depths[i],
                    global_depths[i],
                    num_heads[i],
                    window_size=window_size,
                    map_size=tuple(-(-size // self.stride) * self.stride // reduction for size in img_size),
                    dense=dense,
                    **parts,
                    attn_drop=attn_drop_rate,
                    proj_drop=proj_drop_rate,
                    local_drop_path=local_rates[i],
                    global_drop_path=global_rates[i],
                    **dd,
                )
            )
            source = "local_blocks" if branches == "local" else "fusion"
            self.feature_info.append(dict(num_chs=dim, reduction=reduction, module=f"stages.{i}.{source}"))
        self.stages = nn.ModuleList(stages)

        self.head = NormMlpClassifierHead(
            self.num_features,
            num_classes,
            pool_type=global_pool,
            drop_rate=drop_rate,
            norm_layer=partial(LayerNorm2d, eps=1e-6),
            **dd,
        )
        self.head_hidden_size = self.head.num_features
        named_apply(_init_weights, self)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that take no weight decay: the relative position tables."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str | list[tuple[str, tuple[int, ...] | None]]]:
        """Patterns that sort the parameters into groups from the input to the head, for layer-wise learning rates."""
        return dict(
            stem=r"^(?:local|global)_stem",
            blocks=r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.\w+_downsample", (0,)),
                (r"^stages\.(\d+)\.\w+_blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.fusion", (999,)),
            ],
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the maps between blocks for the backward pass, and compute the rest again."""
        for stage in self.stages:
            stage.grad_checkpointing = enable
            if stage.fusion is not None and isinstance(stage.fusion.irmlp, InvertedResidualMlp):
                stage.fusion.irmlp.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The classification layer."""
        return self.head.fc

    def fuse(self) -> "HiFuse":
        """Fold every BatchNorm into its neighbour and every pair of linear layers into one, in place, for inference.

        The outputs stay the same. The state dict does not: it loads into fused networks only. The weights of the stages
        require no gradients then, and on a CPU, in float32, take twice the memory from the first call on: they are kept
        in a second layout, which is faster to multiply with.

        Raises:
            RuntimeError: If the network is in training mode, in which BatchNorm works on the statistics of the batch.
        """
        if self.training:
            raise RuntimeError("fuse() is for inference and the network is in training mode: call eval() before it")
        return reparameterize_model(self, inplace=True)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        """Replace the classification layer by a new one.

        Args:
            num_classes: Number of classes, 0 for none.
            global_pool: Pooling of the head, None to keep it.
            reset_other: Whether to drop the head's norm as well.
        """
        self.num_classes = num_classes
        self.head.reset(
            num_classes, global_pool, reset_other=reset_other, in_features=self.num_features, **get_device_dtype(self)
        )
        self.head_hidden_size = self.head.num_features

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The fused maps of the stages, or the local ones where the local branch is alone.

        Args:
            x: Images, (B, in_chans, H, W).
            indices: Stages whose maps to take: the last n for an int, all for None.
            norm: Has no effect: the head's norm follows its pooling.
            stop_early: Whether to stop after the last stage asked for.
            output_fmt: Layout of the maps, 'NCHW'.
            intermediates_only: Whether to return the maps alone.

        Returns:
            The maps, (B, C, H', W') each, behind the features of the last stage that ran unless intermediates_only. H'
            is the image's height over the stage's reduction, rounded up, and W' likewise: what lies in the padding of
            the image alone is cut off.
        """
        assert output_fmt == "NCHW", "output_fmt is " + output_fmt + ", expected NCHW"  # scripts, as no f-string does
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        if torch.jit.is_scripting() or not stop_early:
            stages = self.stages
        else:
            stages = self.stages[: max_index + 1]

        height, width = x.shape[-2], x.shape[-1]
        local_map, global_map = self.forward_stems(x)
        fused: torch.Tensor | None = None
        intermediates = []
        reduction = 4
        for i, stage in enumerate(stages):
            local_map, global_map, fused = stage(local_map, global_map, fused)
            if i in take_indices:
                intermediates.append(fused[:, :, : -(-height // reduction), : -(-width // reduction)])
            reduction *= 2
        if intermediates_only:
            return intermediates
        return fused, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages, and the head, that the maps asked for do not need.

        Args:
            indices: Stages whose maps are taken: the last n for an int.
            prune_norm: Whether to drop the head's norm.
            prune_head: Whether to drop the head.

        Returns:
            The indices of the stages whose maps are taken.
        """
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        prune_end = max_index < len(self.stages) - 1
        self.stages = self.stages[: max_index + 1]
        if prune_end:
            self.num_features = self.feature_info[max_index]["num_chs"]
        if prune_head or prune_end:
            self.reset_classifier(0, "", reset_other=True)
        elif prune_norm:
            self.head.norm = nn.Identity()
        return take_indices

    def forward_stems(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images, (B, in_chans, H, W), to the first local and global map; no global one for the local branch alone."""
        x = pad_image(x, self.in_chans, self.stride)
        global_map = None if self.global_stem is None else self.global_stem(x)
        return self.local_stem(x), global_map

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images, (B, in_chans, H, W), to the fused map of the last stage, (B, num_features, H/32, W/32)."""
        local_map, global_map = self.forward_stems(x)
        fused: torch.Tensor | None = None
        for stage in self.stages:
            local_map, global_map, fused = stage(local_map, global_map, fused)
        assert fused is not None
        return fused

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Features, (B, num_features, H, W), to logits, or with pre_logits to what the classification layer takes."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images, (B, in_chans, H, W), to logits, (B, num_classes).

        Raises:
            ValueError: If x is not a batch of images with in_chans channels and sides of at least 32 pixels.
        """
        return self.forward_head(self.forward_features(x))


def _resolve_parts(
    branches: str, global_depths: tuple[int, ...] | None, dense: bool, **parts: bool | None
) -> dict[str, bool]:
    """The parts of the HFF blocks that a network has: as said, by default all where there are HFF blocks."""
    if branches not in ("local", "local+global"):
        raise ValueError(f"branches is {branches!r}, expected 'local' or 'local+global'")
    for name, value in parts.items():
        if value not in (None, False, True):
            raise ValueError(f"{name} is {value!r}, expected True or False")
    if branches == "local":
        unfit = [name for name, value in parts.items() if value]
        unfit += ["global_depths"] * (global_depths is not None) + ["dense"] * bool(dense)
        if unfit:
            raise ValueError(
                f"branches is 'local', which leaves no global branch and nothing to fuse: leave {', '.join(unfit)} "
                "out, or branches"
            )
    elif dense and parts["irmlp"] is False:
        raise ValueError("dense is True and irmlp is False: dense is of the IRMLP's convolution, leave one of them out")
    return {name: branches != "local" if value is None else bool(value) for name, value in parts.items()}


def _check_architecture(**settings: tuple[int, ...]) -> None:
    dims = settings["dims"]
    for name, values in settings.items():
        if len(values) != len(dims) or not values:
            lengths = ", ".join(f"{key}={tuple(value)}" for key, value in settings.items())
            raise ValueError(f"{name} must have one number a stage, as dims, depths and num_heads have: {lengths}")
        if min(values) < 1:
            raise ValueError(f"{name} is {tuple(values)}, expected numbers from 1 up")
    for i, (dim, heads) in enumerate(zip(dims, settings.get("num_heads", ()), strict=False)):
        if dim % heads:
            raise ValueError(f"num_heads[{i}] is {heads}, expected a divisor of dims[{i}], {dim}")


def _init_weights(module: nn.Module, name: str = "") -> None:
    """Truncated normal for Linear and classifier (std 0.02) and the branches' convolutions (0.2); HFF as in PyTorch."""
    if isinstance(module, (nn.Linear, nn.Conv2d)) and ".fusion." not in name:
        is_branch_conv = isinstance(module, nn.Conv2d) and not name.startswith("head.")
        trunc_normal_(module.weight, std=0.2 if is_branch_conv else 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _create_hifuse(variant: str, pretrained: bool = False, **kwargs) -> HiFuse:
    if isinstance(kwargs.get("pretrained_cfg"), str):
        check_tag(variant, kwargs["pretrained_cfg"])
    if kwargs.get("branches") == "local":
        overlay = kwargs.get("pretrained_cfg_overlay") or {}
        kwargs["pretrained_cfg_overlay"] = dict(first_conv="local_stem.0") | overlay
    if pretrained:
        kwargs = resolve_weights(variant, **kwargs)
    model = build_model_with_cfg(
        HiFuse,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        # the three maps of a stage travel together, so features come from forward_intermediates, not from a Sequential
        feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls="getter"),
        **kwargs,
    )
    for module in model.modules():  # timm keeps the weights that it was handed, and with features_only twice
        if hasattr(module, "pretrained_cfg"):
            module.pretrained_cfg.pop("state_dict", None)
    return model


def _cfg(**kwargs) -> dict:
    return {
        "num_classes": DATASETS["isic2018"].num_classes,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": ("local_stem.0", "global_stem.0"),
        "classifier": "head.fc",
        "paper_ids": "arXiv:2209.10218",
        "paper_name": "HiFuse: Hierarchical Multi-Scale Feature Fusion Network for Medical Image Classification",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        # the first dataset is the default tag
        f"{variant}.{tag}": _cfg(
            hf_hub_id=f"{NAMESPACE}/{variant}.{tag}",
            hf_hub_filename="model.safetensors",
            num_classes=dataset.num_classes,
            license=dataset.license,
        )
        for variant in ("hifuse_tiny", "hifuse_small", "hifuse_base")
        for tag, dataset in DATASETS.items()
    }
    # the released form, for checkpoints trained with it; no weights of ours are published for it
    | {f"hifuse_{size}_dense": _cfg() for size in ("tiny", "small", "base")}
)


@register_model
def hifuse_tiny(pretrained: bool = False, **kwargs) -> HiFuse:
    """HiFuse-Tiny, two blocks in every stage (Section 3.2): 54.7 M parameters and 8.1 GMACs at 224x224."""
    return _create_hifuse("hifuse_tiny", pretrained, **dict(dict(depths=(2, 2, 2, 2)), **kwargs))


@register_model
def hifuse_small(pretrained: bool = False, **kwargs) -> HiFuse:
    """HiFuse-Small, six blocks in the third stage (Section 3.2): 58.3 M parameters and 8.8 GMACs at 224x224."""
    return _create_hifuse("hifuse_small", pretrained, **dict(dict(depths=(2, 2, 6, 2)), **kwargs))


@register_model
def hifuse_base(pretrained: bool = False, **kwargs) -> HiFuse:
    """HiFuse-Base, 18 blocks in the third stage (Section 3.2): 69.0 M parameters and 10.9 GMACs at 224x224."""
    return _create_hifuse("hifuse_base", pretrained, **dict(dict(depths=(2, 2, 18, 2)), **kwargs))


@register_model
def hifuse_tiny_dense(pretrained: bool = False, **kwargs) -> HiFuse:
    """HiFuse-Tiny as released, the IRMLP's 3x3 mixing channels: 118.1 M parameters and 17.4 GMACs at 224x224."""
    return _create_hifuse("hifuse_tiny_dense", pretrained, **dict(dict(depths=(2, 2, 2, 2), dense=True), **kwargs))


@register_model
def hifuse_small_dense(pretrained: bool = False, **kwargs) -> HiFuse:
    """HiFuse-Small as released, the IRMLP's 3x3 mixing channels: 121.7 M parameters and 18.1 GMACs at 224x224."""
    return _create_hifuse("hifuse_small_dense", pretrained, **dict(dict(depths=(2, 2, 6, 2), dense=True), **kwargs))


@register_model
def hifuse_base_dense(pretrained: bool = False, **kwargs) -> HiFuse:
    """HiFuse-Base as released, the IRMLP's 3x3 mixing channels: 132.4 M parameters and 20.2 GMACs at 224x224."""
    return _create_hifuse("hifuse_base_dense", pretrained, **dict(dict(depths=(2, 2, 18, 2), dense=True), **kwargs))
