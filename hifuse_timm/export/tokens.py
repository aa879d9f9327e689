"""A fused HiFuse on tokens alone, for runtimes that keep to the layout that a graph has.

PyTorch moves nothing between a map in channels_last memory, (B, C, H, W), and its tokens, (B, H*W, C). In a graph of
ONNX each step between the two is a transposition, and OpenVINO spends a third of its time on those of HiFuse. Here
all that is no convolution is done on tokens. Windows are gathered, shift and padding included, by one list of indices,
and bias and mask are one constant. What is computed is the same, from the same modules.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from ..hifuse import ChannelAttention, HiFuse, HiFuseStage, InvertedResidualMlp, pad_image
from ..layers.attention import ShiftedWindowAttention, fit_window_mask, window_partition

__all__ = ["on_tokens"]


def on_tokens(network: nn.Module, image_size: tuple[int, int]) -> nn.Module:
    """A network for images of one size that gives the logits of another.

    Args:
        network: A network in eval mode. A HiFuse that is fused and has all parts of the paper's is taken over to
            tokens; any other is given back as it is.
        image_size: Height and width of the images.
    """
    is_whole = isinstance(network, HiFuse) and all(
        stage.fusion is not None
        and isinstance(stage.fusion.channel_attn, ChannelAttention)
        and isinstance(stage.fusion.irmlp, InvertedResidualMlp)
        and isinstance(stage.fusion.irmlp.bn1, nn.Identity)
        for stage in network.stages
    )
    return _Network(network, image_size) if is_whole else network


class _Network(nn.Module):
    """A fused HiFuse on tokens."""

    def __init__(self, network: HiFuse, image_size: tuple[int, int]):
        super().__init__()
        self.network = network
        height, width = (-(-side // network.stride) * network.stride // 4 for side in image_size)
        self.stages = nn.ModuleList(_Stage(stage, height >> i, width >> i) for i, stage in enumerate(network.stages))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        network = self.network
        images = pad_image(images, network.in_chans, network.stride)
        local, around = (
            _layer_norm(norm, conv(images).permute(0, 2, 3, 1).flatten(1, 2))
            for conv, norm in (network.local_stem, network.global_stem)
        )
        fused = None
        for stage in self.stages:
            local, around, fused = stage(local, around, fused)
        return network.forward_head(stage.to_map(fused))


class _Stage(nn.Module):
    """A stage of a fused HiFuse on tokens, for maps of one size."""

    def __init__(self, stage: HiFuseStage, height: int, width: int):
        super().__init__()
        self.stage, self.height, self.width = stage, height, width
        self.register_buffer("quarters", torch.full((stage.dim, 1, 2, 2), 0.25))
        self.attentions = nn.ModuleList(_Attention(block.attn, height, width) for block in stage.global_blocks)

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """AvgPool2d(2) of a map, as a convolution: OpenVINO brings tokens to one without a copy."""
        return F.conv2d(x, self.quarters, stride=2, groups=x.shape[1])

    def to_map(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, H*W, C) to (B, C, H, W), of this stage or, where there are more tokens, of the one before."""
        scale = 1 if tokens.shape[1] == self.height * self.width else 2
        return tokens.unflatten(1, (scale * self.height, scale * self.width)).permute(0, 3, 1, 2)

    def convolve(self, conv: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        """A convolution of the map of some tokens."""
        return conv(self.to_map(tokens)).permute(0, 2, 3, 1).flatten(1, 2)

    def forward(
        self, local: torch.Tensor, around: torch.Tensor, fused: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Local, global and fused tokens of the stage before to those of this one."""
        stage = self.stage
        if not isinstance(stage.local_downsample, nn.Identity):
            norm, conv = stage.local_downsample
            local = self.convolve(conv, _layer_norm(norm, local))
            merging = stage.global_downsample
            around = around.unflatten(1, (self.height, 2, self.width, 2)).permute(0, 1, 3, 4, 2, 5)
            around = merging.reduction(merging.norm(around.flatten(3).flatten(1, 2)))
        for block in stage.local_blocks:
            local = local + block.act(block.fc(block.norm(self.convolve(block.conv_dw, local))))
        for block, attention in zip(stage.global_blocks, self.attentions, strict=True):
            around = around + block.act(block.fc(attention(block.norm(around))))
        return local, around, self.fuse(local, around, fused)

    def fuse(self, local: torch.Tensor, around: torch.Tensor, previous: torch.Tensor | None) -> torch.Tensor:
        """The HFF block, Eq. 5."""
        fusion = self.stage.fusion
        mlp, conv = fusion.channel_attn.mlp, fusion.spatial_attn.conv
        channels = (mlp(around.mean(dim=1)) + mlp(around.amax(dim=1))).sigmoid().unsqueeze(1)
        pooled = torch.stack([local.amax(dim=2), local.mean(dim=2)], dim=1).unflatten(2, (self.height, self.width))
        places = conv(pooled).sigmoid().flatten(2).transpose(1, 2)
        maps = [_linear_act(fusion.local_proj, local), _linear_act(fusion.global_proj, around)]
        if fusion.previous_proj is not None:
            project, _ = fusion.previous_proj
            maps.insert(0, self.convolve(self.pool, _linear_act(project, previous)))
        fused = _linear_act(fusion.fuse_proj, _layer_norm(fusion.norm, torch.cat(maps, dim=2)))
        irmlp = fusion.irmlp
        x = _layer_norm(irmlp.norm, torch.cat([around * channels, local * places, fused], dim=2))
        x = x + irmlp.act(self.convolve(irmlp.conv, x))
        x = irmlp.fc2(irmlp.act(irmlp.fc1(x)))
        return maps[0] + x if fusion.previous_proj is not None and fusion.shortcut else x


class _Attention(nn.Module):
    """Window attention over the tokens of a map of one size."""

    def __init__(self, attn: ShiftedWindowAttention, height: int, width: int):
        super().__init__()
        self.attn = attn
        size, shift = attn.window_size[0], attn.shift_size
        num_rows, num_cols = -(-height // size), -(-width // size)
        mask = attn.attn_mask
        if mask is not None:
            mask = fit_window_mask(mask, num_rows * size, num_cols * size, size, shift)
        # each token's place in the map, and behind them all a token of padding
        order = torch.full((num_rows * size, num_cols * size), height * width)
        order[:height, :width] = torch.arange(height * width).view(height, width)
        self.is_padded = order.numel() > height * width
        order = window_partition(order.view(1, -1, 1), *order.shape, size, shift).flatten()
        self.num_windows = num_rows * num_cols
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort()[: height * width])
        self.register_buffer("bias", attn.make_bias(mask).detach())  # 1 or num_windows, num_heads, N, N

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: tokens of a map, (B, H*W, C), and so is the result."""
        attn, dim = self.attn, self.attn.dim
        if self.is_padded:
            x = F.pad(x, (0, 0, 0, 1))
        heads, area = attn.num_heads, attn.window_size[0] ** 2
        windows = x.index_select(1, self.order).view(-1, area, dim)
        q, k, v = attn.qkv(windows).chunk(3, dim=-1)
        if len(self.bias) == 1:
            q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # B*num_windows heads N D
            x = self.attend(q, k, v, self.bias).transpose(1, 2)
        else:  # each window's heads are heads of their own, so that the bias, one for all images, is not repeated
            q, k, v = (
                t.reshape(-1, self.num_windows, area, heads, dim // heads).transpose(2, 3).flatten(1, 2)
                for t in (q, k, v)
            )  # B num_windows*heads N D
            x = self.attend(q, k, v, self.bias.flatten(0, 1))
            x = x.unflatten(1, (self.num_windows, heads)).transpose(2, 3)
        return attn.proj(x.reshape(-1, self.num_windows * area, dim)).index_select(1, self.back)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Attention written out, as ONNX has it."""
        return ((q * self.attn.scale) @ k.transpose(-2, -1) + bias).softmax(dim=-1) @ v


def _linear_act(layers: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return layers.act(layers.fc(tokens))


def _layer_norm(norm: nn.LayerNorm, tokens: torch.Tensor) -> torch.Tensor:
    """A LayerNorm of tokens, whether the layer is one of maps or not."""
    return F.layer_norm(tokens, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
