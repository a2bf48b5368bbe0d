"""What is random in the degradation of a batch, drawn so that it does not matter how the batch was split."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Range = tuple[float, float]


class Draws:
    """Randomness of the samples `first` to `first + count - 1` of a global batch that `seed` names.

    What a batch has in common is drawn from `seed` alone, what is a sample's own from `seed` and its number: whoever
    degrades a sample, in whatever company, draws the same for it.
    """

    def __init__(self, seed: Sequence[int], first: int, count: int, device: torch.device) -> None:
        self.batch = np.random.default_rng(np.random.SeedSequence(seed))
        self.samples = [sample_generator(seed, i) for i in range(first, first + count)]
        self.fields = [torch.Generator(device).manual_seed(int(rng.integers(2**63))) for rng in self.samples]
        self.device = device
        self.notes: dict[str, Any] = {}
        """What was drawn, by name: one value, or a list with one for each sample."""

    def uniform(self, name: str, bounds: Range) -> Tensor:
        """(B,): a number for each sample."""
        values = [rng.uniform(*bounds) for rng in self.samples]
        self.notes[name] = values
        return self.send(np.array(values, np.float32))

    def chance(self, name: str, probability: float) -> list[bool]:
        """A flag for each sample, set with that probability; on the host, where it decides what is computed."""
        flags = [bool(rng.random() < probability) for rng in self.samples]
        self.notes[name] = flags
        return flags

    def of_sample(self, number: int) -> dict[str, Any]:
        """The notes of one of the samples."""
        return {name: value[number] if isinstance(value, list) else value for name, value in self.notes.items()}

    def send(self, values: np.ndarray) -> Tensor:
        """Brings numbers to the device, without waiting for it."""
        return torch.from_numpy(values).to(self.device, non_blocking=True)


def sample_generator(seed: Sequence[int], number: int) -> np.random.Generator:
    """The generator of one sample of a global batch; a spawn key cannot collide with a longer seed's last number."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
