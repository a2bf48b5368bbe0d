"""Runs a network on an image of any size in overlapping tiles, with memory for one row of tiles."""

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

FLOOR = 1e-3  # the taper stays above 0, so that every output pixel has a positive total weight

Fields = dict[str, Tensor]
"""Images and maps of one resolution by name, each (1, C, H, W)."""


class Sliceable(Protocol):
    """A tensor, or what gives parts of one on demand."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(1, C, H, W)."""

    def __getitem__(self, index: tuple[slice, ...], /) -> Tensor: ...


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Starts of the tiles along one side: neighbours share at least `overlap`, and the last tile ends at the edge."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def count_tiles(height: int, width: int, tile: int, overlap: int) -> int:
    """How many tiles `blend` cuts an image into."""
    return len(starts(height, tile, overlap)) * len(starts(width, tile, overlap))


def taper(length: int, overlap: int) -> Tensor:
    """(length,) weights that rise from `FLOOR` to 1 over `overlap` at both ends."""
    ramp = ((torch.arange(length) + 0.5) / max(overlap, 1)).clamp(FLOOR, 1)
    return torch.minimum(ramp, ramp.flip(0))


def blend(
    inputs: Mapping[str, Sliceable], run: Callable[[Fields, int, int], Fields], *, scale: int, tile: int, overlap: int
) -> Iterator[tuple[int, Fields]]:
    """Calls `run(part, top, left)` on the tiles of `inputs`, which share one LR size, and blends its results.

    `part` holds the inputs' tiles at (top, left); `run` returns fields of `scale` times their size. Yields (first HR
    row, band) from top to bottom: a band ends where the next row of tiles starts.
    """
    height, width = next(iter(inputs.values())).shape[2:]
    rows, columns = starts(height, tile, overlap), starts(width, tile, overlap)
    sums: Fields = {}
    tapers = torch.zeros(1, 1, min(tile, height) * scale, width * scale)  # total weights: `sums` is divided by them
    for i, top in enumerate(rows):
        for left in columns:
            # one tile
            part = {name: x[:, :, top : top + tile, left : left + tile] for name, x in inputs.items()}
            part_height, part_width = next(iter(part.values())).shape[2:]
            edge = _edge_taper(part_height, top, height, overlap, scale)[:, None]
            edge = edge * _edge_taper(part_width, left, width, overlap, scale)[None]
            # add it to the band
            span = slice(left * scale, (left + part_width) * scale)
            for name, out in run(part, top, left).items():
                if name not in sums:
                    sums[name] = torch.zeros(1, out.shape[1], *tapers.shape[2:])
                sums[name][..., span] += out.float().cpu() * edge
            tapers[..., span] += edge
        # finished rows, which no later tile reaches
        following = rows[i + 1] if i + 1 < len(rows) else height
        done = (following - top) * scale
        yield top * scale, {name: x[:, :, :done] / tapers[:, :, :done] for name, x in sums.items()}
        sums, tapers = {name: _scroll(x, done) for name, x in sums.items()}, _scroll(tapers, done)


def join(bands: list[Fields]) -> Fields:
    """Bands from top to bottom -> fields of the whole image."""
    return {name: torch.cat([band[name] for band in bands], dim=2) for name in bands[0]}


def _edge_taper(size: int, start: int, length: int, overlap: int, scale: int) -> Tensor:
    """The taper of a tile along one axis, at full weight where the tile touches the image's edge."""
    ramp = taper(size * scale, overlap * scale)
    half = len(ramp) // 2
    if start == 0:
        ramp[:half] = 1
    if start + size >= length:
        ramp[half:] = 1
    return ramp


def _scroll(band: Tensor, rows: int) -> Tensor:
    """Drops the first `rows` and appends as many zeros."""
    return torch.cat([band[:, :, rows:], torch.zeros_like(band[:, :, :rows])], dim=2)
