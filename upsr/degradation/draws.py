"""Random draws for the degradation of a batch; they do not depend on how the batch is split."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Range = tuple[float, float]


class Draws:
    """Random draws for the samples `first` to `first + count - 1` of the global batch that `seed` identifies.

    Values shared by the batch are drawn from `seed` alone, a sample's own from `seed` and its number. So a sample's
    draws do not depend on the process or on the other samples.
    """

    def __init__(self, seed: Sequence[int], first: int, count: int, device: torch.device) -> None:
        self.batch = np.random.default_rng(np.random.SeedSequence(seed))
        self.samples = [sample_generator(seed, i) for i in range(first, first + count)]
        self.fields = [torch.Generator(device).manual_seed(int(rng.integers(2**63))) for rng in self.samples]
        self.device = device
        self.notes: dict[str, Any] = {}
        """What was drawn, by name: one value, or a list with one value per sample."""

    def uniform(self, name: str, bounds: Range) -> Tensor:
        """One number per sample, uniform within `bounds`: (B,) float32 on the device."""
        values = [rng.uniform(*bounds) for rng in self.samples]
        self.notes[name] = values
        return self.send(np.array(values, np.float32))

    def chance(self, name: str, probability: float) -> list[bool]:
        """One flag per sample, true with that probability. Kept on the host, where it decides what is computed."""
        flags = [bool(rng.random() < probability) for rng in self.samples]
        self.notes[name] = flags
        return flags

    def of_sample(self, number: int) -> dict[str, Any]:
        """The notes of one sample."""
        return {name: value[number] if isinstance(value, list) else value for name, value in self.notes.items()}

    def send(self, values: np.ndarray) -> Tensor:
        """Copies an array to the device without waiting for it."""
        return torch.from_numpy(values).to(self.device, non_blocking=True)


def sample_generator(seed: Sequence[int], number: int) -> np.random.Generator:
    """The generator of sample `number` of a global batch; a spawn key cannot collide with a longer seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
