"""The diffusion between an image x0 and its upsampled LR version y↑, with weighted noise (UPSR, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from upsr.config import Diffusion
from upsr.diffusion.schedule import sqrt_eta_schedule


@dataclass(frozen=True)
class Process:
    """The formulas of one chain. Images (about [-1, 1]), noise and weights are (B, C, H, W); t is (B,), from 1 to T."""

    sqrt_eta: Tensor
    """(T+1,) √η_0 … √η_T, η_0 = 0."""
    kappa: float | Tensor
    """κ, a number or a scalar."""

    @property
    def steps(self) -> int:
        """T."""
        return len(self.sqrt_eta) - 1

    def respaced(self, times: Sequence[int]) -> "Process":
        """The chain that visits only these timesteps, given in ascending order."""
        return Process(self.sqrt_eta[[0, *times]], self.kappa)

    def eta(self, t: Tensor) -> Tensor:
        """η_t as (B, 1, 1, 1) float32, squared in float64."""
        return (self.sqrt_eta[t] ** 2).float().view(-1, 1, 1, 1)

    def noise_level(self, t: Tensor) -> Tensor:
        """κ √η_t as (B, 1, 1, 1) float32."""
        return (self.kappa * self.sqrt_eta[t]).float().view(-1, 1, 1, 1)

    def q_mean(self, x0: Tensor, y_up: Tensor, t: Tensor) -> Tensor:
        """The mean of q(x_t | x0, y): x0 + η_t (y↑ − x0)."""
        return x0 + self.eta(t) * (y_up - x0)

    def q_sample(self, x0: Tensor, y_up: Tensor, weight: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = x0 + η_t (y↑ − x0) + κ √η_t · w ⊙ ε."""
        return self.q_mean(x0, y_up, t) + self.noise_level(t) * weight * noise

    def prior(self, y_up: Tensor, weight: Tensor, noise: Tensor) -> Tensor:
        """x_T = y↑ + κ √η_T · w ⊙ ε."""
        return y_up + (self.sqrt_eta[-1] * self.kappa).float() * weight * noise

    def posterior(self, x_t: Tensor, x0: Tensor, weight: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean η_{t−1}/η_t · x_t + α_t/η_t · x0 and variance κ² w² · η_{t−1}/η_t · α_t of q(x_{t−1} | x_t, x0, y)."""
        eta, previous = self.eta(t), self.eta(t - 1)
        alpha = eta - previous
        return previous / eta * x_t + alpha / eta * x0, self.kappa**2 * weight**2 * previous / eta * alpha

    def epsilon(self, x_t: Tensor, x0: Tensor, y_up: Tensor, weight: Tensor, t: Tensor) -> Tensor:
        """ε = (x_t − (1−η_t) x0 − η_t y↑) / (κ √η_t w)."""
        return (x_t - self.q_mean(x0, y_up, t)) / (self.noise_level(t) * weight)

    def x0_from_epsilon(self, x_t: Tensor, epsilon: Tensor, y_up: Tensor, weight: Tensor, t: Tensor) -> Tensor:
        """x0 = (x_t − η_t y↑ − κ √η_t w ⊙ ε) / (1 − η_t).

        An error of ε is multiplied by κ √η_t w / (1−η_t), which is large where η_t is near 1.
        """
        eta = self.eta(t)
        return (x_t - eta * y_up - self.noise_level(t) * weight * epsilon) / (1 - eta)


def build_process(cfg: Diffusion) -> Process:
    """The chain of the config section `diffusion`."""
    sqrt_eta = sqrt_eta_schedule(
        cfg.steps, kappa=cfg.kappa, min_noise=cfg.min_noise, end=cfg.sqrt_eta_end, power=cfg.power
    )
    return Process(sqrt_eta, cfg.kappa)
