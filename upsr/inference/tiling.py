"""Any picture through a network in overlapping tiles, with memory for one row of tiles."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

FLOOR = 1e-3  # the taper never reaches 0: every output pixel has a tile that counts


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin: `overlap` apart from their neighbours at least, the last one flush with the edge."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def taper(length: int, overlap: int) -> Tensor:
    """(length,) Rises from the floor to 1 over `overlap` at both ends."""
    ramp = ((torch.arange(length) + 0.5) / max(overlap, 1)).clamp(FLOOR, 1)
    return torch.minimum(ramp, ramp.flip(0))


def blend(
    lr: Tensor, run: Callable[[Tensor, int, int], Tensor], *, scale: int, tile: int, overlap: int
) -> Iterator[tuple[int, Tensor]]:
    """Runs `run(part, top, left) -> (1, C, s·h, s·w)` over tiles of lr (1, 3, H, W) and joins what they give.

    Yields bands (1, C, rows, s·W) from top to bottom with the HR row that each begins at: a band is complete as
    soon as the next row of tiles starts below it.
    """
    height, width = lr.shape[2:]
    rows, columns = starts(height, tile, overlap), starts(width, tile, overlap)
    total = begun = None
    for i, top in enumerate(rows):
        part_height = min(tile, height)
        for left in columns:
            part = lr[:, :, top : top + tile, left : left + tile]
            out = run(part, top, left).float().cpu()
            if total is None:
                total = torch.zeros(1, out.shape[1], part_height * scale, width * scale)
                begun = torch.zeros(1, 1, part_height * scale, width * scale)
            assert begun is not None
            edge = _edge_taper(part.shape[2], top, height, overlap, scale)[:, None]
            edge = edge * _edge_taper(part.shape[3], left, width, overlap, scale)[None]
            span = slice(left * scale, (left + part.shape[3]) * scale)
            total[..., span] += out * edge
            begun[..., span] += edge
        assert total is not None and begun is not None
        following = rows[i + 1] if i + 1 < len(rows) else height
        done = (following - top) * scale
        yield top * scale, total[:, :, :done] / begun[:, :, :done]
        total, begun = _scroll(total, done), _scroll(begun, done)


def _edge_taper(size: int, start: int, length: int, overlap: int, scale: int) -> Tensor:
    """The taper of a tile along one axis, at full weight where the tile touches the picture's edge."""
    ramp = taper(size * scale, overlap * scale)
    half = len(ramp) // 2
    if start == 0:
        ramp[:half] = 1
    if start + size >= length:
        ramp[half:] = 1
    return ramp


def _scroll(band: Tensor, rows: int) -> Tensor:
    """Drops the first rows and appends as many of zeros."""
    return torch.cat([band[:, :, rows:], torch.zeros_like(band[:, :, :rows])], dim=2)
