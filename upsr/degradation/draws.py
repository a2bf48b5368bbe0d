"""What is random in the degradation of a batch, drawn so that it does not matter how the batch was split."""

from collections.abc import Sequence

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

    def uniform(self, bounds: Range) -> Tensor:
        """(B,): a number for each sample."""
        return self.send(np.array([rng.uniform(*bounds) for rng in self.samples], np.float32))

    def chance(self, probability: float) -> list[bool]:
        """A flag for each sample, set with that probability; on the host, where it decides what is computed."""
        return [rng.random() < probability for rng in self.samples]

    def send(self, values: np.ndarray) -> Tensor:
        """Brings numbers to the device, without waiting for it."""
        return torch.from_numpy(values).to(self.device, non_blocking=True)


def sample_generator(seed: Sequence[int], number: int) -> np.random.Generator:
    """The generator of one sample of a global batch; a spawn key cannot collide with a longer seed's last number."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
