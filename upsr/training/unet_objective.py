"""The denoiser's training objective: MSE + λ · LPIPS of x̂0 at a random timestep, g frozen (UPSR, section 3.4).

A student has a teacher's results as further targets (SinSR, arXiv 2311.14760).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn as nn
from torch import Tensor

from upsr.config import Params
from upsr.degradation.draws import Draws
from upsr.diffusion.denoiser import Denoiser, upsample
from upsr.diffusion.samplers import sample
from upsr.images import to_signed
from upsr.training.pairs import Loss, Pairs, build_pairs
from upsr.training.perceptual import PerceptualLoss, sharper_losses
from upsr.training.teacher import load_teacher

OFFSETS = 8  # AlexNet's first layer has a stride of 4: without offsets, the network learns a texture of that period


class UnetObjective(nn.Module):
    """MSE(x̂0, x0), weighted by `Denoiser.loss_weight`, + λ · LPIPS(x̂0, x0).

    `rollout`: share of samples whose x_t the network makes itself (`Denoiser.perturb`). `lpips_share`: share of a
    micro-batch, at least one sample, that perceptual losses are the means of. `more`: further ones, by the names they
    are logged under; they see both images from a random offset of 0 to 7 pixels (as E-LPIPS, arXiv 1906.03973). With a
    `teacher`, MSE(S(x_T), F(x_T)) is added: S and F are the deterministic results of the network and of the teacher,
    each by all steps of its own chain, from the same x_T = y↑ + κ √η_T · w ⊙ ε and g(y) (SinSR, arXiv 2311.14760,
    L_distill for a chain of one step).
    """

    def __init__(
        self,
        pairs: Pairs,
        perceptual: PerceptualLoss,
        atd: nn.Module,
        scale: int,
        *,
        rollout: float = 0,
        lpips_share: float = 1,
        more: Mapping[str, PerceptualLoss] | None = None,
        teacher: Denoiser | None = None,
    ) -> None:
        super().__init__()
        self.pairs, self.perceptual, self.scale = pairs, perceptual, scale
        self.rollout, self.lpips_share = rollout, lpips_share
        self.more = nn.ModuleDict(more)
        self.atd = atd.eval().requires_grad_(False)
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)

    @torch.no_grad()
    def draw(self, hr: Tensor, seed: Sequence[int], first: int = 0) -> tuple[Tensor, ...]:
        """(B, 3, P, P) uint8 -> LR and HR in [0, 1], positions on the chain (B,) in [0, 1), noise fields (B, 3, P, P),
        which samples are rolled out (B,), and offsets (B, 2) of 0 to 7 pixels, of what `more` sees.

        `seed` and `first` as in `Pairs`. Each sample has its own position, noise field, chance and offset.
        """
        lr, hr = self.pairs(hr, seed, first)
        draws = Draws((*seed, 1), first, len(hr), hr.device)
        fields = draws.fields
        noise = torch.stack([torch.randn(hr.shape[1:], generator=own, device=hr.device) for own in fields])
        position = torch.stack([torch.rand((), generator=own, device=hr.device) for own in fields])
        rolled = torch.stack([torch.rand((), generator=own, device=hr.device) for own in fields]) < self.rollout
        offset = torch.tensor([rng.integers(OFFSETS, size=2).tolist() for rng in draws.samples])  # stays on the host
        return lr, hr, position, noise, rolled, offset

    def loss(
        self,
        denoiser: nn.Module,
        lr: Tensor,
        hr: Tensor,
        position: Tensor,
        noise: Tensor,
        rolled: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> Loss:
        """Logs `mse` and `lpips` (weighted), `weight` and `energy` (means of w and w²), and what the variant logs.

        Also each of `more` (weighted), and with a teacher `distilled`, the MSE to its results. Raises `TypeError`
        without the offsets that `more` needs.
        """
        bare = cast(Denoiser, getattr(denoiser, "module", denoiser))  # DDP forwards calls, not attributes
        x0, y_up, g_y = self._images(lr, hr)
        t = (position * bare.process.steps).long() + 1
        rolled = rolled if self.rollout else None
        x_t, weight = bare.perturb(x0, lr, y_up, g_y, noise, t, rolled)
        estimate = denoiser(x_t, t, bare.condition(g_y, y_up), y_up, weight)
        mse = (bare.loss_weight(t, weight, rolled) * (estimate - x0) ** 2).mean()
        n = max(1, round(self.lpips_share * len(hr)))
        seen, target, share = estimate[:n].clamp(-1, 1), x0[:n], bare.perceptual_weight(t[:n])
        lpips = (share * self.perceptual(seen, target)).mean()
        values = {"mse": mse, "lpips": lpips, "weight": weight.mean(), "energy": weight.square().mean()}
        loss = mse + lpips
        if self.more:
            if offset is None:
                raise TypeError("further perceptual losses need the offsets that `draw` returns")
            seen, target = _from(seen, offset[:n]), _from(target, offset[:n])
            for name, metric in self.more.items():
                values[name] = (share * metric(seen, target)).mean()
                loss = loss + values[name]
        if self.teacher is not None:
            with torch.no_grad():
                taught = _result(self.teacher, self.teacher, lr, y_up, g_y, noise)
            values["distilled"] = ((_result(denoiser, bare, lr, y_up, g_y, noise) - taught) ** 2).mean()
            loss = loss + values["distilled"]
        return loss, values | bare.uncertainty.logged()

    @torch.no_grad()
    def calibrate(self, denoiser: Denoiser, hr: Tensor, seed: int) -> None:
        """Shows the uncertainty variant training images before training starts; `hr` is (B, 3, P, P) uint8."""
        hr = self.pairs.degrade.target(hr.float() / 255)
        lr = self.pairs.degrade(hr, (seed,))
        x0, y_up, g_y = self._images(lr, hr)
        noise = torch.randn(hr.shape, generator=torch.Generator().manual_seed(seed)).to(hr.device)

        t = torch.linspace(1, denoiser.process.steps, len(hr), device=hr.device).round().long()

        def energy() -> Tensor:
            return denoiser.perturb(x0, lr, y_up, g_y, noise, t)[1].square().mean()

        denoiser.uncertainty.calibrate(lr, energy)

    @torch.no_grad()
    def _images(self, lr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x0, y↑, g(y)) in [-1, 1] of LR and HR in [0, 1]."""
        return to_signed(hr), to_signed(upsample(lr, self.scale)), to_signed(self.atd(lr).float())


