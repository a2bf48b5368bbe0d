"""Validation during training: PSNR and LPIPS on a few held-out pairs, split among the processes."""

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
    """Held-out pairs of LR (1, 3, p, p) and HR (1, 3, s·p, s·p) in [0, 1], and the function that upscales an LR.

    PSNR is of RGB rounded to 8 bit. `lpips` is the metric of the training loss; None leaves it out. These figures
    compare checkpoints of one run, and cannot be compared with benchmark figures.
    """

    pairs: list[Pair]
    upscale: Callable[[nn.Module, Tensor], Tensor]
    lpips: Lpips | None

    @torch.no_grad()
    def __call__(self, network: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Means over all pairs by name (`psnr`, `lpips`), the same in every process and for any number of processes."""
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


def held_out(images: Sequence[Path], degrade: SecondOrder, patch: int) -> list[Pair]:
    """LR and HR in [0, 1] for each image file: HR is its centre, `patch` pixels wide, LR is the same in every run.

    LR is made here, not read from a benchmark: ×2 and ×4 training both need it. Raises `ImageError` for an unreadable
    file.
    """
    pairs = []
    for path in images:
        hr = to_tensor(read_rgb(path))
        top, left = (max(size - patch, 0) // 2 for size in hr.shape[2:])
        hr = pad_to(hr[:, :, top : top + patch, left : left + patch], patch, patch)
        pairs.append((degrade.named(hr, path.stem)[0], hr))
    return pairs
