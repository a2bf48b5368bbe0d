"""Past pairs, kept to mix degradations within a batch: one call uses one factor and mode for its whole batch."""

from collections.abc import Container, Mapping, Sequence

import torch
from torch import Tensor

from upsr.degradation.draws import sample_generator

Pair = tuple[Tensor, Tensor]


class PairPool:
    """Keeps up to `size` pairs of HR (3, H, W) and LR (3, h, w) on the device of the batches; 0 keeps none.

    Each sample of the global batch has its own lane of `size / batch` pairs; the first lanes hold one more where there
    is a remainder. So the pair that a sample is swapped with does not depend on the process.
    """

    def __init__(self, size: int, batch: int) -> None:
        self.size, self.batch = size, batch
        self.lanes: dict[int, list[Pair]] = {}

    @torch.no_grad()
    def __call__(self, hr: Tensor, lr: Tensor, seed: Sequence[int], first: int = 0) -> Pair:
        """(B, 3, H, W) and (B, 3, h, w) -> the same shapes: swaps each pair with one that `seed` chooses in its lane.

        While a lane has room, it keeps a copy and returns the pair itself, as does a lane of length 0. `first` is the
        number of the first pair in the global batch.
        """
        pairs = [self._swap(lane, pair, seed) for lane, pair in enumerate(zip(hr, lr, strict=True), first)]
        return torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])

    def _swap(self, lane: int, pair: Pair, seed: Sequence[int]) -> Pair:
        kept, length = self.lanes.setdefault(lane, []), self.length(lane)
        copy = pair[0].clone(), pair[1].clone()  # a view would keep its whole batch in memory
        if len(kept) < length:
            kept.append(copy)
        elif length:
            slot = sample_generator(seed, lane).integers(length)
            (hr, lr), kept[slot] = kept[slot], copy
            return hr.to(pair[0].device, non_blocking=True), lr.to(pair[1].device, non_blocking=True)
        return pair

    def length(self, lane: int) -> int:
        """The number of pairs that a lane keeps."""
        return self.size // self.batch + (lane < self.size % self.batch)

    def state_dict(self) -> dict[str, Tensor]:
        """The pairs kept in this process and the lane of each; empty tensors before the first batch."""
        lanes = [(lane, *pair) for lane in sorted(self.lanes) for pair in self.lanes[lane]]
        if not lanes:
            return {"lane": torch.empty(0, dtype=torch.long), "hr": torch.empty(0), "lr": torch.empty(0)}
        numbers, hr, lr = zip(*lanes, strict=True)
        return {"lane": torch.tensor(numbers), "hr": torch.stack(hr), "lr": torch.stack(lr)}

    def load_state_dict(self, *states: Mapping[str, Tensor], lanes: Container[int] | None = None) -> None:
        """Restores the pairs of the given lanes (None: all), so training resumes as if it had never stopped.

        `states` come from all processes of the earlier run; each lane is in one of them only.
        """
        self.lanes = {}
        for state in states:
            for lane, hr, lr in zip(state["lane"].tolist(), state["hr"], state["lr"], strict=True):
                if lanes is None or lane in lanes:
                    self.lanes.setdefault(lane, []).append((hr.clone(), lr.clone()))
