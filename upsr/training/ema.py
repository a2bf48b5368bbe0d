"""The exponential moving average of a network's weights."""

import copy

import torch
import torch.nn as nn
from torch import Tensor


class Ema:
    """Follows a network: ema ← decay · ema + (1−decay) · weights, buffers copied. `network` is the average, to use."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, skip: Tensor) -> None:
        """One step after the network's; none where `skip` is true, which is found out on the device."""
        average: list[Tensor] = list(self.network.parameters())
        towards = list(torch._foreach_sub(list[Tensor](network.parameters()), average))
        torch._foreach_mul_(towards, (1 - self.decay) * ~skip)
        torch._foreach_add_(average, towards)
        for mine, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)
