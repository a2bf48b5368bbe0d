"""The Swin transformer stage inside the UNet. Attribute names are the official ones."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from upsr.models.windows import attend, cut, relative_position_index


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with gcd(32, channels) groups: the official 32 where 32 divides the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


class Pointwise(nn.Conv2d):
    """A 1×1 convolution, computed as a matrix product: on one CPU thread, torch's convolution takes twice as long."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Multi-head self-attention in a window, with a relative position bias."""

    relative_position_index: Tensor

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        table, index = self.relative_position_bias_table, self.relative_position_index
        return self.proj(attend(self.qkv(x), self.heads, table, index, mask))


class Mlp(nn.Module):
    """Two 1×1 convolutions with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Pointwise(dim, hidden)
        self.fc2 = Pointwise(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Attention in windows, then an MLP, both residual, on (B, C, H, W) of any size."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, mlp_ratio: float, official_mask: bool) -> None:
        super().__init__()
        self.window, self.shift, self.official_mask = window, shift, official_mask
        self.norm1, self.norm2 = group_norm(dim), group_norm(dim)
        self.attn = Attention(dim, window, heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        order, back, mask = cut(h, w, self.window, self.shift, x.device, self.official_mask)
        x = x.permute(0, 2, 3, 1).flatten(1, 2).index_select(1, order).view(b, -1, self.window**2, c)
        x = self.attn(x, mask).flatten(1, 2).index_select(1, back)
        return x.view(b, h, w, c).permute(0, 3, 1, 2)


class Projection(nn.Module):
    """A 1×1 convolution under the official names `patch_embed.proj` and `patch_unembed.proj`."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = Pointwise(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class SwinStage(nn.Module):
    """(B, channels, H, W) -> the same shape, through blocks of width `dim`; every other block is shifted."""

    def __init__(
        self,
        channels: int,
        *,
        dim: int,
        heads: int,
        window: int,
        depth: int,
        mlp_ratio: float,
        shifted: bool,
        official_mask: bool,
    ) -> None:
        super().__init__()
        self.patch_embed = Projection(channels, dim)
        self.patch_unembed = Projection(dim, channels)
        self.blocks = nn.Sequential(
            *(
                SwinBlock(dim, heads, window, window // 2 if shifted and i % 2 else 0, mlp_ratio, official_mask)
                for i in range(depth)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.patch_unembed(self.blocks(self.patch_embed(x)))
