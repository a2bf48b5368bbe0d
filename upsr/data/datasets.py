"""Training patches. What a sample is depends on its number and the seed alone, not on who asks, or when."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from upsr import images
from upsr.data.lmdb_store import Reader
from upsr.files import DataError


class PatchDataset(Dataset[Tensor]):
    """Patches of the pictures in an LMDB, without end: sample `i` is picture `i % len` of epoch `i // len`'s order."""

    def __init__(self, lmdb_path: str | Path, patch: int, seed: int) -> None:
        self.reader = Reader(lmdb_path)
        self.patch = patch
        self.seed = seed

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, sample: int) -> Tensor:
        """(3, patch, patch) uint8: a random place of the picture, flipped and transposed at random.

        A picture smaller than the patch is continued by reflection.
        """
        epoch, place = divmod(sample, len(self))
        rng = np.random.default_rng((self.seed, 1, sample))

        def window(height: int, width: int) -> tuple[slice, slice]:
            y, x = (int(rng.integers(max(side - self.patch, 0) + 1)) for side in (height, width))
            return slice(y, y + self.patch), slice(x, x + self.patch)

        picture = self.reader.read(int(_order(self.seed, epoch, len(self))[place]), window)
        if min(picture.shape[:2]) < self.patch:
            planes = torch.from_numpy(picture).permute(2, 0, 1)[None]
            picture = images.pad_to(planes, self.patch, self.patch)[0].permute(1, 2, 0).numpy()
        return torch.from_numpy(_turn(picture, *rng.integers(2, size=3)))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, length: int) -> np.ndarray:
    """The epoch's order of the pictures."""
    return np.random.default_rng((seed, 0, epoch)).permutation(length)


def _turn(picture: np.ndarray, mirror: int, flip: int, transpose: int) -> np.ndarray:
    """(H, W, 3) -> (3, H, W), turned by one of the eight symmetries of the square."""
    if mirror or flip:  # OpenCV: numpy needs ten times as long to copy rows of three bytes backwards
        picture = cv2.flip(picture, -1 if mirror and flip else 1 if mirror else 0)
    return np.stack(cv2.split(cv2.transpose(picture) if transpose else picture))


@dataclass(frozen=True)
class StepBatches:
    """The sample numbers of one process, micro-batch by micro-batch: a `batch_sampler` that starts at any step."""

    start: int
    stop: int
    batch: int
    micro_batch: int
    rank: int
    world: int

    def __len__(self) -> int:
        return (self.stop - self.start) * (self.batch // self.world // self.micro_batch)

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch // self.world
        for step in range(self.start, self.stop):
            first = step * self.batch + self.rank * share
            for sample in range(first, first + share, self.micro_batch):
                yield list(range(sample, sample + self.micro_batch))


def step_batches(start: int, stop: int, batch: int, micro_batch: int, rank: int = 0, world: int = 1) -> StepBatches:
    """What process `rank` of `world` reads for the optimizer steps `start` to `stop - 1`.

    Step `s` owns samples `s * batch` to `s * batch + batch - 1`; each process takes a run of them, in micro-batches.
    Raises `DataError` where that does not come out even.
    """
    if batch % (micro_batch * world):
        raise DataError(f"batch {batch} is not a multiple of micro_batch {micro_batch} × {world} processes: change one")
    return StepBatches(start, stop, batch, micro_batch, rank, world)
