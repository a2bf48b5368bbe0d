"""Runs a network on an image of any size in overlapping tiles, with memory for one row of tiles."""

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

FLOOR = 1e-3  # the taper stays above 0, so that every output pixel has a positive total weight

Fields = dict[str, Tensor]
"""Images and maps of one resolution by name, each (B, C, H, W)."""


class Sliceable(Protocol):
    """A tensor, or what gives parts of one on demand."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(1, C, H, W)."""

    def __getitem__(self, index: tuple[slice, ...], /) -> Tensor: ...


def cuts(length: int, tile: int, overlap: int, multiple: int = 1) -> list[slice]:
    """The tiles along one side: as few as fit, all of one size, from edge to edge.

    Neighbours share at least `overlap`. The size is at most `tile`; up to it, a multiple of `multiple`, to which a
    network would pad a tile otherwise.
    """
    count = max(1, -(-(length - overlap) // (tile - overlap)))
    side = -(-(length + (count - 1) * overlap) // count)
    side = min(-(-side // multiple) * multiple, tile, length)
    starts = [i * (length - side) // max(count - 1, 1) for i in range(count)]
    return [slice(start, start + side) for start in starts]


def taper(length: int, overlap: int) -> Tensor:
    """(length,) weights that rise from `FLOOR` to 1 over `overlap` at both ends."""
    ramp = ((torch.arange(length) + 0.5) / max(overlap, 1)).clamp(FLOOR, 1)
    return torch.minimum(ramp, ramp.flip(0))


def blend(
    inputs: Mapping[str, Sliceable],
    run: Callable[[Fields, int, list[int]], Fields],
    *,
    rows: list[slice],
    columns: list[slice],
    overlap: int,
    scale: int,
    together: int = 1,
) -> Iterator[tuple[int, Fields]]:
    """Calls `run(part, top, lefts)` on the tiles of `inputs`, which share one LR size, and blends its results.

    `rows` and `columns` are `cuts` with this `overlap`. `part` holds a batch of the inputs' tiles, those at
    (top, left) for each of `lefts`, at most `together`; `run` returns fields of `scale` times their size. Yields
    (first HR row, band) from top to bottom: a band ends where the next row of tiles starts.
    """
    height, width = next(iter(inputs.values())).shape[2:]
    sums: Fields = {}
    # total weights: `sums` is divided by them
    tapers = torch.zeros(1, 1, (rows[0].stop - rows[0].start) * scale, width * scale)
    for number, row in enumerate(rows):
        for first in range(0, len(columns), together):
            # the tiles
            batch = columns[first : first + together]
            part = {name: torch.cat([x[:, :, row, column] for column in batch]) for name, x in inputs.items()}
            results = run(part, row.start, [column.start for column in batch])
            # add them to the band
            for tile, column in enumerate(batch):
                edge = _edge_taper(row, height, overlap, scale)[:, None] * _edge_taper(column, width, overlap, scale)
                span = slice(column.start * scale, column.stop * scale)
                for name, out in results.items():
                    if name not in sums:
                        sums[name] = torch.zeros(1, out.shape[1], *tapers.shape[2:])
                    sums[name][..., span] += out[tile].float().cpu() * edge
                tapers[..., span] += edge
        # finished rows, which no later tile reaches
        following = rows[number + 1].start if number + 1 < len(rows) else height
        done = (following - row.start) * scale
        yield row.start * scale, {name: x[:, :, :done] / tapers[:, :, :done] for name, x in sums.items()}
        sums, tapers = {name: _scroll(x, done) for name, x in sums.items()}, _scroll(tapers, done)


def join(bands: list[Fields]) -> Fields:
    """Bands from top to bottom -> fields of the whole image."""
    return {name: torch.cat([band[name] for band in bands], dim=2) for name in bands[0]}


def _edge_taper(cut: slice, length: int, overlap: int, scale: int) -> Tensor:
    """The taper of a tile along one axis, at full weight where the tile touches the image's edge."""
    ramp = taper((cut.stop - cut.start) * scale, overlap * scale)
    half = len(ramp) // 2
    if cut.start == 0:
        ramp[:half] = 1
    if cut.stop == length:
        ramp[half:] = 1
    return ramp


def _scroll(band: Tensor, rows: int) -> Tensor:
    """Drops the first `rows` and appends as many zeros."""
    return torch.cat([band[:, :, rows:], torch.zeros_like(band[:, :, :rows])], dim=2)
