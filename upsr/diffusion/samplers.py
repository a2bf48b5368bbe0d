"""Sampling: from y↑ and noise to an image."""

from collections.abc import Callable

import torch
from torch import Tensor

from upsr.diffusion.process import Process

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t, t, w_t) -> an estimate of x0."""
Weigh = Callable[[int, Tensor, Tensor], Tensor]
"""(t, x, x̂0) -> the noise weight w_t in [b, 1]. At t = T, both x and x̂0 are y↑."""


def sample(
    denoise: Denoise,
    process: Process,
    y_up: Tensor,
    weigh: Weigh,
    noise: Callable[[int], Tensor],
    stochasticity: float = 0.0,
) -> Tensor:
    """Samples from x_T down to x̂0, (B, C, H, W), about [-1, 1]. `noise(t)` returns the standard normal field for x_t.

    x_{t−1} = (1−η_{t−1}) x̂0 + η_{t−1} y↑ + κ w_{t−1} ⊙ (√(η_{t−1} − σ²) ε̂ + σ z),  σ² = s² · η_{t−1} α_t / η_t

    s is `stochasticity` in [0, 1]: 0 is the deterministic (DDIM) sampler, 1 the posterior q(x_{t−1} | x_t, x̂0, y).
    The variance of x_{t−1} is κ² w_{t−1}² η_{t−1} for every s, even if the weight changes between steps.
    """
    # prior
    weight = weigh(process.steps, y_up, y_up)
    x = process.prior(y_up, weight, noise(process.steps))
    for step in range(process.steps, 1, -1):
        # one denoising step
        t = torch.full((len(y_up),), step, device=y_up.device)
        x0 = denoise(x, t, weight)
        epsilon = process.epsilon(x, x0, y_up, weight, t)
        eta_t, eta_previous = process.eta(t), process.eta(t - 1)
        variance = stochasticity**2 * eta_previous * (eta_t - eta_previous) / eta_t
        if stochasticity > 0:
            epsilon = (eta_previous - variance).sqrt() * epsilon + variance.sqrt() * noise(step - 1)
        else:
            epsilon = eta_previous.sqrt() * epsilon
        weight = weigh(step - 1, x, x0)
        x = process.q_mean(x0, y_up, t - 1) + process.kappa * weight * epsilon
    # the last step
    return denoise(x, torch.ones(len(y_up), dtype=torch.long, device=y_up.device), weight)
