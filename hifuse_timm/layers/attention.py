"""Attention within shifted windows: mask, shift, padding, windows, fused."""

import torch
import torch.nn.functional as F
from timm.layers import use_fused_attn
from timm.models.swin_transformer import WindowAttention
from torch.utils.weak import WeakTensorKeyDictionary

from . import onednn
from .linear import linear_act
from .maps import pad_tokens

__all__ = [
    "ShiftedWindowAttention",
    "attend",
    "fit_window_mask",
    "make_window_mask",
    "repeat_bias",
    "window_partition",
    "window_reverse",
]

torch.fx.wrap("pad_tokens")  # by its name in this module, where it is called

# a table of relative position bias: the tensors that bias and mask were, with their versions, and the two added up
_kept_biases = WeakTensorKeyDictionary()


def make_window_mask(
    num_rows: int, num_cols: int, window_size: int, shift_size: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Mask for the windows of a shifted map: -inf where two tokens come from different regions of the map, else 0.

    Swin and the released network add -100 instead. In float32 that leaves such pairs less than 1e-43 of the attention,
    the same outputs, but in denormal numbers, on which a CPU's matrix products run up to ten times slower.

    Args:
        num_rows: Windows from top to bottom.
        num_cols: Windows from left to right.
        window_size: Tokens a side of a window.
        shift_size: Tokens by which the windows are shifted up and left.

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
def window_partition(
    x: torch.Tensor, height: int, width: int, window_size: int, shift_size: int, order: torch.Tensor | None = None
) -> torch.Tensor:
    """Shift a map up and left and cut it into windows.

    Args:
        x: Tokens of a map of height x width, (B, H*W, C).
        height: Tokens from top to bottom, a multiple of window_size.
        width: Tokens from left to right, a multiple of window_size.
        window_size: Tokens a side of a window.
        shift_size: Tokens by which the map is shifted.
        order: Where each token of the windows stands in a map, (H', W'), for which there is then one copy instead of
            three; None for no such order.

    Returns:
        Windows, (B*num_windows, N, C) with N = window_size**2.
    """
    area = window_size * window_size
    if not torch.jit.is_scripting():
        if _gathers(x, order, height, width):
            return x.index_select(1, order.flatten()).view(-1, area, x.shape[2])
    if shift_size > 0:
        x = torch.roll(x.view(-1, height, width, 1, x.shape[2]), shifts=(-shift_size, -shift_size), dims=(1, 2))
    num_rows, num_cols = height // window_size, width // window_size
    windows = x.view(-1, num_rows, window_size, num_cols, window_size * x.shape[-1]).transpose(2, 3)
    return windows.reshape(-1, area, x.shape[-1])


@torch.fx.wrap
def window_reverse(
    windows: torch.Tensor, height: int, width: int, window_size: int, shift_size: int, order: torch.Tensor | None = None
) -> torch.Tensor:
    """Put the windows of a map together, shift it back and cut off what it was padded with.

    Args:
        windows: Windows, (B*num_windows, N, C) with N = window_size**2.
        height: Tokens from top to bottom, without padding.
        width: Tokens from left to right, without padding.
        window_size: Tokens a side of a window.
        shift_size: Tokens by which the map was shifted up and left.
        order: Where each token of a map, (H', W'), stands in the windows, None for no such order.

    Returns:
        Tokens of the map, (B, H*W, C).
    """
    # not -(-height // window_size), which ONNX, traced, rounds the other way
    num_rows, num_cols = (height + window_size - 1) // window_size, (width + window_size - 1) // window_size
    dim = windows.shape[2]
    if not torch.jit.is_scripting():
        if _gathers(windows, order, height, width):
            return windows.view(-1, num_rows * num_cols * windows.shape[1], dim).index_select(1, order.flatten())
    x = windows.view(-1, num_rows, num_cols, window_size, window_size * dim).transpose(2, 3)
    x = x.reshape(-1, num_rows * window_size, num_cols * window_size, 1, dim)
    if shift_size > 0:
        x = torch.roll(x, shifts=(shift_size, shift_size), dims=(1, 2))
    return x[:, :height, :width].reshape(-1, height * width, dim)


def _gathers(x: torch.Tensor, order: torch.Tensor | None, height: int, width: int) -> bool:
    """Whether tokens are gathered in an order: not for gradients, which would be scattered, and not by compilers."""
    return order is not None and order.shape == (height, width) and not (x.requires_grad or onednn.is_traced())


@torch.fx.wrap
def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, dropout: float) -> torch.Tensor:
    """Scaled dot-product attention by PyTorch's fused call, or written out where that is faster.

    Args:
        q: Queries, (B*num_windows, num_heads, N, D); k and v, keys and values, likewise.
        bias: Bias of the attention logits, mask and all, (1 or B*num_windows, num_heads, N, N).
        dropout: Dropout rate of the attention weights.

    Returns:
        Attended values, (B*num_windows, num_heads, N, D).
    """
    # the fused attention of CPUs has no gradient for the bias, for which PyTorch takes a way twice as slow as this one,
    # and none of higher order. torch.jit.trace runs once with gradients and once without, and must take the same way
    is_differentiated = q.requires_grad or bias.requires_grad
    if not torch.jit.is_scripting():
        is_differentiated = (is_differentiated and not torch.jit.is_tracing()) or onednn.is_transformed()
    if q.is_cpu and is_differentiated:
        attn = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
        return F.dropout(attn.softmax(dim=-1), dropout) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


