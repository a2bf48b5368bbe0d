"""Noise at the edges and high frequencies of the LR image."""

from collections.abc import Sequence

import torch
import torch.nn as nn
from torch import Tensor

from upsr.diffusion.detail import Detector, high_pass, unit
from upsr.diffusion.samplers import Weigh
from upsr.diffusion.uncertainty.contract import Analysis, Reference, enlarged

LEAST = 1e-6  # avoids a division by 0 where a map is 0, or 1, everywhere


class EdgeFrequency(nn.Module):
    """w = b + (1−b) · W↑, W = a·E + (1−a)·H, read from y: more noise at edges and high frequencies.

    E and H are each scaled to [0, 1] by a percentile of the whole image. a = sigmoid(`mix`) trains with the network,
    through x_t. Less noise is an easier task, so `a` may drift towards less noise. With `reference` (the residual
    variant), W is rescaled to the reference's mean: `a` redistributes noise but cannot reduce its total.
    """

    map_names = ("edge", "frequency")
    reference: Reference | None

    def __init__(
        self,
        detector: Detector,
        *,
        floor: float,
        cutoff: float,
        softness: float,
        percentile: float,
        mix: float,
        learn_mix: bool,
        reference: Reference | None,
    ) -> None:
        super().__init__()
        self.detector, self.reference, self.floor = detector, reference, floor
        self.cutoff, self.softness, self.percentile = cutoff, softness, percentile
        self.mix = nn.Parameter(torch.logit(torch.tensor(mix)), requires_grad=learn_mix)

    @torch.no_grad()
    def magnitudes(self, x: Tensor, pixel: float) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> E and H, unscaled, (B, 2, H, W), at least 0. The FFT needs full precision."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            return torch.cat([self.detector(x, pixel), high_pass(x, pixel, self.cutoff, self.softness)], 1)

    def analyse(self, y: Tensor) -> Analysis:
        magnitudes = self.magnitudes(y, pixel=1)
        scale = unit(magnitudes, self.percentile)
        maps = (magnitudes / scale).clamp(max=1)
        return Analysis(maps, scale, maps.mean((2, 3), keepdim=True))

    def times(self, steps: int) -> list[int]:
        return []

    def weigher(self, y_up: Tensor, g_y: Tensor, analysis: Analysis, fractions: Sequence[float]) -> Weigh:
        maps, target = enlarged(analysis.maps, y_up), self.target(y_up, g_y, analysis)
        weight = self.weight(maps, analysis.mean, target).expand_as(y_up)
        return lambda *_: weight

    def logged(self) -> dict[str, Tensor]:
        """`mix`: a, the share of E in W."""
        return {"mix": self.mix.sigmoid()}

    def target(self, y_up: Tensor, g_y: Tensor, analysis: Analysis) -> Tensor | None:
        """The mean that W must have, (B, 1, 1, 1); None if W may have any mean."""
        if self.reference is None or analysis.share is not None:
            return analysis.share
        return self.reference.share(y_up, g_y).mean((1, 2, 3), keepdim=True)

    def weight(self, maps: Tensor, mean: Tensor, target: Tensor | None) -> Tensor:
        """E and H (B, 2, H, W), their means (B, 2, 1, 1), and W's required mean -> w in [b, 1], (B, 1, H, W)."""
        a = self.mix.sigmoid()
        share = a * maps[:, :1] + (1 - a) * maps[:, 1:]
        if target is not None:
            share = levelled(share, a * mean[:, :1] + (1 - a) * mean[:, 1:], target)
        return self.floor + (1 - self.floor) * share


def levelled(share: Tensor, mean: Tensor, target: Tensor) -> Tensor:
    """W' in [0, 1], increasing in W, with the mean `target`: shrinks W towards 0, or 1−W, as needed."""
    lower = share * target / mean.clamp(min=LEAST)
    higher = 1 - (1 - share) * (1 - target) / (1 - mean).clamp(min=LEAST)
    return torch.where(target <= mean, lower, higher)
