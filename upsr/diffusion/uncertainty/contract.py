"""What every variant of uncertainty provides, and what all of them use."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from upsr.diffusion.samplers import Weigh


class Analysis(NamedTuple):
    """What a variant reads from the LR image before sampling. `unit`, `mean` and `share` describe the whole image."""

    maps: Tensor
    """(B, K, h, w) in [0, 1], on y's grid or a tile of it: E and H, or none (K = 0)."""
    unit: Tensor
    """(B, K, 1, 1): the magnitude that is 1 in each map."""
    mean: Tensor
    """(B, K, 1, 1): the mean of each map."""
    share: Tensor | None = None
    """(B, 1, 1, 1): the mean of the residual variant's W. None: computed from g(y) when needed."""


class Reference(Protocol):
    """A variant whose mean W another variant's W can be given."""

    def share(self, y_up: Tensor, g_y: Tensor) -> Tensor:
        """W, (B, 3, H, W) in [0, 1]; y↑ and g(y) are in [-1, 1]."""
        ...


class Variant(Protocol):
    """What every variant provides, for training and sampling. It is an `nn.Module` and may train with the UNet."""

    @property
    def floor(self) -> float:
        """b: the smallest weight. W = (w−b)/(1−b) is displayed, and mixes the branches of a two-branch UNet."""
        ...

    @property
    def reference(self) -> Reference | None:
        """The variant whose mean W this variant's W must have; None if W may have any mean."""
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

    def logged(self) -> dict[str, Tensor]:
        """What training logs beside its losses: scalars by name, on the device."""
        ...

    # Of `nn.Module`:
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...
    def modules(self) -> Iterator[nn.Module]: ...


def no_analysis(y: Tensor) -> Analysis:
    """The analysis of a variant that reads nothing from y: no maps (K = 0)."""
    return Analysis(y[:, :0], y[:, :0, :1, :1], y[:, :0, :1, :1])


def enlarged(maps: Tensor, y_up: Tensor) -> Tensor:
    """Maps on y's grid, (B, K, h, w) -> on y↑'s, (B, K, H, W), still in [0, 1]."""
    if maps.shape[1] == 0:  # torch does not resize zero channels
        return y_up[:, :0]
    return F.interpolate(maps, y_up.shape[2:], mode="bilinear", align_corners=False)


def weight_at(
    weigh: Weigh, times: Sequence[int], q_mean: Callable[[int], Tensor], x0: Tensor, y_up: Tensor, t: Tensor, steps: int
) -> Tensor:
    """w_t for each sample's t (B,), as in sampling: `weigh` is called at T = `steps`, then at `times`, descending.

    `q_mean(t)`, the mean of q(x_t | x0, y), stands in for x_t: x_t itself would need w, the mean does not.
    """
    weight = weigh(steps, y_up, y_up)
    for timestep in times:
        new = weigh(timestep, q_mean(timestep + 1), x0)
        weight = torch.where(t.view(-1, 1, 1, 1) <= timestep, new, weight)
    return weight
