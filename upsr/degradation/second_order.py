"""The whole chain from HR to LR: Real-ESRGAN (arXiv 2107.10833, figure 2) with UPSR's settings."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from upsr.config import Degradation, Round
from upsr.degradation import kernels, ops
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
    def __call__(self, hr: Tensor, seed: Sequence[int]) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, H/scale, W/scale) float32, rounded to 8 bit.

        Everything random is a function of `seed`, non-negative numbers such as (seed, step, rank).
        """
        rng = np.random.default_rng(seed)
        generator = torch.Generator(hr.device).manual_seed(int(rng.integers(2**32)))
        size = (hr.shape[2] // self.scale, hr.shape[3] // self.scale)
        x = _degrade(hr.float(), self.first, hr.shape[2:], rng, generator)
        x = _compress(x, self.first, rng)
        x = _degrade(x, self.second, size, rng, generator)
        # A picture on the web was resized and sharpened before it was last saved, or after.
        if rng.random() < 0.5:
            x = _compress(self._finish(x, size, rng), self.second, rng)
        else:
            x = self._finish(_compress(x, self.second, rng), size, rng)
        return round8(x)

    def _finish(self, x: Tensor, size: Sequence[int], rng: np.random.Generator) -> Tensor:
        """Brings the picture to its last size and lets it ring."""
        bounds = self.second.blur.kernel_size
        sincs = [kernels.random_final_sinc(rng, probability=self.final_sinc, kernel_size=bounds) for _ in x]
        return ops.filter2d(ops.random_resize(x, size, rng), ops.on_device(np.stack(sincs), x))


def _degrade(
    x: Tensor, values: Round, base: Sequence[int], rng: np.random.Generator, generator: torch.Generator
) -> Tensor:
    """Blur, resize to a random multiple of `base`, noise."""
    blurs = [kernels.random_kernel(rng, **dict(values.blur)) for _ in x]
    x = ops.filter2d(x, ops.on_device(np.stack(blurs), x))
    factor = ops.random_factor(rng, **dict(values.resize))
    x = ops.random_resize(x, [max(1, int(side * factor)) for side in base], rng)
    return ops.random_noise(x, rng, generator, **dict(values.noise))


def _compress(x: Tensor, values: Round, rng: np.random.Generator) -> Tensor:
    return jpeg(x.clamp(0, 1), ops.on_device(rng.uniform(*values.jpeg, len(x)), x))
