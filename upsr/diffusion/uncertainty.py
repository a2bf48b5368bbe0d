"""Uncertainty: how much noise each pixel gets. A variant turns what is known of an image into a weight w in [b, 1].

`Variant` is the contract. To add one, write a class that keeps it, a record of its settings and the line in
`build_uncertainty` that makes one from the other (docs/extending.md has a worked example).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from upsr.config import Uncertainty
from upsr.diffusion.detail import Detector, LearnedEdges, high_pass, sobel, unit
from upsr.diffusion.samplers import Weigh

LEAST = 1e-6  # against a division by 0 where a map is 0, or 1, everywhere


class Analysis(NamedTuple):
    """What a variant takes from the LR image before sampling; `unit`, `mean` and `share` are the whole image's."""

    maps: Tensor
    """(B, K, h, w) in [0, 1] on y's grid, or a tile of it: E and H, or nothing (K = 0)."""
    unit: Tensor
    """(B, K, 1, 1): the magnitudes that are 1 in the maps."""
    mean: Tensor
    """(B, K, 1, 1): the maps' means."""
    share: Tensor | None = None
    """(B, 1, 1, 1): the mean of the residual variant's W; None: to be taken from the given g(y)."""


class Variant(Protocol):
    """What a variant answers, in training and in sampling alike. It is an `nn.Module`, and may learn with the UNet."""

    @property
    def floor(self) -> float:
        """b: the least weight. W = (w−b)/(1−b) is shown, and mixes the branches of a UNet that has two."""
        ...

    @property
    def reference(self) -> "Residual | None":
        """The variant whose mean W this one's W is levelled to; None where W may have any mean."""
        ...

    @property
    def map_names(self) -> tuple[str, ...]:
        """The names of the maps of `analyse`, in their order, under which they are shown."""
        ...

    def analyse(self, y: Tensor) -> Analysis:
        """What the whole LR image tells, (B, 3, h, w) in [0, 1], before it is cut into tiles."""
        ...

    def weigher(self, y_up: Tensor, g_y: Tensor, analysis: Analysis, fractions: Sequence[float]) -> Weigh:
        """The function (t, x, x̂0) -> w_t, (B, 3, H, W), that `samplers.sample` asks at each step, in their order.

        y↑ and g(y) are in [-1, 1]; `fractions` are t/T of the steps 0, 1, ..., T.
        """
        ...

    def times(self, steps: int) -> list[int]:
        """The steps below T, descending, at which the weight changes; none for a weight that stays."""
        ...

    def logged(self) -> dict[str, Tensor]:
        """What a training logs beside its losses: scalars by name, on the device."""
        ...

    # Of `nn.Module`:
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...
    def modules(self) -> Iterator[nn.Module]: ...


class Residual(nn.Module):
    """w = b + (1−b) · min(ψ, ψ_max)/ψ_max, ψ = |ŷ − y↑| / 2: noise where g changed the picture (UPSR, eq. 8 and 9).

    `gray` takes ψ's mean over the channels, one weight for the three.
    """

    reference = None
    map_names = ()

    def __init__(self, floor: float, psi_max: float, gray: bool) -> None:
        super().__init__()
        self.floor, self.psi_max, self.gray = floor, psi_max, gray

    def share(self, y_up: Tensor, g_y: Tensor) -> Tensor:
        """W = min(ψ, ψ_max)/ψ_max, (B, 3, H, W) in [0, 1], of pictures in [-1, 1]."""
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


