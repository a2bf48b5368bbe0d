"""Window attention, shared by ATD and the Swin UNet: cut and join, relative positions, masks."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MASKED = -100.0  # added to a masked logit (official value); finite, so that a fully masked row stays defined


class Cut(NamedTuple):
    """How a map is cut into windows. Those that need a mask come last, so that the others are spared it."""

    order: Tensor
    """(windows · window²,): the pixel at each position of the windows; padding, which is masked, repeats the edge."""
    back: Tensor
    """(H · W,): the position of each pixel."""
    mask: Tensor | None
    """(masked windows, 1, window², window²) to add to the logits, or None where no window has a mask."""


def relative_position_index(window: int) -> Tensor:
    """(window², window²): for each pair of positions in a window, the bias table's row for their offset (dy, dx)."""
    y, x = np.divmod(np.arange(window**2), window)  # by numpy: torch imports its compiler to subtract on `meta`
    dy = y[:, None] - y[None] + window - 1
    dx = x[:, None] - x[None] + window - 1
    return torch.from_numpy(dy * (2 * window - 1) + dx)


def cut(height: int, width: int, window: int, shift: int, device: torch.device, official: bool = False) -> Cut:
    """The windows of a height × width map, padded to whole windows and rolled by `shift` (see `attention_mask`)."""
    if isinstance(height, torch.SymInt):
        return _symbolic_cut(height, width, window, shift, device, official)
    make = _cut.__wrapped__ if torch.compiler.is_compiling() else _cut  # the compiler does not see through a cache
    return make(height, width, window, shift, device, official)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # a training may use what a validation has cached
def _cut(height: int, width: int, window: int, shift: int, device: torch.device, official: bool) -> Cut:
    rows, columns = (-(-size // window) for size in (height, width))
    free_rows, free_columns = (max((size - shift) // window, 0) for size in (height, width))  # no seam, no padding

    def masked_last(windows: Tensor) -> Tensor:
        grid = windows.unflatten(0, (rows, columns))
        parts = grid[:free_rows, :free_columns], grid[:free_rows, free_columns:], grid[free_rows:]
        return torch.cat([part.flatten(0, 1) for part in parts])

    # pixels: of the padded map, then of the map
    padded = torch.arange(rows * columns * window**2, device=device).view(rows * window, columns * window)
    order = masked_last(partition(padded.roll((-shift, -shift), (0, 1)), window)).flatten()
    back = order.argsort().view_as(padded)[:height, :width].flatten()
    y, x = order // (columns * window), order % (columns * window)
    order = y.clamp(max=height - 1) * width + x.clamp(max=width - 1)
    # masks
    mask = attention_mask(height, width, window, shift, device, official)
    if mask is not None:
        mask = masked_last(mask)[free_rows * free_columns :].clone()
    return Cut(order, back, mask)


def _symbolic_cut(height: int, width: int, window: int, shift: int, device: torch.device, official: bool) -> Cut:
    """As `_cut`, of whole windows whose number `torch.export` leaves open: so all get a mask if any does."""
    pixels = torch.arange(height * width, device=device)
    order = partition(pixels.view(height, width).roll((-shift, -shift), (0, 1)), window).flatten()
    back = torch.empty_like(order).scatter(0, order, pixels)
    return Cut(order, back, attention_mask(height, width, window, shift, device, official))


def partition(grid: Tensor, window: int) -> Tensor:
    """(H, W) -> (windows, window²), with H and W multiples of `window`."""
    rows, columns = (size // window for size in grid.shape)
    return grid.reshape(rows, window, columns, window).transpose(1, 2).reshape(-1, window**2)


def attention_mask(
    height: int, width: int, window: int, shift: int, device: torch.device, official: bool = False
) -> Tensor | None:
    """(windows, 1, window², window²) to add to the logits, or None where every position may attend to every other.

    The height × width map is padded to whole windows and rolled by `shift`. A position attends only to its own side
    of the roll's seam. The image and its padding do not attend to each other.

    `official` repeats the released UNet's mask, with which its weights were trained. It masks the seam between rows
    only, with rows and columns exchanged within each window.
    """
    if not shift and height % window == 0 and width % window == 0:
        return None
    rows, columns = _sides(height, window, shift, device), _sides(width, window, shift, device)
    seam = rows[:, None] * 3 + (0 if official else columns[None]) + torch.zeros_like(columns)[None]
    seam = partition(seam, window)
    if official:
        seam = seam.view(-1, window, window).transpose(1, 2).flatten(1)
    inside = _inside(height, window, shift, device)[:, None] & _inside(width, window, shift, device)[None]
    inside = partition(inside, window)
    apart = (seam[:, :, None] != seam[:, None]) | (inside[:, :, None] != inside[:, None])
    return MASKED * apart[:, None].float()


def _sides(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    """For each row after the roll: 0 away from the seam, 1 and 2 on its two sides."""
    whole = -(-size // window) * window
    row = torch.arange(whole, device=device)
    return (row >= whole - window).long() + (row >= whole - shift).long() if shift else torch.zeros_like(row)


def _inside(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    """For each row after the roll: whether it belongs to the image, not to its padding."""
    whole = -(-size // window) * window
    return (torch.arange(whole, device=device) < size).roll(-shift)


def attend(qkv: Tensor, heads: int, table: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
    """Multi-head attention within windows, the last of which have a `mask`: (B, windows, N, 3C) -> (B, windows, N, C).

    softmax(q kᵀ / √d + bias + mask) v; bias: the rows `index` (N, N) of `table` ((2·window−1)², heads).
    """
    scale = (qkv.shape[3] // 3 // heads) ** -0.5
    bias = table.t().index_select(1, index.flatten()).view(1, heads, *index.shape).to(qkv.dtype)
    if mask is None:
        return attend_in_groups(qkv, heads, scale, bias)
    masked_bias = bias + mask.to(qkv.dtype)
    if len(mask) == qkv.shape[1]:
        return attend_in_groups(qkv, heads, scale, masked_bias)
    free, masked = qkv.split([qkv.shape[1] - len(mask), len(mask)], 1)
    parts = attend_in_groups(free, heads, scale, bias), attend_in_groups(masked, heads, scale, masked_bias)
    return torch.cat(parts, 1)


def attend_in_groups(qkv: Tensor, heads: int, scale: float | Tensor, bias: Tensor | None = None) -> Tensor:
    """Multi-head attention: softmax(q kᵀ · scale + bias) v, (B, groups, N, 3C) -> (B, groups, N, C).

    `bias` is (groups, heads, N, N), or (1, heads, N, N) for all groups. torch's fused kernel is used without gradients
    only: on a CPU its backward pass is slow, and a bias that learns has none.
    """
    b, g, n, c3 = qkv.shape
    q, k, v = qkv.reshape(b, g, n, 3, heads, -1).permute(3, 0, 1, 4, 2, 5)
    if torch.is_grad_enabled():
        logits = (q * scale) @ k.transpose(-2, -1)
        x = (logits if bias is None else logits + bias).softmax(-1) @ v
    else:
        q, k, v = (q * scale).flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        bias = None if bias is None else bias.expand(b, g, -1, -1, -1).flatten(0, 1)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1).unflatten(0, (b, g))
    return x.transpose(2, 3).reshape(b, g, n, c3 // 3)
