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
from upsr.diffusion.uncertainty import Analysis, Variant, build_uncertainty
from upsr.pretrained import Pretrained, load_weights

WINDOW = 5  # side of the square in which x_t shows how far ŷ is from x0


def upsample(lr: Tensor, scale: int) -> Tensor:
    """y (B, 3, h, w) -> y↑ (B, 3, s·h, s·w), by torch's bicubic kernel (not MATLAB's)."""
    return F.interpolate(lr, scale_factor=scale, mode="bicubic", align_corners=False)


class Denoiser(nn.Module):
    """`denoiser(x_t, t, condition, y_up, weight) -> x̂0`, all images (B, 3, H, W) in [-1, 1], t (B,) from 1.

    `times` lists the visited timesteps of the chain, ascending (default: all); t indexes this list. `uncertainty`
    weights the noise and may train with the network. A network with two `branches` also gets W = (w−b)/(1−b), the
    share of its detail branch, moved by half of the image with `placebo`. The network's input is scaled as if E[w²]
    were `energy`; `equal_energy` makes it so, by κ_v = κ √(energy / E[w²]) in place of κ.
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
        placebo: bool = False,
        skip: Literal["none", "condition", "edm"] = "none",
        sigma_data: float = 0.09,
        hr_inputs: bool = False,
        energy: float = 0.3,
        equal_energy: bool = False,
        times: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.uncertainty, self.kappa = network, uncertainty, process.kappa
        times = range(1, process.steps + 1) if times is None else times
        self.register_buffer("sqrt_eta", process.respaced(times).sqrt_eta, persistent=False)
        self.register_buffer("times", torch.tensor([0, *times]), persistent=False)
        self.fractions = [t / process.steps for t in (0, *times)]
        self.scale, self.images, self.predict, self.branches = scale, tuple(condition), predict, branches
        self.placebo = placebo
        self.skip, self.sigma_data, self.hr_inputs = skip, sigma_data, hr_inputs
        self.energy, self.equal_energy = energy, equal_energy

    @property
    def process(self) -> Process:
        """The chain of the visited timesteps, with the κ of this variant, on the device of the weights."""
        kappa = self.kappa * (self.energy / self.uncertainty.energy()).sqrt() if self.equal_energy else self.kappa
        return Process(self.sqrt_eta, kappa)

    def condition(self, g_y: Tensor, y_up: Tensor) -> Tensor:
        """g(y) and y↑, (B, 3, H, W), as the network gets them beside x_t: pixel-unshuffled, (B, images·3s², h, w)."""
        images = {"sr": g_y, "bicubic": y_up}
        return F.pixel_unshuffle(torch.cat([images[name] for name in self.images], dim=1), self.scale)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor, y_up: Tensor, weight: Tensor) -> Tensor:
        process = self.process
        scaled = x_t / (self.energy * self.kappa**2 * process.eta(t) + 0.25).sqrt()
        image = F.pixel_shuffle(condition[:, : 3 * self.scale**2], self.scale)  # the first of the condition
        noise = process.noise_level(t) * weight
        extra = {}
        if self.branches == 2:
            detail = (weight - self.uncertainty.floor) / (1 - self.uncertainty.floor)  # W of w = b + (1−b) W
            if self.placebo:
                detail = detail.roll([size // 2 for size in detail.shape[2:]], (2, 3))
            trust = [detail.mean(1, keepdim=True)] if self.skip == "edm" else []
            extra["detail"] = torch.cat([detail, *trust], dim=1)
        if self.hr_inputs:  # x_t − ŷ of variance 1, as EDM's c_in makes it
            extra["hr"] = torch.cat([(x_t - image) / (self.sigma_data**2 + noise**2).sqrt(), image], dim=1)
        output = self.network(F.pixel_unshuffle(scaled, self.scale), self.times[t] - 1, condition, **extra).float()
        if self.predict == "epsilon":
            return process.x0_from_epsilon(x_t, output, y_up, weight, t)
        match self.skip:
            case "none":
                return output
            case "condition":
                return image + output
            case "edm":  # arXiv 2206.00364, table 1: c_skip and c_out, for x0 − ŷ in place of x0
                correction, trust = output[:, :3], output[:, 3:]
                share = F.logsigmoid(self._local_variance(x_t - image, noise**2).log() - 2 * noise.log() + trust)
                return image + share.exp() * (x_t - image) + (share / 2).exp() * noise * correction

    def _local_variance(self, difference: Tensor, noise: Tensor) -> Tensor:
        """The variance of x0 − ŷ around each pixel, (B, 1, H, W), from x_t − ŷ and the noise's variance (B, 3, H, W).

        x_t tells it where there is little noise; where there is much, it is σ² everywhere (Lee's filter, 1980).
        """
        prior = self.sigma_data**2
        excess = F.avg_pool2d(
            (difference**2 - noise).mean(1, keepdim=True), WINDOW, 1, WINDOW // 2, count_include_pad=False
        )
        reliable = prior / (prior + noise.mean(1, keepdim=True))
        return reliable * excess.clamp(min=1e-5) + (1 - reliable) * prior

    def weigher(self, y_up: Tensor, g_y: Tensor, analysis: Analysis) -> Weigh:
        """(t, x, x̂0) -> w_t at the visited timesteps, for `samplers.sample`."""
        return self.uncertainty.weigher(y_up, g_y, analysis, self.fractions)

    def perturb(
        self, x0: Tensor, y: Tensor, y_up: Tensor, g_y: Tensor, noise: Tensor, t: Tensor, rolled: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x_t and w_t of each sample in training, (B, 3, H, W), from its noise ε; y is in [0, 1], the rest in [-1, 1].

        `rolled` (B,) marks samples whose x_t comes from one deterministic step of the sampler, taken by the network
        from a true x_{t+1}, or from the prior at t = T (DREAM, arXiv 2312.00210). A weight that changes during sampling
        is walked from T down to t as in sampling: on true x_t, and with g(y) for x̂0, until a rolled sample has its own
        x̂0. So w_t never depends on x0 but through x_t.
        """
        process, steps = self.process, self.process.steps
        estimate = g_y.clone()  # x̂0
        weigh = self.weigher(y_up, g_y, self.uncertainty.analyse(y))
        weight = above = current = weigh(steps, y_up, y_up)  # w_t, w_{t+1}, and w at the latest look

        def roll(due: Tensor) -> None:
            """Replaces `estimate` by the network's x̂0 of x_{t+1}, weighted by `above`."""
            if due.any():
                x = process.q_sample(x0[due], y_up[due], above[due], noise[due], t[due] + 1)
                condition = self.condition(g_y[due], y_up[due])
                with torch.no_grad():
                    estimate[due] = self(x, t[due] + 1, condition, y_up[due], above[due])

        # the weight, from T down
        pending = None if rolled is None else rolled & (t < steps)
        for look in self.uncertainty.times(steps):
            if not t.is_meta and look < t.min():
                break
            if pending is not None:
                roll(pending & (t == look))
                pending = pending & (t != look)
            x = process.q_sample(x0, y_up, current, noise, torch.full_like(t, look + 1))
            current = weigh(look, x, estimate)
            each = t.view(-1, 1, 1, 1)
            above, weight = torch.where(each < look, current, above), torch.where(each <= look, current, weight)
        if rolled is None or pending is None:
            return process.q_sample(x0, y_up, weight, noise, t), weight
        roll(pending)
        # x_t: a rolled sample starts from x̂0 in place of x0, and from y↑ at t = T
        rolled, last = rolled.view(-1, 1, 1, 1), (t == steps).view(-1, 1, 1, 1)
        start = torch.where(rolled, torch.where(last, y_up, estimate), x0)
        up = (t + 1).clamp(max=steps)
        x = process.q_sample(x0, y_up, above, noise, up)
        noise = torch.where(rolled & ~last, process.epsilon(x, start, y_up, above, up), noise)
        return process.q_sample(start, y_up, weight, noise, t), weight

    def loss_weight(self, t: Tensor, weight: Tensor, rolled: Tensor | None = None) -> Tensor:
        """The weight of x̂0's squared error, of `weight`'s shape (B, 3, H, W); `rolled` (B,) as in `perturb`.

        It is 1 if the network predicts x0. If it predicts ε, x̂0's error is ε̂'s times κ√η_t w/(1−η_t), which diverges
        as η_t → 1. The inverse square of that factor makes the loss the plain MSE of ε̂: no timestep dominates.
        With `skip: edm` it is 1 + σ²/(κ√η_t w)² (EDM's λ in units of 1/σ²; arXiv 2206.00364, table 1), so that a true
        x_t of little noise counts; a rolled-out x_t is as far from x0 at every t, and counts 1.
        """
        noise = self.process.noise_level(t) * weight
        if self.predict == "epsilon":
            return ((1 - self.process.eta(t)) / noise) ** 2
        if self.skip != "edm":
            return torch.ones_like(weight)
        lambda_ = 1 + (self.sigma_data / noise) ** 2
        return lambda_ if rolled is None else torch.where(rolled.view(-1, 1, 1, 1), 1, lambda_)

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
        placebo=unet.placebo,
        skip=unet.skip,
        sigma_data=unet.sigma_data,
        hr_inputs=unet.hr_inputs,
        energy=uncertainty.energy,
        equal_energy=uncertainty.normalise == "energy",
        times=respace(diffusion.steps, steps or diffusion.steps),
    )


def load_denoiser(file: Pretrained, build: Callable[[Unet, int], nn.Module], steps: int = 0) -> Denoiser:
    """The trained denoiser of a weights file. `build(unet, scale)` makes its network; `steps` as in `build_denoiser`.

    Raises `CheckpointError` where the file's weights do not fit its settings, and `ValueError` as `build_denoiser`.
    """
    unet, scale = file.section("unet", Unet), file.scale
    denoiser = build_denoiser(
        file.network("unet", lambda: build(unet, scale)),
        unet=unet,
        diffusion=file.section("diffusion", Diffusion),
        uncertainty=file.section("uncertainty", Uncertainty),
        scale=scale,
        steps=steps,
    )
    load_weights(denoiser.get_submodule("uncertainty"), file.parts.get("uncertainty", {}), file.path)
    return denoiser