class EdgeFrequency(nn.Module):
    """w = b + (1−b) · W↑, W = a·E + (1−a)·H of y itself: noise where y has edges and high frequencies.

    E and H are each scaled to [0, 1] by a percentile of the whole image. a = sigmoid(`mix`) is learned with the
    network, through x_t. Since less noise is an easier task, a may drift towards less noise: with `reference` (the
    residual variant), W is scaled to the reference's mean, so `a` redistributes noise but cannot reduce its total.
    """

    map_names = ("edge", "frequency")
    reference: Residual | None

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
        reference: Residual | None,
    ) -> None:
        super().__init__()
        self.detector, self.reference, self.floor = detector, reference, floor
        self.cutoff, self.softness, self.percentile = cutoff, softness, percentile
        self.mix = nn.Parameter(torch.logit(torch.tensor(mix)), requires_grad=learn_mix)

    @torch.no_grad()
    def magnitudes(self, x: Tensor, pixel: float) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 2, H, W) from 0: E and H, unscaled; in full precision, which the FFT needs."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            return torch.cat([self.detector(x, pixel), high_pass(x, pixel, self.cutoff, self.softness)], 1)

    def analyse(self, y: Tensor) -> Analysis:
        found = self.magnitudes(y, pixel=1)
        one = unit(found, self.percentile)
        maps = (found / one).clamp(max=1)
        return Analysis(maps, one, maps.mean((2, 3), keepdim=True))

    def times(self, steps: int) -> list[int]:
        return []

    def weigher(self, y_up: Tensor, g_y: Tensor, analysis: Analysis, fractions: Sequence[float]) -> Weigh:
        weight = self.weight(enlarged(analysis.maps, y_up), analysis.mean, self.target(y_up, g_y, analysis)).expand_as(
            y_up
        )
        return lambda *_: weight

    def logged(self) -> dict[str, Tensor]:
        """`mix`: a, the share of edges beside frequencies."""
        return {"mix": self.mix.sigmoid()}

    def target(self, y_up: Tensor, g_y: Tensor, analysis: Analysis) -> Tensor | None:
        """(B, 1, 1, 1): the mean that W must have; None where it may have any."""
        if self.reference is None or analysis.share is not None:
            return analysis.share
        return self.reference.share(y_up, g_y).mean((1, 2, 3), keepdim=True)

    def weight(self, maps: Tensor, mean: Tensor, target: Tensor | None) -> Tensor:
        """E and H (B, 2, H, W), and their means -> w (B, 1, H, W)."""
        a = self.mix.sigmoid()
        share = a * maps[:, :1] + (1 - a) * maps[:, 1:]
        if target is not None:
            share = levelled(share, a * mean[:, :1] + (1 - a) * mean[:, 1:], target)
        return self.floor + (1 - self.floor) * share


