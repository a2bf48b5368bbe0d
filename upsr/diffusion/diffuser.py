"""UPSR without g: from y↑ and g(y) to the sampled image."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from upsr.diffusion.denoiser import Denoiser
from upsr.diffusion.samplers import sample
from upsr.diffusion.uncertainty import Analysis
from upsr.images import to_signed, to_unit


@dataclass(frozen=True)
class Diffuser:
    """What UPSR adds to g: the denoiser, including the uncertainty that weights its noise."""

    denoiser: Denoiser
    stochasticity: float
    """0: the deterministic sampler; 1: the posterior (`samplers.sample`)."""
    multiple: int
    """LR height and width must be multiples of this."""

    def analyse(self, lr: Tensor) -> Analysis:
        """What the uncertainty reads from the whole LR image, (1, 3, h, w) in [0, 1]."""
        return self.denoiser.uncertainty.analyse(lr)

    def __call__(
        self, y_up: Tensor, sr: Tensor, noise: Callable[[int], Tensor], analysis: Analysis
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """y↑ and g(y), (B, 3, H, W) in [0, 1] -> the sampled image, about [0, 1], and the noise weight w_t by t.

        `noise(t)` returns the standard normal field for x_t.
        """
        g_y, y_up = to_signed(sr), to_signed(y_up)
        weigh = self.denoiser.weigher(y_up, g_y, analysis)
        weights: dict[int, Tensor] = {}

        def recorded(t: int, x: Tensor, x0: Tensor) -> Tensor:
            weights[t] = weigh(t, x, x0)
            return weights[t]

        denoise = self.denoiser.denoise(self.denoiser.condition(g_y, y_up), y_up)
        x = sample(denoise, self.denoiser.process, y_up, recorded, noise, self.stochasticity)
        return to_unit(x), weights
