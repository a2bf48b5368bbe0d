"""The whole chain from HR to LR: Real-ESRGAN (arXiv 2107.10833, figure 2) with UPSR's settings."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upsr.config import Degradation, Round
from upsr.degradation import kernels, ops
from upsr.degradation.draws import Draws
from upsr.degradation.jpeg import jpeg
from upsr.images import number_of, resize, round8
from upsr.threads import one_thread


def build_degradation(cfg: Degradation, scale: int) -> "SecondOrder":
    """The degradation of the config section `degradation`."""
    return SecondOrder(**dict(cfg), scale=scale)


class SecondOrder:
    """Makes LR from HR. Kernel, noise strength and JPEG quality are drawn per sample; factor, mode, order per batch."""

    def __init__(self, *, first: Round, second: Round, final_sinc: float, plain: float, usm: bool, scale: int) -> None:
        self.first = first
        self.second = second
        self.final_sinc = final_sinc
        self.plain = plain
        self.usm = usm
        self.scale = scale

    @torch.no_grad()
    def target(self, hr: Tensor) -> Tensor:
        """HR (B, 3, H, W) in [0, 1] -> the target to restore, from which LR is made: sharpened if `usm`."""
        return ops.usm_sharpen(hr.float()) if self.usm else hr

    @torch.no_grad()
    def __call__(self, hr: Tensor, seed: Sequence[int], first: int = 0) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, H/scale, W/scale) float32, rounded to 8 bit.

        All randomness is a function of `seed` (non-negative numbers such as (seed, step)) and of each sample's number
        in the global batch; `first` is the number of the first sample.
        """
        return self.drawn(hr, seed, first)[0]

    @torch.no_grad()
    def drawn(self, hr: Tensor, seed: Sequence[int], first: int = 0) -> tuple[Tensor, list[dict[str, Any]]]:
        """As `__call__`, with the drawn values of each sample, named by config key."""
        draws = Draws(seed, first, len(hr), hr.device)
        size = (hr.shape[2] // self.scale, hr.shape[3] // self.scale)
        x = _degrade(hr.float(), "first", self.first, hr.shape[2:], draws)
        x = _compress(x, "first", self.first, draws)
        x = _degrade(x, "second", self.second, size, draws)
        # An image on the web was resized and sharpened before it was last saved, or after.
        draws.notes["jpeg_last"] = last = bool(draws.batch.random() < 0.5)
        if last:
            x = _compress(self._finish(x, size, draws), "second", self.second, draws)
        else:
            x = self._finish(_compress(x, "second", self.second, draws), size, draws)
        # Drawn last, so that the key does not change the samples that are not plain.
        plain = draws.chance("plain", self.plain)
        if any(plain):
            x = torch.where(ops.per_sample(draws.send(np.array(plain))), resize(hr.float(), size), x)
        return round8(x), [{"plain": True} if one else draws.of_sample(number) for number, one in enumerate(plain)]

    @one_thread()
    @torch.no_grad()
    def named(self, hr: Tensor, name: str, seed: Sequence[int] = ()) -> tuple[Tensor, dict[str, Any]]:
        """One named image, (1, 3, H, W) in [0, 1] -> its LR, (1, 3, H/scale, W/scale), and the drawn values.

        The only source of LR images outside training batches: held-out benchmarks, validation, `upsr degrade`. All
        randomness is a function of the name and `seed`, not of other images. The LR does not depend on the number of
        threads: the difference would be small, but JPEG rounds.
        """
        lr, notes = self.drawn(self.target(hr), (*seed, number_of(name)))
        return lr, notes[0]

    def _finish(self, x: Tensor, size: Sequence[int], draws: Draws) -> Tensor:
        """Resizes to the final size and applies the final sinc filter, which adds ringing."""
        bounds = self.second.blur.kernel_size
        make = partial(kernels.random_final_sinc, probability=self.final_sinc, kernel_size=bounds)
        x = ops.random_resize(x, "final.resize", size, draws)
        return ops.filter2d(x, _kernels("final.sinc", make, draws))


def _degrade(x: Tensor, name: str, values: Round, base: Sequence[int], draws: Draws) -> Tensor:
    """Blur, resize to a random multiple of `base`, noise."""
    make = partial(kernels.random_kernel, **dict(values.blur))
    x = ops.filter2d(x, _kernels(f"{name}.blur", make, draws))
    if values.resize:
        draws.notes[f"{name}.resize.factor"] = factor = ops.random_factor(draws.batch, **dict(values.resize))
        size = [max(1, int(side * factor)) for side in base]
        x = ops.random_resize(x, f"{name}.resize", size, draws)
    return ops.random_noise(x, f"{name}.noise", draws, **dict(values.noise))


def _kernels(name: str, make: Callable[[np.random.Generator], np.ndarray], draws: Draws) -> Tensor:
    """One kernel per sample, (B, k, k); notes the spread of each."""
    drawn = [make(rng) for rng in draws.samples]
    draws.notes[f"{name}.spread"] = [kernels.spread(kernel) for kernel in drawn]
    return draws.send(np.stack(drawn).astype(np.float32))


def _compress(x: Tensor, name: str, values: Round, draws: Draws) -> Tensor:
    return jpeg(x.clamp(0, 1), draws.uniform(f"{name}.jpeg", values.jpeg))