@torch.fx.wrap
def repeat_bias(bias: torch.Tensor, num_windows: int) -> torch.Tensor:
    """Bias of the windows of a map, for the windows of all maps; as it is where it is one for any window."""
    return bias if bias.shape[0] == 1 else bias.repeat(num_windows // bias.shape[0], 1, 1, 1)


def _can_be_kept(*sources: torch.Tensor) -> bool:
    """Whether what is made of these tensors may be kept: they change only where it is counted, and nobody traces it."""
    return not onednn.is_traced() and all(
        onednn.is_plain_tensor(x) and not x.requires_grad and not x.is_inference() for x in sources
    )


def _version(x: torch.Tensor) -> tuple:
    return x.data_ptr(), x._version, x.dtype, x.device


class ShiftedWindowAttention(WindowAttention):
    """W-MSA, or SW-MSA where it shifts (Liu et al. 2021): timm's window attention over the windows of a map.

    A map that is no multiple of the window is padded with zeros, which take part in the attention. A map that is a
    single window is shifted and masked like any other.
    """

    fused_attn: torch.jit.Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        shift_size: int = 0,
        map_size: tuple[int, int] = (56, 56),
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
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
            proj_drop: Dropout rate after the projection.
        """
        super().__init__(
            dim,
            num_heads,
            window_size=window_size,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            device=device,
            dtype=dtype,
        )
        self.fused_attn = use_fused_attn()
        self.shift_size = shift_size
        self.map_size = tuple(map_size)
        for name in ("attn_mask", "window_order", "token_order"):
            self.register_buffer(name, None, persistent=False)
        self._init_shift()

    @torch.jit.ignore
    def init_non_persistent_buffers(self) -> None:
        """Make the buffers anew; timm calls this after it moved a network off the meta device."""
        super().init_non_persistent_buffers()
        self._init_shift()

    def _init_shift(self) -> None:
        if self.shift_size == 0:
            return
        weight, size = self.qkv.weight, self.window_size[0]
        num_rows, num_cols = (-(-tokens // size) for tokens in self.map_size)
        self.attn_mask = make_window_mask(num_rows, num_cols, size, self.shift_size, weight.device, weight.dtype)
        tokens = torch.arange(num_rows * num_cols * size**2, device=weight.device).view(1, -1, 1)
        shape = num_rows * size, num_cols * size
        self.window_order = window_partition(tokens, *shape, size, self.shift_size).view(shape)
        self.token_order = window_reverse(tokens.view(-1, size**2, 1), *self.map_size, size, self.shift_size)
        self.token_order = self.token_order.view(self.map_size)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """x: tokens of a map of height x width, (B, H*W, C), and so is the result."""
        size, shift = self.window_size[0], self.shift_size
        x = pad_tokens(x.view(-1, height, width, 1, self.dim), size)
        padded_height, padded_width = x.shape[1], x.shape[2]
        mask = self.attn_mask
        if mask is not None:
            mask = fit_window_mask(mask, padded_height, padded_width, size, shift)
        x = window_partition(x.flatten(1, 3), padded_height, padded_width, size, shift, self.window_order)
        return window_reverse(self.attend_windows(x, mask), height, width, size, shift, self.token_order)

    def attend_windows(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Attention within each window.

        Args:
            x: Windows, (B*num_windows, N, C).
            mask: Mask to add to the attention logits, (rows, columns, N, N) for the windows of a map, None for windows
                that are not shifted.

        Returns:
            Attended windows, (B*num_windows, N, C).
        """
        qkv = self.qkv(x) if torch.jit.is_scripting() else linear_act(x, self.qkv)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.make_bias(mask) if torch.jit.is_scripting() else self.keep_bias(mask)
        bias = repeat_bias(bias, x.shape[0])
        if self.fused_attn:
            x = attend(q, k, v, bias, self.attn_drop.p if self.training else 0.0)
        else:
            x = self.attn_drop(self.softmax((q * self.scale) @ k.transpose(-2, -1) + bias)) @ v
        x = x.transpose(1, 2).flatten(2)
        x = self.proj(x) if torch.jit.is_scripting() else linear_act(x, self.proj)
        return self.proj_drop(x)

    def make_bias(self, mask: torch.Tensor | None) -> torch.Tensor:
        """Relative position bias and mask, if any, added up: (1 or num_windows, num_heads, N, N)."""
        bias = self._get_rel_pos_bias()  # 1 num_heads N N
        return bias if mask is None else bias + mask.flatten(0, 1).unsqueeze(1)

    def keep_bias(self, mask: torch.Tensor | None) -> torch.Tensor:
        """make_bias(), made once and again after each change where the table of the bias requires no gradient.

        Optimizers change tables that do, some without counting it. As with packed weights, what PyTorch cannot see is a
        change through memory shared with NumPy.
        """
        table = self.relative_position_bias_table
        sources = [table] if mask is None else [table, mask]
        if mask is not self.attn_mask or not _can_be_kept(*sources):
            return self.make_bias(mask)
        _, versions, bias = _kept_biases.get(table, (None, None, None))
        if versions != [_version(source) for source in sources]:
            with torch.inference_mode(False), torch.no_grad():
                bias = self.make_bias(mask)
            # what is captured for a CUDA graph has its values when the graph is run
            is_captured = bias.is_cuda and torch.cuda.is_current_stream_capturing()
            if onednn.is_plain_tensor(bias) and not is_captured:
                # the memory of before stays taken, so that none that `.data` brings can have its address
                was, versions = [source.detach() for source in sources], [_version(source) for source in sources]
                _kept_biases[table] = (was, versions, bias)
        return bias
