"""The exponential moving average of a network's weights."""

import copy

import torch
import torch.nn as nn


class Ema:
    """Follows a network: ema ← decay · ema + (1−decay) · weights, buffers copied. `network` is the average, to use."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - self.decay)
        for mine, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)
