"""Window attention, shared by ATD and the Swin UNet: partition, merge, relative positions, masks."""

from functools import lru_cache

import torch
from torch import Tensor

MASKED = -100.0  # added to a masked logit (official value); finite, so that a fully masked row stays defined


def partition(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B, windows, window², C), with H and W multiples of `window`."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c).transpose(2, 3)
    return x.reshape(b, -1, window * window, c)


def merge(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `partition`: -> (B, height, width, C)."""
    b, _, _, c = windows.shape
    x = windows.view(b, height // window, width // window, window, window, c).transpose(2, 3)
    return x.reshape(b, height, width, c)


def relative_position_index(window: int) -> Tensor:
    """(window², window²): for each pair of positions in a window, the bias table's row for their offset (dy, dx)."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    dy = y.flatten()[:, None] - y.flatten()[None] + window - 1
    dx = x.flatten()[:, None] - x.flatten()[None] + window - 1
    return dy * (2 * window - 1) + dx


def attention_mask(
    height: int, width: int, window: int, shift: int, device: torch.device, official: bool = False
) -> Tensor | None:
    """(windows, 1, window², window²) to add to the logits, or None where every position may attend to every other.

    The height × width map is padded to whole windows and rolled by `shift`. A position attends only to its own side
    of the roll's seam. The image and its padding do not attend to each other.

    `official` repeats the released UNet's mask, with which its weights were trained. It masks the seam between rows
    only, with rows and columns exchanged within each window.
    """
    make = _mask.__wrapped__ if torch.compiler.is_compiling() else _mask  # the compiler does not see through a cache
    return make(height, width, window, shift, device, official)


@lru_cache(maxsize=16)
def _mask(height: int, width: int, window: int, shift: int, device: torch.device, official: bool) -> Tensor | None:
    if not shift and height % window == 0 and width % window == 0:
        return None
    rows, columns = _sides(height, window, shift, device), _sides(width, window, shift, device)
    seam = _cut(rows[:, None] * 3 + (0 if official else columns[None]) + torch.zeros_like(columns)[None], window)
    if official:
        seam = seam.view(-1, window, window).transpose(1, 2).flatten(1)
    inside = _cut(_inside(height, window, shift, device)[:, None] & _inside(width, window, shift, device)[None], window)
    apart = (seam[:, :, None] != seam[:, None]) | (inside[:, :, None] != inside[:, None])
    return MASKED * apart[:, None].float()


def _cut(grid: Tensor, window: int) -> Tensor:
    """(H, W) -> (windows, window²)"""
    return partition(grid[None, :, :, None], window)[0, :, :, 0]


def _sides(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    """For each row after the roll: 0 away from the seam, 1 and 2 on its two sides."""
    whole = -(-size // window) * window
    side = torch.zeros(whole, dtype=torch.long, device=device)
    if shift:
        side[whole - window : whole - shift] = 1
        side[whole - shift :] = 2
    return side


def _inside(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    """For each row after the roll: whether it belongs to the image, not to its padding."""
    whole = -(-size // window) * window
    return (torch.arange(whole, device=device) + shift) % whole < size


def attend(qkv: Tensor, heads: int, table: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
    """Multi-head attention within windows: (B, windows, N, 3C) -> (B, windows, N, C).

    softmax(q kᵀ / √d + bias + mask) v; bias: the rows `index` (N, N) of `table` ((2·window−1)², heads).
    """
    b, w, n, c3 = qkv.shape
    q, k, v = qkv.view(b, w, n, 3, heads, c3 // 3 // heads).permute(3, 0, 1, 4, 2, 5)
    bias = table[index.flatten()].view(n, n, heads).permute(2, 0, 1)
    logits = (q * (c3 // 3 // heads) ** -0.5) @ k.transpose(-2, -1) + bias
    if mask is not None:
        logits = logits + mask
    return (logits.softmax(-1) @ v).transpose(2, 3).reshape(b, w, n, c3 // 3)
