"""How good a network is while it learns: a few held-out pairs, PSNR and LPIPS, shared out among the processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from accelerate import Accelerator
from torch import Tensor

from upsr.degradation.second_order import SecondOrder
from upsr.images import pad_to, read_rgb, round8, to_tensor
from upsr.training.perceptual import Lpips

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Validation:
    """Held-out pairs of LR (1, 3, p, p) and HR (1, 3, s·p, s·p) in [0, 1], and what makes a picture of an LR.

    PSNR is that of RGB rounded to 8 bit, LPIPS the one the training learns by: figures to choose between checkpoints
    of one training by, not the benchmarks' figures. Without `lpips` there is PSNR alone.
    """

    pairs: list[Pair]
    upscale: Callable[[nn.Module, Tensor], Tensor]
    lpips: Lpips | None

    @torch.no_grad()
    def __call__(self, network: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Means over all pairs, the same in every process, however many there are."""
        lpips = self.lpips and self.lpips.to(accelerator.device)
        table = torch.zeros(len(self.pairs), 2, device=accelerator.device)
        for i in range(accelerator.process_index, len(self.pairs), accelerator.num_processes):
            lr, hr = (x.to(accelerator.device) for x in self.pairs[i])
            sr = round8(self.upscale(network, lr).float())
            table[i, 0] = -10 * (sr - hr).square().mean().clamp(min=1e-10).log10()
            if lpips:
                table[i, 1:] = lpips(sr, hr)
        means = accelerator.reduce(table, "sum").mean(0).tolist()
        return dict(zip(("psnr", "lpips") if lpips else ("psnr",), means, strict=False))


def held_out(pictures: Sequence[Path], degrade: SecondOrder, patch: int) -> list[Pair]:
    """The middle of each picture, `patch` pixels wide, and an LR of it that is the same whenever it is made.

    It is degraded here, since a ×2 training comes before the ×4 one, and no benchmark has LR pictures for both.
    """
    pairs = []
    for path in pictures:
        hr = to_tensor(read_rgb(path))
        top, left = (max(size - patch, 0) // 2 for size in hr.shape[2:])
        hr = pad_to(hr[:, :, top : top + patch, left : left + patch], patch, patch)
        pairs.append((degrade.named(hr, path.stem)[0], hr))
    return pairs
