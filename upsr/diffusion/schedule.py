"""The noise schedule √η_0 … √η_T."""

import math

import torch
from torch import Tensor


def sqrt_eta_schedule(steps: int, *, kappa: float, min_noise: float, end: float, power: float) -> Tensor:
    """(T+1,) float64, √η_0 = 0 first: √η_t = √η_1 · (e/√η_1)^(((t−1)/(T−1))^p), √η_1 = min(m/κ, m, √0.001).

    With one step there is no way from √η_1 to e: √η_T = e is kept (METHOD "Diffusion"; ResShift, eq. 9 and 10).
    """
    start = min(min_noise / kappa, min_noise, math.sqrt(0.001))
    position = torch.linspace(0, 1, steps, dtype=torch.float64) if steps > 1 else torch.ones(1, dtype=torch.float64)
    return torch.cat([torch.zeros(1, dtype=torch.float64), start * (end / start) ** position**power])


def respace(steps: int, used: int) -> list[int]:
    """The `used` of the time steps 1..T to sample with, ascending; T, the largest noise level, is always among them."""
    if not 1 <= used <= steps:
        raise ValueError(f"cannot sample with {used} of {steps} steps: choose 1 to {steps}")
    return sorted({round(steps - i * steps / used) for i in range(used)})
