"""The network as `denoise(x_t, t) -> x̂0`: only this file knows scaling, pixel-unshuffle, condition and prediction."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from upsr.config import Diffusion, Uncertainty, Unet
from upsr.diffusion.process import Process, build_process
from upsr.diffusion.samplers import Weigh
from upsr.diffusion.schedule import respace
from upsr.diffusion.uncertainty import Analysis, Variant, build_uncertainty, weight_at

NOISE_SHARE = 0.3  # E[w²], as the released code assumes it when scaling the network's input


def upsample(lr: Tensor, scale: int) -> Tensor:
    """y (B, 3, h, w) -> y↑ (B, 3, s·h, s·w), by torch's bicubic kernel (not MATLAB's)."""
    return F.interpolate(lr, scale_factor=scale, mode="bicubic", align_corners=False)


class Denoiser(nn.Module):
    """`denoiser(x_t, t, condition, y_up, weight) -> x̂0`, all images (B, 3, H, W) in [-1, 1], t (B,) from 1.

    `times` lists the visited timesteps of the chain, ascending (default: all); t indexes this list. `uncertainty`
    weights the noise and may train with the network. A network with two `branches` also gets W = (w−b)/(1−b), the
    share of its detail branch.
    """

    sqrt_eta: Tensor
    times: Tensor
    uncertainty: Variant

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        *,
        scale: int,
        condition: Sequence[Literal["sr", "bicubic"]],
        predict: Literal["x0", "epsilon"],
        uncertainty: Variant,
        branches: Literal[1, 2] = 1,
        times: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.uncertainty, self.kappa = network, uncertainty, process.kappa
        times = range(1, process.steps + 1) if times is None else times
        self.register_buffer("sqrt_eta", process.respaced(times).sqrt_eta, persistent=False)
        self.register_buffer("times", torch.tensor([0, *times]), persistent=False)
        self.fractions = [t / process.steps for t in (0, *times)]
        self.scale, self.images, self.predict, self.branches = scale, tuple(condition), predict, branches

    @property
    def process(self) -> Process:
        """The chain of the visited timesteps, on the device of the weights."""
        return Process(self.sqrt_eta, self.kappa)

    def condition(self, g_y: Tensor, y_up: Tensor) -> Tensor:
        """g(y) and y↑, (B, 3, H, W), as the network gets them beside x_t: pixel-unshuffled, (B, images·3s², h, w)."""
        images = {"sr": g_y, "bicubic": y_up}
        return F.pixel_unshuffle(torch.cat([images[name] for name in self.images], dim=1), self.scale)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor, y_up: Tensor, weight: Tensor) -> Tensor:
        eta = self.process.eta(t)
        scaled = x_t / (NOISE_SHARE * self.process.kappa**2 * eta + 0.25).sqrt()
        inputs = [F.pixel_unshuffle(scaled, self.scale), self.times[t] - 1, condition]
        if self.branches == 2:
            inputs.append((weight - self.uncertainty.floor) / (1 - self.uncertainty.floor))  # W of w = b + (1−b) W
        output = self.network(*inputs).float()
        if self.predict == "x0":
            return output
        return self.process.x0_from_epsilon(x_t, output, y_up, weight, t)

    def weigher(self, y_up: Tensor, g_y: Tensor, analysis: Analysis) -> Weigh:
        """(t, x, x̂0) -> w_t at the visited timesteps, for `samplers.sample`."""
        return self.uncertainty.weigher(y_up, g_y, analysis, self.fractions)

    def weight_at(self, t: Tensor, x0: Tensor, y: Tensor, y_up: Tensor, g_y: Tensor) -> Tensor:
        """w_t in [b, 1] of each sample in training, (B, 3, H, W); y in [0, 1], the other images in [-1, 1]."""
        process, steps = self.process, len(self.fractions) - 1

        def q_mean(timestep: int) -> Tensor:
            return process.q_mean(x0, y_up, torch.full_like(t, timestep))

        weigh = self.weigher(y_up, g_y, self.uncertainty.analyse(y))
        return weight_at(weigh, self.uncertainty.times(steps), q_mean, x0, y_up, t, steps)

    def loss_weight(self, t: Tensor, weight: Tensor) -> Tensor:
        """The weight of x̂0's squared error, of `weight`'s shape (B, 3, H, W).

        It is 1 if the network predicts x0. If it predicts ε, x̂0's error is ε̂'s times κ√η_t w/(1−η_t), which diverges
        as η_t → 1. The inverse square of that factor makes the loss the plain MSE of ε̂: no timestep dominates.
        """
        if self.predict == "x0":
            return torch.ones_like(weight)
        return ((1 - self.process.eta(t)) / (self.process.noise_level(t) * weight)) ** 2

    def perceptual_weight(self, t: Tensor) -> Tensor:
        """The weight of x̂0's perceptual distance, (B,): 1, or 1−η_t if the network predicts ε (see `loss_weight`)."""
        eta = self.process.eta(t).flatten()
        return torch.ones_like(eta) if self.predict == "x0" else 1 - eta

    def denoise(self, condition: Tensor, y_up: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The function `denoise(x_t, t, w_t) -> x̂0` for `samplers.sample`; x̂0 from ε is clipped to [-1, 1]."""

        def denoise(x_t: Tensor, t: Tensor, weight: Tensor) -> Tensor:
            x0 = self(x_t, t, condition, y_up, weight)
            return x0 if self.predict == "x0" else x0.clamp(-1, 1)

        return denoise


def build_denoiser(
    network: nn.Module, *, unet: Unet, diffusion: Diffusion, uncertainty: Uncertainty, scale: int, steps: int = 0
) -> Denoiser:
    """The denoiser of a network and its config sections. It visits `steps` of the chain's timesteps, or all for 0.

    Raises `ValueError` where the chain has fewer than `steps` timesteps.
    """
    return Denoiser(
        network,
        build_process(diffusion),
        scale=scale,
        condition=unet.condition,
        predict=diffusion.predict,
        uncertainty=build_uncertainty(uncertainty),
        branches=unet.branches,
        times=respace(diffusion.steps, steps or diffusion.steps),
    )
