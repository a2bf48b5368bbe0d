"""Adversarial training: a critic learns to tell results from photographs by VGG's features (arXiv 2111.01007)."""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

STAGES = {1: 128, 2: 256, 3: 512}  # of VGG16, counted from 0, and their channels: textures, parts of objects
WIDTH = 64


class Critic(nn.Module):
    """Scores an image by the features that `Lpips` compares: the higher, the more it looks like a photograph.

    It has a head for each of `STAGES`, with spectral normalisation (Miyato et al., arXiv 1802.05957).
    """

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_head(width) for width in STAGES.values())

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of every stage, (B, C, h, w), of length 1 at each pixel -> scores (B, 1, h, w) by head."""
        inputs = [features[stage] * width**0.5 for stage, width in STAGES.items()]  # of about 1
        return [head(x).float() for head, x in zip(self.heads, inputs, strict=True)]


def adversarial_losses(critic: Critic, found: Sequence[Tensor], true: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The losses of the network, (B,), and of the critic, a scalar, from the features of results and of photographs.

    −D(x̂0), with a gradient for the network alone, and max(0, 1 − D(x0)) + max(0, 1 + D(x̂0)), with one for the critic
    alone (the hinge loss of Lim and Ye, arXiv 1705.02894), each the mean over heads and their pixels. So one backward
    pass of their sum trains both.
    """
    fixed = {name: weight.detach() for name, weight in critic.named_parameters()}
    fooled = functional_call(critic, fixed, (found,))
    judged = critic([torch.cat([x.detach(), y]) for x, y in zip(found, true, strict=True)])
    network = -torch.stack([scores.mean((1, 2, 3)) for scores in fooled]).mean(0)
    margins = [torch.cat([1 + x, 1 - y]) for x, y in (scores.chunk(2) for scores in judged)]
    return network, 2 * torch.stack([F.relu(margin).mean() for margin in margins]).mean()


def _head(channels: int) -> nn.Sequential:
    return nn.Sequential(
        spectral_norm(nn.Conv2d(channels, WIDTH, 1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(WIDTH, WIDTH, 3, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(WIDTH, 1, 3, padding=1)),
    )
