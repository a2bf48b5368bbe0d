"""What each network learns: pairs from HR patches (`draw`), and the loss of a part of them (`loss`)."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn as nn
from torch import Tensor

from upsr.degradation.draws import Draws
from upsr.degradation.pair_pool import PairPool
from upsr.degradation.second_order import SecondOrder
from upsr.diffusion.denoiser import Denoiser, to_signed, upsample
from upsr.diffusion.uncertainty import Dynamic, EdgeFrequency
from upsr.training.perceptual import PerceptualLoss

Loss = tuple[Tensor, dict[str, Tensor]]
"""The loss to minimise and what to log beside it, all scalars on the device."""


class Pairs(nn.Module):
    """HR patches -> (LR, HR) pairs: degraded on the device, mixed with past pairs."""

    def __init__(self, degrade: SecondOrder, pool: PairPool) -> None:
        super().__init__()
        self.degrade, self.pool = degrade, pool

    @torch.no_grad()
    def forward(self, hr: Tensor, seed: Sequence[int], first: int = 0) -> tuple[Tensor, Tensor]:
        """(B, 3, P, P) uint8 -> LR and HR in [0, 1], a function of `seed` and of each sample's number.

        The patches are the samples from `first` on of the global batch, however that is split over processes.
        """
        target = self.degrade.target(hr.float() / 255)
        target, lr = self.pool(target, self.degrade(target, seed, first), (*seed, 2), first)
        return lr, target


class AtdObjective(nn.Module):
    """L1 + λ · LPIPS on Real-ESRGAN pairs (the authors' answer in their issue 18)."""

    def __init__(self, pairs: Pairs, perceptual: PerceptualLoss) -> None:
        super().__init__()
        self.pairs, self.perceptual = pairs, perceptual

    def draw(self, hr: Tensor, seed: Sequence[int], first: int = 0) -> tuple[Tensor, ...]:
        return self.pairs(hr, seed, first)

    def loss(self, atd: nn.Module, lr: Tensor, hr: Tensor) -> Loss:
        sr = atd(lr).float()
        l1 = (sr - hr).abs().mean()
        lpips = self.perceptual(to_signed(sr), to_signed(hr)).mean()
        return l1 + lpips, {"l1": l1, "lpips": lpips}


class UnetObjective(nn.Module):
    """MSE(x̂0, x0) + λ · LPIPS(x̂0, x0) at a random time of the chain, g being frozen (UPSR, section 3.4)."""

    def __init__(self, pairs: Pairs, perceptual: PerceptualLoss, atd: nn.Module, scale: int) -> None:
        super().__init__()
        self.pairs, self.perceptual, self.scale = pairs, perceptual, scale
        self.atd = atd.eval().requires_grad_(False)

    @torch.no_grad()
    def draw(self, hr: Tensor, seed: Sequence[int], first: int = 0) -> tuple[Tensor, ...]:
        """LR, HR, and for each sample a place in [0, 1) on the chain and a noise field, its own whatever the split."""
        lr, hr = self.pairs(hr, seed, first)
        fields = Draws((*seed, 1), first, len(hr), hr.device).fields
        noise = torch.stack([torch.randn(hr.shape[1:], generator=own, device=hr.device) for own in fields])
        place = torch.stack([torch.rand((), generator=own, device=hr.device) for own in fields])
        return lr, hr, place, noise

    def loss(self, denoiser: nn.Module, lr: Tensor, hr: Tensor, place: Tensor, noise: Tensor) -> Loss:
        bare = cast(Denoiser, getattr(denoiser, "module", denoiser))  # DDP forwards calls, not attributes
        with torch.no_grad():
            sr = self.atd(lr).float()
        x0, g_y, y_up = to_signed(hr), to_signed(sr), to_signed(upsample(lr, self.scale))
        t = (place * bare.process.steps).long() + 1
        weight = bare.weight_at(t, x0, lr, y_up, g_y)
        x_t = bare.process.q_sample(x0, y_up, weight, noise, t)
        estimate = denoiser(x_t, t, bare.condition(g_y, y_up), y_up, weight)
        mse = (bare.loss_weight(t, weight) * (estimate - x0) ** 2).mean()
        lpips = (bare.perceptual_weight(t) * self.perceptual(estimate.clamp(-1, 1), x0)).mean()
        seen = {"mse": mse, "lpips": lpips, "weight": weight.mean()}
        if isinstance(bare.uncertainty, EdgeFrequency | Dynamic):
            seen["mix"] = bare.uncertainty.mix.sigmoid()
        return mse + lpips, seen
