"""The exponential moving average of a network's weights."""

import copy

import torch
import torch.nn as nn
from torch import Tensor


class Ema:
    """ema ← decay · ema + (1−decay) · weights; buffers are copied. `network` is the averaged network."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, skip: Tensor) -> None:
        """Updates the average after an optimizer step. `skip`, a flag on the device, leaves it unchanged."""
        average: list[Tensor] = list(self.network.parameters())
        change = list(torch._foreach_sub(list[Tensor](network.parameters()), average))
        torch._foreach_mul_(change, (1 - self.decay) * ~skip)
        torch._foreach_add_(average, change)
        for target, source in zip(self.network.buffers(), network.buffers(), strict=True):
            target.copy_(source)
