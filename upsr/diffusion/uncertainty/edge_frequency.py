"""Noise at the edges and high frequencies of the LR image."""

from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
from torch import Tensor

from upsr.diffusion.detail import Detector, high_pass, unit
from upsr.diffusion.samplers import Weigh
from upsr.diffusion.uncertainty.contract import Analysis, enlarged


class EdgeFrequency(nn.Module):
    """w = b + (1−b) · W↑, W = a·E + (1−a)·H, read from y: more noise at edges and high frequencies.

    E and H are each scaled to [0, 1] by a percentile: of the whole image, or with `one_unit` of the training patches.
    a = sigmoid(`mix`) trains with the network, through x_t. `invert` uses 1 − W for W. `measured` stores E[w²] for
    `energy`: less noise is an easier task, so at a fixed κ `a` may drift towards the map with less noise.
    """

    map_names = ("edge", "frequency")
    one_unit: Tensor | None
    measured: Tensor | None

    def __init__(
        self,
        detector: Detector,
        *,
        floor: float,
        invert: bool,
        cutoff: float,
        softness: float,
        percentile: float,
        mix: float,
        learn_mix: bool,
        one_unit: bool,
        measured: bool,
    ) -> None:
        super().__init__()
        self.detector, self.floor, self.invert = detector, floor, invert
        self.cutoff, self.softness, self.percentile = cutoff, softness, percentile
        self.mix = nn.Parameter(torch.logit(torch.tensor(mix)), requires_grad=learn_mix)
        self.register_buffer("one_unit", torch.full((1, 2, 1, 1), torch.nan) if one_unit else None)
        self.register_buffer("measured", torch.full((3,), torch.nan) if measured else None)

    @torch.no_grad()
    def magnitudes(self, x: Tensor, pixel: float) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> E and H, unscaled, (B, 2, H, W), at least 0. The FFT needs full precision."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            return torch.cat([self.detector(x, pixel), high_pass(x, pixel, self.cutoff, self.softness)], 1)

    def analyse(self, y: Tensor) -> Analysis:
        magnitudes = self.magnitudes(y, pixel=1)
        scale = unit(magnitudes, self.percentile) if self.one_unit is None else self.one_unit.expand(len(y), -1, -1, -1)
        return Analysis((magnitudes / scale).clamp(max=1), scale)

    def times(self, steps: int) -> list[int]:
        return []

    def weigher(self, y_up: Tensor, g_y: Tensor, analysis: Analysis, fractions: Sequence[float]) -> Weigh:
        weight = self.weight(enlarged(analysis.maps, y_up)).expand_as(y_up)
        return lambda *_: weight

    def weight(self, maps: Tensor) -> Tensor:
        """E and H, (B, 2, H, W) -> w in [b, 1], (B, 1, H, W)."""
        a = self.mix.sigmoid()
        share = a * maps[:, :1] + (1 - a) * maps[:, 1:]
        return self.floor + (1 - self.floor) * (1 - share if self.invert else share)

    @torch.no_grad()
    def calibrate(self, y: Tensor, energy: Callable[[], Tensor]) -> None:
        if self.one_unit is not None:  # the percentile of all patches together, laid side by side
            self.one_unit.copy_(unit(self.magnitudes(y, pixel=1).movedim(0, 2).flatten(2, 3)[None], self.percentile))
        if self.measured is not None:
            mix = self.mix.clone()
            self.measured.nan_to_num_(1.0)  # `dynamic` measures on x_t, whose noise depends on E[w²]: from any start
            for i, logit in enumerate((-torch.inf, 0.0, torch.inf)):
                self.mix.fill_(logit)
                self.measured[i] = energy()
            self.mix.copy_(mix)

    def energy(self) -> Tensor:
        """E[w²] for the present a: w is linear in a, so E[w²] is a parabola through its values at a = 0, ½ and 1."""
        if self.measured is None:
            return torch.tensor(torch.nan)
        a, (none, half, all_edges) = self.mix.sigmoid(), self.measured
        return (1 - a) * (1 - 2 * a) * none + 4 * a * (1 - a) * half + a * (2 * a - 1) * all_edges

    def logged(self) -> dict[str, Tensor]:
        """`mix`: a, the share of E in W."""
        return {"mix": self.mix.sigmoid()}
