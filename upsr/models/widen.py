"""A wider network that computes the same function: Net2WiderNet (Chen et al., ICLR 2016, arXiv 1511.05641).

The wider network has k copies of each channel, and the weight that reads a channel is split among its copies. The
shares are uneven: equal shares would give all copies the same gradients, so they would stay copies.
"""

import math

import torch
import torch.nn as nn
from torch import Tensor

UNEVEN = 0.5  # shares are drawn from 1 ± this, then normalised to sum to 1


def widen_atd(narrow: dict[str, Tensor], atd: nn.Module) -> dict[str, Tensor]:
    """Weights of an ATD -> weights for `atd`, k times as wide and otherwise equal: exactly the same function."""
    wide, k = _widened(narrow, atd.state_dict(), unit=1)
    # `real` normalises the tokens before each layer: k copies of each value make a token √k times as long.
    real = "layers.0.patch_embed.norm.weight" in narrow
    for name, value in wide.items():
        if name.endswith(".td"):
            value.copy_(narrow[name].repeat_interleave(k, 1))
        elif ".wqkv." in name:
            value[: len(value) // 3] /= math.sqrt(k)  # q·k has k times the terms; 1/√d makes up for √k of them
        elif name.endswith(".logit_scale"):
            value.clamp_(max=math.log(100)).sub_(math.log(k) / 2)  # category attention has no 1/√d
        elif real and name.endswith((".attn_atd.wk.weight", ".attn_atd.wv.weight")):
            value *= math.sqrt(k)
        elif real and name.endswith(".sigma"):
            value += math.log(k) / 2
    return wide


def widen_unet(narrow: dict[str, Tensor], unet: nn.Module) -> dict[str, Tensor]:
    """Weights of a UNet -> weights for `unet`, which is k times as wide and otherwise equal.

    Copies are adjacent in units of the smallest normalisation group, so that groups keep their contents. The function
    is exactly the same where every normalisation has 32 groups. At width 48, two have 144 channels in 16 groups;
    widened to 288 channels in 32 groups, they mix channels slightly.
    """
    dim = narrow["time_embed.0.weight"].shape[1]
    unit = dim // math.gcd(32, dim)
    wide, k = _widened(narrow, unet.state_dict(), unit)
    embedding = torch.zeros_like(wide["time_embed.0.weight"])
    embedding[:, ::k] = _repeated(narrow["time_embed.0.weight"], 0, k, unit)  # every k-th frequency is a narrow one
    return wide | {"time_embed.0.weight": embedding}


def _widened(narrow: dict[str, Tensor], like: dict[str, Tensor], unit: int) -> tuple[dict[str, Tensor], int]:
    """Every tensor in the shape it has in `like`, and k. Outputs (dimension 0) are repeated, inputs (1) split."""
    generator = torch.Generator().manual_seed(0)
    wide, factors = {}, {1}
    for name, model in like.items():
        value = narrow[name].to(model.dtype)
        outputs, inputs = (new // old for new, old in zip((*model.shape, 1)[:2], (*value.shape, 1)[:2], strict=True))
        if outputs > 1:
            value = _repeated(value, 0, outputs, unit)
        if inputs > 1:
            value = _repeated(value, 1, inputs, unit)
            value = value * _shares(value, inputs, unit, generator)
        wide[name] = value.clone()
        factors |= {outputs, inputs}
    return wide, max(factors)


def _repeated(x: Tensor, dim: int, times: int, unit: int) -> Tensor:
    """(.., units · unit, ..) -> (.., units · times · unit, ..): every unit is repeated `times` times in a row."""
    return x.unflatten(dim, (-1, 1, unit)).repeat_interleave(times, dim + 1).flatten(dim, dim + 2)


def _shares(weight: Tensor, copies: int, unit: int, generator: torch.Generator) -> Tensor:
    """The share of each input copy in its weight, as a factor that broadcasts against `weight`."""
    outputs, inputs, *kernel = weight.shape
    draws = torch.rand(outputs, inputs // (copies * unit), copies, unit, generator=generator)
    shares = 1 + UNEVEN * (2 * draws - 1)
    return (shares / shares.sum(2, keepdim=True)).view(outputs, inputs, *[1] * len(kernel))
