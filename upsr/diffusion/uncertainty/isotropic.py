"""The baseline: the same noise everywhere."""

from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
from torch import Tensor

from upsr.diffusion.samplers import Weigh
from upsr.diffusion.uncertainty.contract import Analysis, no_analysis


class Isotropic(nn.Module):
    """w = 1: ResShift's noise, the same everywhere."""

    floor = 1.0
    map_names = ()

    def analyse(self, y: Tensor) -> Analysis:
        return no_analysis(y)

    def times(self, steps: int) -> list[int]:
        return []

    def weigher(self, y_up: Tensor, g_y: Tensor, analysis: Analysis, fractions: Sequence[float]) -> Weigh:
        return lambda *_: torch.ones_like(y_up)

    def calibrate(self, y: Tensor, energy: Callable[[], Tensor]) -> None:
        pass

    def energy(self) -> Tensor:
        return torch.ones(())

    def logged(self) -> dict[str, Tensor]:
        return {}
