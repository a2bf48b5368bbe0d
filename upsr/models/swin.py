"""The Swin transformer stage inside the UNet. Attribute names are the official ones."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from upsr.models.windows import attend, attention_mask, merge, partition, relative_position_index


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with gcd(32, channels) groups: the official 32 where 32 divides the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


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
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

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
        h, w = x.shape[2:]
        mask = attention_mask(h, w, self.window, self.shift, x.device, self.official_mask)
        x = F.pad(x, (0, -w % self.window, 0, -h % self.window)).permute(0, 2, 3, 1)
        whole_h, whole_w = x.shape[1:3]
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x
        x = merge(self.attn(partition(x, self.window), mask), self.window, whole_h, whole_w)
        x = torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x
        return x[:, :h, :w].permute(0, 3, 1, 2)


class Projection(nn.Module):
    """A 1×1 convolution under the official names `patch_embed.proj` and `patch_unembed.proj`."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, out_channels, 1)

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
