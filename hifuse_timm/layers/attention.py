"""Attention within shifted windows: mask, windows, fused."""

import torch
import torch.nn.functional as F
from timm.layers import use_fused_attn
from timm.models.swin_transformer import WindowAttention

from .linear import Linear, make_linear

__all__ = ["FusedWindowAttention", "attend", "fit_window_mask", "make_window_mask"]


def make_window_mask(
    num_rows: int, num_cols: int, window_size: int, shift_size: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Mask for the windows of a shifted map: -inf where two positions come from different regions of the map, else 0.

    Swin and the released network add -100 instead. In float32 that leaves such pairs less than 1e-43 of the attention,
    the same outputs, but in denormal numbers, on which a CPU's matrix products run up to ten times slower.

    Args:
        num_rows: Windows from top to bottom.
        num_cols: Windows from left to right.

    Returns:
        Mask to add to the attention logits, (num_rows, num_cols, N, N) with N = window_size**2.
    """
    # the map splits at its last window and at its last shift_size rows: regions 0, 1, 2, and the same for columns
    rows = torch.arange(num_rows * window_size, device=device) - (num_rows - 1) * window_size
    cols = torch.arange(num_cols * window_size, device=device) - (num_cols - 1) * window_size
    border = window_size - shift_size
    row_region = (rows >= 0).int() + (rows >= border).int()
    col_region = (cols >= 0).int() + (cols >= border).int()
    region = (3 * row_region.unsqueeze(1) + col_region).view(num_rows, window_size, num_cols, window_size)
    region = region.transpose(1, 2).flatten(2)  # num_rows num_cols N
    different = region.unsqueeze(2) != region.unsqueeze(3)
    return torch.zeros(different.shape, device=device, dtype=dtype).masked_fill(different, -torch.inf)


@torch.fx.wrap
def fit_window_mask(mask: torch.Tensor, height: int, width: int, window_size: int, shift_size: int) -> torch.Tensor:
    """The given mask where it fits a map of height x width, else a new one of its kind, made on its device."""
    num_rows, num_cols = height // window_size, width // window_size
    if mask.shape[0] != num_rows or mask.shape[1] != num_cols:
        mask = make_window_mask(num_rows, num_cols, window_size, shift_size, mask.device, mask.dtype)
    return mask


@torch.fx.wrap
def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    fused: bool,
) -> torch.Tensor:
    """Scaled dot-product attention within windows.

    Args:
        q: Queries, (B*num_windows, num_heads, N, D); k and v, keys and values, likewise.
        bias: Relative position bias, (1, num_heads, N, N).
        mask: Mask to add beside it, (num_windows, N, N), None where no windows are shifted.
        dropout: Dropout rate of the attention weights.
        fused: Whether to call PyTorch's fused attention, with bias and mask in one.

    Returns:
        Attended values, (B*num_windows, num_heads, N, D).
    """
    if mask is not None:
        bias = (bias + mask.unsqueeze(1)).repeat(q.shape[0] // mask.shape[0], 1, 1, 1)  # B*num_windows num_heads N N
    # the fused attention of CPUs has no gradient for the bias: PyTorch then takes a way twice as slow as this one
    if fused and not (bias.requires_grad and bias.is_cpu):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    attn = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
    return F.dropout(attn.softmax(dim=-1), dropout) @ v


class FusedWindowAttention(WindowAttention):
    """timm's window attention, by default through PyTorch's fused attention, where it is faster."""

    fused_attn: torch.jit.Final[bool]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.qkv = make_linear(self.qkv.weight, self.qkv.bias, Linear)
        self.proj = make_linear(self.proj.weight, self.proj.bias, Linear)
        self.fused_attn = use_fused_attn()

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            x: Windows, (B*num_windows, N, C).
            mask: Mask to add to the attention logits, (num_windows, N, N), None for windows that are not shifted.

        Returns:
            Attended windows, (B*num_windows, N, C).
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # B*num_windows num_heads N D
        dropout = self.attn_drop.p if self.training else 0.0
        x = attend(q, k, v, self._get_rel_pos_bias(), mask, dropout, self.fused_attn)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))
