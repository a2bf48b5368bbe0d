"""Training patches. A sample depends on its number and the seed alone, not on the process or the time."""

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
    """An endless sequence of patches of the images in an LMDB.

    Sample `i` is image `i % len` in the order of epoch `i // len`. Raises `DataError` for a missing or broken LMDB.
    """

    def __init__(self, lmdb_path: str | Path, patch: int, seed: int) -> None:
        self.reader = Reader(lmdb_path)
        self.patch = patch
        self.seed = seed

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, sample: int) -> Tensor:
        """(3, patch, patch) uint8: a random window of the image, randomly flipped and transposed.

        An image smaller than the patch is padded by reflection. Raises `ImageError` for an unreadable image.
        """
        epoch, number = divmod(sample, len(self))
        rng = np.random.default_rng((self.seed, 1, sample))

        def window(height: int, width: int) -> tuple[slice, slice]:
            y, x = (int(rng.integers(max(side - self.patch, 0) + 1)) for side in (height, width))
            return slice(y, y + self.patch), slice(x, x + self.patch)

        image = self.reader.read(int(_epoch_order(self.seed, epoch, len(self))[number]), window)
        if min(image.shape[:2]) < self.patch:
            planes = torch.from_numpy(image).permute(2, 0, 1)[None]
            image = images.pad_to(planes, self.patch, self.patch)[0].permute(1, 2, 0).numpy()
        return torch.from_numpy(_augment(image, *rng.integers(2, size=3)))


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """(length,) image numbers in the epoch's random order."""
    return np.random.default_rng((seed, 0, epoch)).permutation(length)


def _augment(image: np.ndarray, mirror: int, flip: int, transpose: int) -> np.ndarray:
    """(H, W, 3) -> (3, H, W) under one of the eight symmetries of the square."""
    if mirror or flip:  # OpenCV: numpy takes ten times as long to reverse rows of 3-byte pixels
        image = cv2.flip(image, -1 if mirror and flip else 1 if mirror else 0)
    return np.stack(cv2.split(cv2.transpose(image) if transpose else image))


@dataclass(frozen=True)
class StepBatches:
    """A `batch_sampler` that can start at any step: the sample numbers of one process, a list per micro-batch."""

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
    """Sample numbers that process `rank` of `world` reads for the optimizer steps `start` to `stop - 1`.

    Step `s` owns samples `s * batch` to `s * batch + batch - 1`. Each process takes consecutive ones, in micro-batches.
    Raises `DataError` where `batch` is not a multiple of `micro_batch * world`.
    """
    if batch % (micro_batch * world):
        raise DataError(f"batch {batch} is not a multiple of micro_batch {micro_batch} × {world} processes: change one")
    return StepBatches(start, stop, batch, micro_batch, rank, world)
