"""ATD, the auxiliary network g (CVPR 2024, arXiv 2401.08209), and UPSR's `atd_real`.

Attribute names are the official ones: they are the keys of published checkpoints.
"""

import math
from typing import Any, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from upsr.config import ATD_TRAINING_KEYS, Atd
from upsr.images import pad_to
from upsr.models.windows import attend, attend_in_groups, cut, relative_position_index

Flavour = Literal["real", "classical"]
DIV2K_MEAN = (0.4488, 0.4371, 0.4040)


class DepthwiseConv(nn.Module):
    """Depthwise convolution and GELU, channels last."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.depthwise_conv = nn.Sequential(conv, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)"""
        return self.depthwise_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvFFN(nn.Module):
    """A feed-forward network with a depthwise convolution added to its hidden layer."""

    def __init__(self, dim: int, hidden: int, kernel_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = DepthwiseConv(hidden, kernel_size)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(x))
        return self.fc2(x + self.dwconv(x))


class WindowAttention(nn.Module):
    """Shifted-window self-attention (SW-MSA)."""

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, qkv: Tensor, index: Tensor, shift: int) -> Tensor:
        """(B, H, W, 3C) -> (B, H, W, C), with H and W multiples of the window."""
        b, h, w, c3 = qkv.shape
        order, back, mask = cut(h, w, self.window, shift, qkv.device)
        qkv = qkv.flatten(1, 2).index_select(1, order).view(b, -1, self.window**2, c3)
        x = self.proj(attend(qkv, self.heads, self.relative_position_bias_table, index, mask))
        return x.flatten(1, 2).index_select(1, back).view(b, h, w, -1)


class TokenDictionaryAttention(nn.Module):
    """Token-dictionary cross-attention (TDCA): pixels query a dictionary of learned tokens."""

    def __init__(self, dim: int, tokens: int, reduced_dim: int) -> None:
        super().__init__()
        self.wq = nn.Linear(dim, reduced_dim)
        self.wk = nn.Linear(dim, reduced_dim)
        self.wv = nn.Linear(dim, dim)
        self.scale = nn.Parameter(torch.full((tokens,), 0.5))

    def forward(self, x: Tensor, dictionary: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, n, C), dictionary (B, m, C) -> (B, n, C) and the similarity (B, n, m), whose rows sum to 1."""
        q, k = F.normalize(self.wq(x), dim=-1), F.normalize(self.wk(dictionary), dim=-1)
        sharpness = 1 + self.scale.clamp(0, 1) * math.log(len(self.scale))
        similarity = (q @ k.transpose(1, 2) * sharpness).softmax(-1)
        return similarity @ self.wv(dictionary), similarity


class CategoryAttention(nn.Module):
    """Adaptive-category self-attention (AC-MSA): pixels attend to those of the same category, anywhere in the image."""

    def __init__(self, dim: int, heads: int, category_size: int) -> None:
        super().__init__()
        self.heads, self.category_size = heads, category_size
        self.proj = nn.Linear(dim, dim)
        self.logit_scale = nn.Parameter(torch.full((1, 1), math.log(10.0)))

    def forward(self, qkv: Tensor, similarity: Tensor) -> Tensor:
        """qkv (B, n, 3C), similarity (B, n, m) -> (B, n, C)

        A pixel's category is its most similar token. Pixels are sorted by category and cut into groups of
        `category_size`; mirroring fills the last one. The sort is stable, so ties do not depend on the device.
        """
        b, n, c3 = qkv.shape
        size = min(n, self.category_size)
        missing = -n % size
        order = similarity.argmax(-1).sort(dim=-1, stable=True).indices
        rows = order + n * torch.arange(b, device=order.device)[:, None]
        grouped = qkv.flatten(0, 1).index_select(0, rows.flatten()).view(b, n, c3)
        if missing:
            grouped = torch.cat([grouped, grouped[:, n - missing :].flip(1)], dim=1)
        scale = self.logit_scale.clamp(max=math.log(100.0)).exp()
        y = attend_in_groups(grouped.view(b, -1, size, c3), self.heads, scale).reshape(b, n + missing, c3 // 3)[:, :n]
        back = torch.empty_like(rows.flatten()).scatter_(0, rows.flatten(), torch.arange(b * n, device=rows.device))
        return self.proj(y.reshape(b * n, -1).index_select(0, back).view(b, n, -1))


class Layer(nn.Module):
    """Three attentions in parallel, a convolutional FFN, and a refinement of the token dictionary."""

    recomputable = True  # see training/memory.py

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        window: int,
        shift: int,
        category_size: int,
        tokens: int,
        reduced_dim: int,
        ffn_kernel: int,
        mlp_ratio: float,
        flavour: Flavour,
        last: bool,
    ) -> None:
        super().__init__()
        self.shift, self.last = shift, last
        self.attention_scale = 1 / math.sqrt(3) if flavour == "real" else 1.0
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        if not last:
            self.norm3 = nn.InstanceNorm1d(tokens, affine=True)
            self.sigma = nn.Parameter(torch.zeros(tokens, 1))
        self.wqkv = nn.Linear(dim, 3 * dim)
        self.attn_win = WindowAttention(dim, window, heads)
        self.attn_atd = TokenDictionaryAttention(dim, tokens, reduced_dim)
        self.attn_aca = CategoryAttention(dim, heads, category_size)
        self.convffn = ConvFFN(dim, int(dim * mlp_ratio), ffn_kernel)

    def forward(self, x: Tensor, dictionary: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, H, W, C), dictionary (B, m, C) -> both, the same shapes."""
        b, h, w, c = x.shape
        normed = self.norm1(x)
        qkv = self.wqkv(normed)
        x_atd, similarity = self.attn_atd(normed.view(b, h * w, c), dictionary)
        x_aca = self.attn_aca(qkv.view(b, h * w, 3 * c), similarity)
        x_win = self.attn_win(qkv, index, self.shift)
        x = x + (x_win + (x_atd + x_aca).view(b, h, w, c)) * self.attention_scale
        x = x + self.convffn(self.norm2(x))
        if not self.last:
            dictionary = self._refine(dictionary, similarity, x.view(b, h * w, c))
        return x, dictionary

    def _refine(self, dictionary: Tensor, similarity: Tensor, x: Tensor) -> Tensor:
        """σ·D + (1−σ)·(mean of the pixels, weighted by their similarity to each token), (B, m, C)."""
        share = F.layer_norm(similarity.transpose(1, 2), similarity.shape[1:2])  # instance normalisation, but faster
        share = (share * self.norm3.weight[:, None] + self.norm3.bias[:, None]).softmax(-1)
        keep = self.sigma.sigmoid()
        return keep * dictionary + (1 - keep) * (share @ x)


