"""Past pairs, kept to mix degradations within a batch: one call degrades its whole batch with one factor and mode."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


class PairPool:
    """Keeps up to `size` pairs of HR (3, H, W) and LR (3, h, w) on the device of the batches; 0 keeps none."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.hr = torch.empty(0)
        self.lr = torch.empty(0)

    @torch.no_grad()
    def __call__(self, hr: Tensor, lr: Tensor, seed: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Swaps each pair of the batch with a kept one that `seed` chooses; while there is room, only keeps.

        Where the batch is larger than the pool, the last pairs are returned as they came.
        """
        if self.size == 0:
            return hr, lr
        self.hr, self.lr = self.hr.to(hr.device), self.lr.to(lr.device)
        room = self.size - len(self.hr)
        if room > 0:
            self.hr, self.lr = torch.cat([self.hr, hr[:room]]), torch.cat([self.lr, lr[:room]])
            return hr, lr
        swapped = min(len(hr), self.size)
        slots = torch.from_numpy(np.random.default_rng(seed).permutation(self.size)[:swapped])
        slots = slots.to(hr.device, non_blocking=True)
        return _swap(self.hr, hr, slots), _swap(self.lr, lr, slots)

    def state_dict(self) -> dict[str, Tensor]:
        """The kept pairs; empty tensors before the first batch."""
        return {"hr": self.hr, "lr": self.lr}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over copies of the pairs, so that training goes on as if it had never stopped."""
        self.hr, self.lr = state["hr"].clone(), state["lr"].clone()


def _swap(pool: Tensor, batch: Tensor, slots: Tensor) -> Tensor:
    """Puts the first pictures of the batch into `slots` of the pool; returns the batch with what was there."""
    past = pool[slots]
    pool[slots] = batch[: len(slots)]
    return torch.cat([past, batch[len(slots) :]])
