"""What every variant of uncertainty provides, and what all of them use."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from upsr.diffusion.samplers import Weigh


class Analysis(NamedTuple):
    """What a variant reads from the LR image before sampling."""

    maps: Tensor
    """(B, K, h, w) in [0, 1], on y's grid or a tile of it: E and H, or none (K = 0)."""
    unit: Tensor
    """(B, K, 1, 1): the magnitude that is 1 in each map, the same for all tiles of an image."""


class Variant(Protocol):
    """What every variant provides, for training and sampling. It is an `nn.Module` and may train with the UNet."""

    @property
    def floor(self) -> float:
        """b: the smallest weight. W = (w−b)/(1−b) is displayed, and mixes the branches of a two-branch UNet."""
        ...

    @property
    def map_names(self) -> tuple[str, ...]:
        """The display names of the maps that `analyse` returns, in order."""
        ...

    def analyse(self, y: Tensor) -> Analysis:
        """Reads the whole LR image, (B, 3, h, w) in [0, 1], before it is cut into tiles."""
        ...

    def weigher(self, y_up: Tensor, g_y: Tensor, analysis: Analysis, fractions: Sequence[float]) -> Weigh:
        """The function (t, x, x̂0) -> w_t, (B, 3, H, W), that `samplers.sample` calls at each t, from T down.

        y↑ and g(y) are (B, 3, H, W) in [-1, 1]; `fractions` lists t/T for t = 0, 1, ..., T.
        """
        ...

    def times(self, steps: int) -> list[int]:
        """The timesteps below T, descending, at which the weight changes; empty for a constant weight."""
        ...

    def calibrate(self, y: Tensor, energy: Callable[[], Tensor]) -> None:
        """Stores what the variant needs to know about training images, before training starts.

        y: LR patches, (B, 3, h, w) in [0, 1]. `energy()` measures E[w²] of the variant as it is when called.
        """
        ...

    def energy(self) -> Tensor:
        """E[w²] over pixels and images, a scalar: measured by `calibrate`, and NaN before."""
        ...

    def logged(self) -> dict[str, Tensor]:
        """What training logs beside its losses: scalars by name, on the device."""
        ...

    # Of `nn.Module`:
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...
    def modules(self) -> Iterator[nn.Module]: ...


class Measured(nn.Module):
    """The part of a variant that knows its E[w²]: if `measured`, `calibrate` stores it, and the weights file has it."""

    measured: Tensor | None

    def __init__(self, measured: bool) -> None:
        super().__init__()
        self.register_buffer("measured", torch.tensor(torch.nan) if measured else None)

    def calibrate(self, y: Tensor, energy: Callable[[], Tensor]) -> None:
        if self.measured is not None:
            self.measured.copy_(energy())

    def energy(self) -> Tensor:
        return torch.tensor(torch.nan) if self.measured is None else self.measured


def no_analysis(y: Tensor) -> Analysis:
    """The analysis of a variant that reads nothing from y: no maps (K = 0)."""
    return Analysis(y[:, :0], y[:, :0, :1, :1])


def enlarged(maps: Tensor, y_up: Tensor) -> Tensor:
    """Maps on y's grid, (B, K, h, w) -> on y↑'s, (B, K, H, W), still in [0, 1]."""
    if maps.shape[1] == 0:  # torch does not resize zero channels
        return y_up[:, :0]
    return F.interpolate(maps, y_up.shape[2:], mode="bilinear", align_corners=False)
