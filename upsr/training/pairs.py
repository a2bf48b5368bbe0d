"""LR and HR pairs for a training step, and the interface that all objectives share."""

from collections.abc import Callable, Sequence
from typing import Protocol, Self

import torch
import torch.nn as nn
from torch import Tensor

from upsr.config import Degradation, Recipe
from upsr.degradation.pair_pool import PairPool
from upsr.degradation.second_order import SecondOrder, build_degradation

Loss = tuple[Tensor, dict[str, Tensor]]
"""The loss to minimise and the values to log by name, all scalars on the device."""


class Pairs(nn.Module):
    """HR patches -> (LR, HR) pairs: degraded on the device, mixed with past pairs."""

    def __init__(self, degrade: SecondOrder, pool: PairPool) -> None:
        super().__init__()
        self.degrade, self.pool = degrade, pool

    @torch.no_grad()
    def forward(self, hr: Tensor, seed: Sequence[int], first: int = 0) -> tuple[Tensor, Tensor]:
        """(B, 3, P, P) uint8 -> LR (B, 3, P/s, P/s) and HR (B, 3, P, P) in [0, 1].

        All randomness is a function of `seed` and of each sample's number in the global batch, counted from `first`.
        """
        target = self.degrade.target(hr.float() / 255)
        target, lr = self.pool(target, self.degrade(target, seed, first), (*seed, 2), first)
        return lr, target


def build_pairs(cfg: Degradation, scale: int, recipe: Recipe) -> Pairs:
    """The degradation and the pool of past pairs, as one module."""
    return Pairs(build_degradation(cfg, scale), PairPool(recipe.pool, recipe.batch))


class Objective(Protocol):
    """What a network learns: `draw` makes a batch from HR patches, `loss` evaluates a network on part of it."""

    pairs: Pairs

    def draw(self, hr: Tensor, seed: Sequence[int], first: int = 0) -> tuple[Tensor, ...]:
        """(B, 3, P, P) uint8 -> tensors whose first dimension is B; `seed` and `first` as in `Pairs`."""
        ...

    @property
    def loss(self) -> Callable[..., Loss]:
        """(network, *tensors of `draw`) -> the loss and the values to log."""
        ...

    def to(self, device: torch.device) -> Self: ...
