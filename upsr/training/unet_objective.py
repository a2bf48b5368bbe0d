"""The denoiser's training objective: MSE + λ · LPIPS of x̂0 at a random timestep, g frozen (UPSR, section 3.4)."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn as nn
from torch import Tensor

from upsr.degradation.draws import Draws
from upsr.diffusion.denoiser import Denoiser, upsample
from upsr.images import to_signed
from upsr.training.pairs import Loss, Pairs
from upsr.training.perceptual import PerceptualLoss


class UnetObjective(nn.Module):
    """MSE(x̂0, x0) + λ · LPIPS(x̂0, x0)."""

    def __init__(self, pairs: Pairs, perceptual: PerceptualLoss, atd: nn.Module, scale: int) -> None:
        super().__init__()
        self.pairs, self.perceptual, self.scale = pairs, perceptual, scale
        self.atd = atd.eval().requires_grad_(False)

    @torch.no_grad()
    def draw(self, hr: Tensor, seed: Sequence[int], first: int = 0) -> tuple[Tensor, ...]:
        """(B, 3, P, P) uint8 -> LR and HR in [0, 1], positions on the chain (B,) in [0, 1), noise fields (B, 3, P, P).

        `seed` and `first` as in `Pairs`. Each sample has its own position and noise field.
        """
        lr, hr = self.pairs(hr, seed, first)
        fields = Draws((*seed, 1), first, len(hr), hr.device).fields
        noise = torch.stack([torch.randn(hr.shape[1:], generator=own, device=hr.device) for own in fields])
        position = torch.stack([torch.rand((), generator=own, device=hr.device) for own in fields])
        return lr, hr, position, noise

    def loss(self, denoiser: nn.Module, lr: Tensor, hr: Tensor, position: Tensor, noise: Tensor) -> Loss:
        """Logs `mse` and `lpips` (both weighted), `weight` (the mean of w), and what the uncertainty variant logs."""
        bare = cast(Denoiser, getattr(denoiser, "module", denoiser))  # DDP forwards calls, not attributes
        with torch.no_grad():
            sr = self.atd(lr).float()
        x0, g_y, y_up = to_signed(hr), to_signed(sr), to_signed(upsample(lr, self.scale))
        t = (position * bare.process.steps).long() + 1
        weight = bare.weight_at(t, x0, lr, y_up, g_y)
        x_t = bare.process.q_sample(x0, y_up, weight, noise, t)
        estimate = denoiser(x_t, t, bare.condition(g_y, y_up), y_up, weight)
        mse = (bare.loss_weight(t, weight) * (estimate - x0) ** 2).mean()
        lpips = (bare.perceptual_weight(t) * self.perceptual(estimate.clamp(-1, 1), x0)).mean()
        return mse + lpips, {"mse": mse, "lpips": lpips, "weight": weight.mean(), **bare.uncertainty.logged()}
