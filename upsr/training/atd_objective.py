"""ATD's training objective: L1 + λ · LPIPS on Real-ESRGAN pairs (according to the authors, in their issue 18)."""

from collections.abc import Sequence
from pathlib import Path

import torch.nn as nn
from torch import Tensor

from upsr.config import Params, Recipe
from upsr.images import to_signed
from upsr.training.pairs import Loss, Pairs, build_pairs
from upsr.training.perceptual import PerceptualLoss


class AtdObjective(nn.Module):
    """L1(g(y), x0) + λ · LPIPS(g(y), x0)."""

    def __init__(self, pairs: Pairs, perceptual: PerceptualLoss) -> None:
        super().__init__()
        self.pairs, self.perceptual = pairs, perceptual

    def draw(self, hr: Tensor, seed: Sequence[int], first: int = 0) -> tuple[Tensor, ...]:
        """(B, 3, P, P) uint8 -> LR (B, 3, P/s, P/s) and HR (B, 3, P, P) in [0, 1]; arguments as in `Pairs`."""
        return self.pairs(hr, seed, first)

    def loss(self, atd: nn.Module, lr: Tensor, hr: Tensor) -> Loss:
        """The loss on LR and HR in [0, 1]. Logs `l1` and `lpips` (weighted)."""
        sr = atd(lr).float()
        l1 = (sr - hr).abs().mean()
        lpips = self.perceptual(to_signed(sr), to_signed(hr)).mean()
        return l1 + lpips, {"l1": l1, "lpips": lpips}


def build_atd_objective(params: Params, scale: int, recipe: Recipe, weights: Path | None) -> AtdObjective:
    """ATD's objective for one scale; `weights` is the folder of LPIPS's weights, as `Lpips`.

    Raises `FileNotFoundError` as `PerceptualLoss`.
    """
    perceptual = PerceptualLoss(params.atd.lpips_weight, params.train.lpips_range, weights)
    return AtdObjective(build_pairs(params.degradation, scale, recipe), perceptual)