class Dynamic(nn.Module):
    """`EdgeFrequency` recomputed as sampling goes on, from M_t = p_t · x + (1−p_t) · y↑ with p_t = 1 − t/T.

    x is the current image: x_t, or its clean estimate x̂0 (x0 itself in training). E and H are smoothed,
    maps ← λ·maps + (1−λ)·new (w is linear in them), in the units of y. The first weight, at t = T where p is 0, is
    that of y itself. In each third of the chain, W is recomputed at every one of the three `intervals`, as a share of
    the chain's length: 5 % while noise is heavy, then 3 %, at the end 1 %. Where W is levelled, its own mean is the
    tile's.
    """

    map_names = EdgeFrequency.map_names
    reference: Residual | None

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
        self.floor, self.reference = base.floor, base.reference

    @property
    def mix(self) -> Tensor:
        return self.base.mix

    def analyse(self, y: Tensor) -> Analysis:
        return self.base.analyse(y)

    def times(self, steps: int) -> list[int]:
        """From T−1 down to 1, those at which the weight is recomputed: an interval is one step at least."""
        found, last = [], steps
        for t in range(steps - 1, 0, -1):
            third = min(3 * (steps - t) // steps, 2)
            if last - t >= max(1, round(self.intervals[third] * steps)):
                found.append(t)
                last = t
        return found

    def weigher(self, y_up: Tensor, g_y: Tensor, analysis: Analysis, fractions: Sequence[float]) -> Weigh:
        target = self.base.target(y_up, g_y, analysis)
        pixel = analysis.maps.shape[2] / y_up.shape[2]
        due = set(self.times(len(fractions) - 1))
        maps = enlarged(analysis.maps, y_up)
        weight = self.base.weight(maps, analysis.mean, target).expand_as(y_up)

        def weigh(t: int, x: Tensor, x0: Tensor) -> Tensor:
            nonlocal maps, weight
            if t in due:
                seen = self.mixed(x, x0, y_up, fractions[t])
                new = (self.base.magnitudes((seen + 1) / 2, pixel) / analysis.unit).clamp(max=1)
                maps = self.smoothing * maps + (1 - self.smoothing) * new
                weight = self.base.weight(maps, maps.mean((2, 3), keepdim=True), target).expand_as(y_up)
            return weight

        return weigh

    def logged(self) -> dict[str, Tensor]:
        return self.base.logged()

    def mixed(self, x: Tensor, x0: Tensor, y_up: Tensor, fraction: float) -> Tensor:
        """M_t at t = fraction · T."""
        current = x if self.source == "x_t" else x0
        return (1 - fraction) * current + fraction * y_up


def no_analysis(y: Tensor) -> Analysis:
    """The analysis of a variant that takes nothing from y."""
    return Analysis(y[:, :0], y[:, :0, :1, :1], y[:, :0, :1, :1])


def enlarged(maps: Tensor, y_up: Tensor) -> Tensor:
    """Maps on y's grid -> on y↑'s, still within [0, 1]."""
    if maps.shape[1] == 0:  # of `no_analysis`, which torch would not resize
        return y_up[:, :0]
    return F.interpolate(maps, y_up.shape[2:], mode="bilinear", align_corners=False)


def levelled(share: Tensor, mean: Tensor, target: Tensor) -> Tensor:
    """W' in [0, 1], rising with W, whose mean is `target`: W shrunk towards 0, or 1−W shrunk, as it needs."""
    lower = share * target / mean.clamp(min=LEAST)
    higher = 1 - (1 - share) * (1 - target) / (1 - mean).clamp(min=LEAST)
    return torch.where(target <= mean, lower, higher)


def weight_at(
    weigh: Weigh, times: Sequence[int], q_mean: Callable[[int], Tensor], x0: Tensor, y_up: Tensor, t: Tensor, steps: int
) -> Tensor:
    """w_t for each sample's t (B,), as sampling would find it: the weigher is walked down the chain.

    `q_mean(t)`, the mean of q(x_t | x0, y), stands for x_t: it needs no w, so that nothing is circular.
    """
    weight = weigh(steps, y_up, y_up)
    for time in times:
        weight = torch.where(t.view(-1, 1, 1, 1) <= time, weigh(time, q_mean(time + 1), x0), weight)
    return weight


def build_uncertainty(cfg: Uncertainty) -> Variant:
    """The variant of the section `uncertainty`. A learned edge detector has no weights yet (`load_edge_detector`)."""
    if cfg.variant == "isotropic":
        return Isotropic()
    residual = Residual(cfg.floor, cfg.psi_max, cfg.channels == "gray")
    if cfg.variant == "residual":
        return residual
    base = EdgeFrequency(
        sobel if cfg.edges == "sobel" else LearnedEdges(),
        floor=cfg.floor,
        cutoff=cfg.cutoff,
        softness=cfg.softness,
        percentile=cfg.percentile,
        mix=cfg.mix,
        learn_mix=cfg.learn_mix,
        reference=residual if cfg.normalise == "mean" else None,
    )
    if cfg.variant == "edge_frequency":
        return base
    dynamic = cfg.dynamic
    return Dynamic(base, source=dynamic.source, smoothing=dynamic.smoothing, intervals=dynamic.intervals)


def load_edge_detector(uncertainty: Variant, path: str) -> None:
    """Gives a learned edge detector its weights, before a training; a trained model's file holds them."""
    for module in uncertainty.modules():
        if isinstance(module, LearnedEdges):
            module.load(path)
