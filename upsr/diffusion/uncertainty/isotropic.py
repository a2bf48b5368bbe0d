"""The baseline: the same noise everywhere."""

from collections.abc import Sequence

import torch
import torch.nn as nn
from torch import Tensor

from upsr.diffusion.samplers import Weigh
from upsr.diffusion.uncertainty.contract import Analysis, no_analysis


class Isotropic(nn.Module):
    """w = 1: ResShift's noise, the same everywhere."""

    floor = 1.0
    reference = None
    map_names = ()

    def analyse(self, y: Tensor) -> Analysis:
        return no_analysis(y)

    def times(self, steps: int) -> list[int]:
        return []

    def weigher(self, y_up: Tensor, g_y: Tensor, analysis: Analysis, fractions: Sequence[float]) -> Weigh:
        return lambda *_: torch.ones_like(y_up)

    def logged(self) -> dict[str, Tensor]:
        return {}