class LayerGroup(nn.Module):
    """Layers that share one token dictionary and refine it one after another."""

    def __init__(self, depth: int, flavour: Flavour, dim: int, tokens: int, window: int, **layer: Any) -> None:
        super().__init__()
        self.normalise = flavour == "real"
        td = torch.empty(tokens, dim)
        self.td = nn.Parameter(td if td.is_meta else td.normal_())  # on `meta`, torch imports its compiler for this
        self.layers = nn.ModuleList(
            Layer(
                dim=dim,
                tokens=tokens,
                window=window,
                flavour=flavour,
                shift=window // 2 if i % 2 else 0,
                last=i == depth - 1,
                **layer,
            )
            for i in range(depth)
        )

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        dictionary = self.td.expand(x.shape[0], -1, -1)
        for layer in self.layers:
            if self.normalise:
                dictionary = F.normalize(dictionary, dim=-1)
            x, dictionary = layer(x, dictionary, index)
        return x


class Norm(nn.Module):
    """A LayerNorm under the official name `patch_embed.norm`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class ResidualGroup(nn.Module):
    """A `LayerGroup` and a convolution, with a skip connection."""

    def __init__(self, dim: int, flavour: Flavour, **group: Any) -> None:
        super().__init__()
        self.residual_group = LayerGroup(dim=dim, flavour=flavour, **group)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.patch_embed = Norm(dim) if flavour == "real" else nn.Identity()

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        y = self.residual_group(x, index).permute(0, 3, 1, 2)
        return x + self.patch_embed(self.conv(y).permute(0, 2, 3, 1))


class ATD(nn.Module):
    """LR (B, 3, h, w) in [0, 1] -> SR (B, 3, s·h, s·w), about [0, 1]. Any size from 1×1 up."""

    mean: Tensor
    relative_position_index_SA: Tensor

    def __init__(
        self,
        *,
        scale: int = 4,
        dim: int = 96,
        groups: int = 4,
        layers: int = 6,
        heads: int = 4,
        window: int = 16,
        category_size: int = 128,
        tokens: int = 64,
        reduced_dim: int = 8,
        ffn_kernel: int = 7,
        mlp_ratio: float = 1.0,
        flavour: Flavour = "real",
    ) -> None:
        super().__init__()
        self.scale, self.window = scale, window
        mean, self.std = ((0.5, 0.5, 0.5), 0.5) if flavour == "real" else (DIV2K_MEAN, 1.0)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("relative_position_index_SA", relative_position_index(window))
        # head
        self.conv_first = nn.Conv2d(3, dim, 3, padding=1)
        self.patch_embed = Norm(dim)
        # body
        self.layers = nn.ModuleList(
            ResidualGroup(
                dim,
                flavour,
                depth=layers,
                heads=heads,
                window=window,
                category_size=category_size,
                tokens=tokens,
                reduced_dim=reduced_dim,
                ffn_kernel=ffn_kernel,
                mlp_ratio=mlp_ratio,
            )
            for _ in range(groups)
        )
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        # tail
        self.upsample = nn.Sequential(nn.Conv2d(dim, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        self.apply(_initialise)

    def forward(self, lr: Tensor) -> Tensor:
        h, w = lr.shape[2:]
        x = _flip_to_multiple(lr, self.window)
        x = self.conv_first((x - self.mean) / self.std)
        x = x + self.conv_after_body(self._body(x))
        return (self.upsample(x) * self.std + self.mean)[:, :, : h * self.scale, : w * self.scale]

    def _body(self, x: Tensor) -> Tensor:
        y = self.patch_embed(x.permute(0, 2, 3, 1))
        for group in self.layers:
            y = group(y, self.relative_position_index_SA)
        return self.norm(y).permute(0, 3, 1, 2)


def _flip_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Extends the image to whole windows by its mirror image, edge pixels repeated (as in the official code)."""
    h, w = (-(-size // multiple) * multiple for size in x.shape[2:])
    x = torch.cat([x, x.flip(2)], 2)[:, :, :h]
    x = torch.cat([x, x.flip(3)], 3)[:, :, :, :w]
    return pad_to(x, h, w)  # an image smaller than half a window needs more than one reflection


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def build_atd(cfg: Atd, scale: int) -> ATD:
    """An untrained network from the config section `atd`."""
    return ATD(scale=scale, **cfg.model_dump(exclude=ATD_TRAINING_KEYS))
