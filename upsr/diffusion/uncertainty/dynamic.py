"""Edges and high frequencies, recomputed during sampling."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn as nn
from torch import Tensor

from upsr.diffusion.samplers import Weigh
from upsr.diffusion.uncertainty.contract import Analysis, enlarged
from upsr.diffusion.uncertainty.edge_frequency import EdgeFrequency
from upsr.images import to_unit

ROUNDS = 3  # E[w²] depends on x_t, and x_t on E[w²]: each round comes closer


class Dynamic(nn.Module):
    """`EdgeFrequency`, recomputed during sampling from M_t = p_t · x + (1−p_t) · y↑ with p_t = 1 − t/T.

    x is the current image: x_t, or its clean estimate x̂0. E and H keep y's units and are smoothed:
    maps ← λ·maps + (1−λ)·new. At t = T, p is 0, so the first weight is y's own. `intervals` says how often W is
    recomputed in each third of the chain, as shares of its length (default: 5 %, 3 %, 1 %).
    """

    map_names = EdgeFrequency.map_names

    def __init__(
        self,
        base: EdgeFrequency,
        *,
        source: Literal["x_t", "x0_hat"],
        smoothing: float,
        intervals: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.base, self.source, self.smoothing, self.intervals = base, source, smoothing, intervals
        self.floor = base.floor

    @property
    def mix(self) -> Tensor:
        """The mixing logit of `EdgeFrequency`: a = sigmoid(`mix`)."""
        return self.base.mix

    def analyse(self, y: Tensor) -> Analysis:
        return self.base.analyse(y)

    def times(self, steps: int) -> list[int]:
        """The timesteps from T−1 down to 1 at which the weight is recomputed. An interval is at least one step."""
        found, last = [], steps
        for t in range(steps - 1, 0, -1):
            third = min(3 * (steps - t) // steps, 2)
            if last - t >= max(1, round(self.intervals[third] * steps)):
                found.append(t)
                last = t
        return found

    def weigher(self, y_up: Tensor, g_y: Tensor, analysis: Analysis, fractions: Sequence[float]) -> Weigh:
        pixel = analysis.maps.shape[2] / y_up.shape[2]
        due = set(self.times(len(fractions) - 1))
        maps = enlarged(analysis.maps, y_up)
        weight = self.base.weight(maps).expand_as(y_up)

        def weigh(t: int, x: Tensor, x0: Tensor) -> Tensor:
            nonlocal maps, weight
            if t in due:
                mixture = self.mixed(x, x0, y_up, fractions[t])
                new = (self.base.magnitudes(to_unit(mixture), pixel) / analysis.unit).clamp(max=1)
                maps = self.smoothing * maps + (1 - self.smoothing) * new
                weight = self.base.weight(maps).expand_as(y_up)
            return weight

        return weigh

    def calibrate(self, y: Tensor, energy: Callable[[], Tensor]) -> None:
        for _ in range(ROUNDS):
            self.base.calibrate(y, energy)

    def energy(self) -> Tensor:
        return self.base.energy()

    def logged(self) -> dict[str, Tensor]:
        return self.base.logged()

    def mixed(self, x: Tensor, x0: Tensor, y_up: Tensor, fraction: float) -> Tensor:
        """M_t at t = `fraction` · T, (B, 3, H, W)."""
        current = x if self.source == "x_t" else x0
        return (1 - fraction) * current + fraction * y_up
