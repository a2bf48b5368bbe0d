"""Past pairs, kept to mix degradations within a batch: one call degrades its whole batch with one factor and mode."""

from collections.abc import Container, Mapping, Sequence

import torch
from torch import Tensor

from upsr.degradation.draws import sample_generator

Pair = tuple[Tensor, Tensor]


class PairPool:
    """Keeps up to `size` pairs of HR (3, H, W) and LR (3, h, w) on the device of the batches; 0 keeps none.

    Each sample of the global batch has a lane of its own, `size / batch` pairs long (one more in the first lanes where
    that leaves a rest): what a sample is swapped with does not depend on which process holds it.
    """

    def __init__(self, size: int, batch: int) -> None:
        self.size, self.batch = size, batch
        self.lanes: dict[int, list[Pair]] = {}

    @torch.no_grad()
    def __call__(self, hr: Tensor, lr: Tensor, seed: Sequence[int], first: int = 0) -> Pair:
        """Swaps each pair with one of its lane that `seed` chooses; while the lane has room, keeps a copy of it.

        The pairs are those from number `first` of the global batch on. A lane without a place passes its pair on.
        """
        pairs = [self._swap(lane, pair, seed) for lane, pair in enumerate(zip(hr, lr, strict=True), first)]
        return torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])

    def _swap(self, lane: int, pair: Pair, seed: Sequence[int]) -> Pair:
        kept, places = self.lanes.setdefault(lane, []), self.length(lane)
        mine = pair[0].clone(), pair[1].clone()  # else a row would keep its whole batch in memory
        if len(kept) < places:
            kept.append(mine)
        elif places:
            slot = sample_generator(seed, lane).integers(places)
            (hr, lr), kept[slot] = kept[slot], mine
            return hr.to(pair[0].device, non_blocking=True), lr.to(pair[1].device, non_blocking=True)
        return pair

    def length(self, lane: int) -> int:
        """How many pairs a lane keeps."""
        return self.size // self.batch + (lane < self.size % self.batch)

    def state_dict(self) -> dict[str, Tensor]:
        """The kept pairs of the lanes that came by here, and the lane of each; empty tensors before the first batch."""
        lanes = [(lane, *pair) for lane in sorted(self.lanes) for pair in self.lanes[lane]]
        if not lanes:
            return {"lane": torch.empty(0, dtype=torch.long), "hr": torch.empty(0), "lr": torch.empty(0)}
        numbers, hr, lr = zip(*lanes, strict=True)
        return {"lane": torch.tensor(numbers), "hr": torch.stack(hr), "lr": torch.stack(lr)}

    def load_state_dict(self, *states: Mapping[str, Tensor], lanes: Container[int] | None = None) -> None:
        """Takes over the pairs of some lanes (all: None), so that training goes on as if it had never stopped.

        `states` are those of all processes, however many there were; a lane is in one of them only.
        """
        self.lanes = {}
        for state in states:
            for lane, hr, lr in zip(state["lane"].tolist(), state["hr"], state["lr"], strict=True):
                if lanes is None or lane in lanes:
                    self.lanes.setdefault(lane, []).append((hr.clone(), lr.clone()))
