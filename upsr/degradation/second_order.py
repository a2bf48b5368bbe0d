"""The whole chain from HR to LR: Real-ESRGAN (arXiv 2107.10833, figure 2) with UPSR's settings."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from upsr.config import Degradation, Round
from upsr.degradation import kernels, ops
from upsr.degradation.draws import Draws
from upsr.degradation.jpeg import jpeg
from upsr.images import round8


def build_degradation(cfg: Degradation, scale: int) -> "SecondOrder":
    """The degradation that the section `degradation` of params.yaml describes."""
    return SecondOrder(first=cfg.first, second=cfg.second, final_sinc=cfg.final_sinc, usm=cfg.usm, scale=scale)


class SecondOrder:
    """Makes LR from HR. Kernel, noise strength and JPEG quality are drawn per sample; factor, mode, order per batch."""

    def __init__(self, *, first: Round, second: Round, final_sinc: float, usm: bool, scale: int) -> None:
        self.first = first
        self.second = second
        self.final_sinc = final_sinc
        self.usm = usm
        self.scale = scale

    @torch.no_grad()
    def target(self, hr: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> what a network is to restore and the LR is to be made from: sharpened if `usm`."""
        return ops.usm_sharpen(hr.float()) if self.usm else hr

    @torch.no_grad()
    def __call__(self, hr: Tensor, seed: Sequence[int], first: int = 0) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, H/scale, W/scale) float32, rounded to 8 bit.

        Everything random is a function of `seed`, non-negative numbers such as (seed, step), and of a sample's number
        in the global batch, of which these are the samples from `first` on.
        """
        draws = Draws(seed, first, len(hr), hr.device)
        size = (hr.shape[2] // self.scale, hr.shape[3] // self.scale)
        x = _degrade(hr.float(), self.first, hr.shape[2:], draws)
        x = _compress(x, self.first, draws)
        x = _degrade(x, self.second, size, draws)
        # A picture on the web was resized and sharpened before it was last saved, or after.
        if draws.batch.random() < 0.5:
            x = _compress(self._finish(x, size, draws), self.second, draws)
        else:
            x = self._finish(_compress(x, self.second, draws), size, draws)
        return round8(x)

    def _finish(self, x: Tensor, size: Sequence[int], draws: Draws) -> Tensor:
        """Brings the picture to its last size and lets it ring."""
        bounds = self.second.blur.kernel_size
        make = partial(kernels.random_final_sinc, probability=self.final_sinc, kernel_size=bounds)
        return ops.filter2d(ops.random_resize(x, size, draws.batch), _kernels(make, draws))


def _degrade(x: Tensor, values: Round, base: Sequence[int], draws: Draws) -> Tensor:
    """Blur, resize to a random multiple of `base`, noise."""
    x = ops.filter2d(x, _kernels(partial(kernels.random_kernel, **dict(values.blur)), draws))
    factor = ops.random_factor(draws.batch, **dict(values.resize))
    x = ops.random_resize(x, [max(1, int(side * factor)) for side in base], draws.batch)
    return ops.random_noise(x, draws, **dict(values.noise))


def _kernels(make: Callable[[np.random.Generator], np.ndarray], draws: Draws) -> Tensor:
    """(B, k, k): each sample's own."""
    return draws.send(np.stack([make(rng) for rng in draws.samples]).astype(np.float32))


def _compress(x: Tensor, values: Round, draws: Draws) -> Tensor:
    return jpeg(x.clamp(0, 1), draws.uniform(values.jpeg))
