"""Uncertainty: how much noise each place gets. A variant maps what is known of a picture to a weight w in [b, 1]."""

import torch.nn as nn
from torch import Tensor

from upsr.config import Uncertainty


class Isotropic(nn.Module):
    """w = 1: ResShift's noise, the same everywhere."""

    def forward(self, y_up: Tensor, g_y: Tensor) -> Tensor:
        return y_up.new_ones(len(y_up), 1, 1, 1).expand_as(y_up)


class Residual(nn.Module):
    """w = b + (1−b) · min(ψ, ψ_max)/ψ_max, ψ = |ŷ − y↑| / 2: noise where g changed the picture (UPSR, eq. 8 and 9).

    `gray` takes ψ's mean over the channels, one weight for the three.
    """

    def __init__(self, floor: float, psi_max: float, gray: bool) -> None:
        super().__init__()
        self.floor, self.psi_max, self.gray = floor, psi_max, gray

    def uncertainty(self, y_up: Tensor, g_y: Tensor) -> Tensor:
        """ψ, (B, 3, H, W), of pictures in [-1, 1]."""
        psi = (g_y - y_up).abs() / 2
        return psi.mean(1, keepdim=True).expand_as(psi) if self.gray else psi

    def forward(self, y_up: Tensor, g_y: Tensor) -> Tensor:
        psi = self.uncertainty(y_up, g_y)
        return self.floor + (1 - self.floor) * psi.clamp(max=self.psi_max) / self.psi_max


def build_uncertainty(cfg: Uncertainty) -> Isotropic | Residual:
    """The variant of the section `uncertainty`."""
    if cfg.variant == "isotropic":
        return Isotropic()
    return Residual(cfg.floor, cfg.psi_max, cfg.channels == "gray")
