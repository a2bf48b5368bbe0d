"""The paper's variant: noise where g changed the image."""

from collections.abc import Sequence

import torch.nn as nn
from torch import Tensor

from upsr.diffusion.samplers import Weigh
from upsr.diffusion.uncertainty.contract import Analysis, no_analysis


class Residual(nn.Module):
    """w = b + (1−b) · min(ψ, ψ_max)/ψ_max, ψ = |ŷ − y↑| / 2: more noise where g changed the image (UPSR, eq. 8, 9).

    `gray` averages ψ over the channels, so all three share one weight.
    """

    reference = None
    map_names = ()

    def __init__(self, floor: float, psi_max: float, gray: bool) -> None:
        super().__init__()
        self.floor, self.psi_max, self.gray = floor, psi_max, gray

    def share(self, y_up: Tensor, g_y: Tensor) -> Tensor:
        """W = min(ψ, ψ_max)/ψ_max, (B, 3, H, W) in [0, 1]; y↑ and g(y) are in [-1, 1]."""
        psi = (g_y - y_up).abs() / 2
        psi = psi.mean(1, keepdim=True).expand_as(psi) if self.gray else psi
        return psi.clamp(max=self.psi_max) / self.psi_max

    def analyse(self, y: Tensor) -> Analysis:
        return no_analysis(y)

    def times(self, steps: int) -> list[int]:
        return []

    def weigher(self, y_up: Tensor, g_y: Tensor, analysis: Analysis, fractions: Sequence[float]) -> Weigh:
        weight = self.floor + (1 - self.floor) * self.share(y_up, g_y)
        return lambda *_: weight

    def logged(self) -> dict[str, Tensor]:
        return {}