def build_unet_objective(params: Params, atd: nn.Module, weights: Path | None) -> UnetObjective:
    """The denoiser's objective of the settings; `atd` is g, `weights` the folder of the losses' weights, as `Lpips`.

    Raises `CheckpointError` for a teacher that cannot be used, and `FileNotFoundError` as `PerceptualLoss`.
    """
    recipe, values = params.train_unet, params.train.lpips_range
    chosen = recipe.teacher
    return UnetObjective(
        build_pairs(params.degradation, params.scale, recipe),
        PerceptualLoss(recipe.lpips_weight, values, weights),
        atd,
        params.scale,
        rollout=recipe.rollout,
        lpips_share=recipe.lpips_share,
        more=sharper_losses(recipe, values, weights),
        teacher=load_teacher(chosen, params.scale, params.diffusion, params.uncertainty) if chosen else None,
    )


def _result(denoiser: nn.Module, bare: Denoiser, lr: Tensor, y_up: Tensor, g_y: Tensor, noise: Tensor) -> Tensor:
    """The deterministic sampler's image, (B, 3, H, W), about [-1, 1], from the x_T of ε = `noise`.

    `denoiser` is called, with the wrappers of training if it has any; `bare` is the same without them.
    """
    condition, weigh = bare.condition(g_y, y_up), bare.weigher(y_up, g_y, bare.uncertainty.analyse(lr))
    return sample(lambda x, t, w: denoiser(x, t, condition, y_up, w), bare.process, y_up, weigh, lambda _: noise)


def _from(image: Tensor, offset: Tensor) -> Tensor:
    """(B, 3, H, W), (B, 2) -> (B, 3, H - 7, W - 7): each sample from its offset of rows and columns."""
    height, width = (side - OFFSETS + 1 for side in image.shape[2:])
    corners = zip(image, offset.tolist(), strict=True)
    return torch.stack([sample[:, y : y + height, x : x + width] for sample, (y, x) in corners])
