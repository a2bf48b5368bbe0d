"""The paper's variant: noise where g changed the image."""

from collections.abc import Sequence

from torch import Tensor

from upsr.diffusion.samplers import Weigh
from upsr.diffusion.uncertainty.contract import Analysis, Measured, no_analysis


class Residual(Measured):
    """w = b + (1−b) · W, W = min(ψ, ψ_max)/ψ_max, ψ = |ŷ − y↑| / 2: noise where g changed the image (UPSR, eq. 8, 9).

    `gray` averages ψ over the channels, so all three share one weight. `invert` uses 1 − W for W.
    """

    map_names = ()

    def __init__(self, floor: float, psi_max: float, gray: bool, invert: bool = False, measured: bool = False) -> None:
        super().__init__(measured)
        self.floor, self.psi_max, self.gray, self.invert = floor, psi_max, gray, invert

    def analyse(self, y: Tensor) -> Analysis:
        return no_analysis(y)

    def times(self, steps: int) -> list[int]:
        return []

    def weigher(self, y_up: Tensor, g_y: Tensor, analysis: Analysis, fractions: Sequence[float]) -> Weigh:
        psi = (g_y - y_up).abs() / 2
        psi = psi.mean(1, keepdim=True).expand_as(psi) if self.gray else psi
        share = psi.clamp(max=self.psi_max) / self.psi_max
        weight = self.floor + (1 - self.floor) * (1 - share if self.invert else share)
        return lambda *_: weight

    def logged(self) -> dict[str, Tensor]:
        return {}
