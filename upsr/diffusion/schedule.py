"""The noise schedule √η_0 … √η_T."""

import math

import torch
from torch import Tensor


def sqrt_eta_schedule(steps: int, *, kappa: float, min_noise: float, end: float, power: float) -> Tensor:
    """(T+1,) float64, √η_0 = 0 first: √η_t = √η_1 · (e/√η_1)^(((t−1)/(T−1))^p), √η_1 = min(m/κ, m, √0.001).

    With a single step, √η_1 = e (ResShift, arXiv 2307.12348, eq. 9 and 10).
    """
    start = min(min_noise / kappa, min_noise, math.sqrt(0.001))
    position = torch.linspace(0, 1, steps, dtype=torch.float64) if steps > 1 else torch.ones(1, dtype=torch.float64)
    return torch.cat([torch.zeros(1, dtype=torch.float64), start * (end / start) ** position**power])


def respace(steps: int, used: int) -> list[int]:
    """`used` of the timesteps 1..T, evenly spaced and ascending; T, the largest noise level, is always one of them.

    Raises `ValueError` for a `used` outside 1..T.
    """
    if not 1 <= used <= steps:
        raise ValueError(f"sampling steps: {used}, but the model has {steps}: choose 1 to {steps}")
    return sorted({round(steps - i * steps / used) for i in range(used)})
