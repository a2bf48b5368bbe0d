"""The Swin UNet of UPSR, the denoiser's network. Attribute names are the official ones, the keys of `upsr.pth`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from upsr.config import Unet
from upsr.models.swin import Pointwise, SwinStage, group_norm


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """t (B,) -> (B, dim): cosines, then sines, of t at `dim`/2 frequencies from 1 down to 1/10000."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angles = t.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResBlock(nn.Module):
    """Two convolutions; the timestep scales and shifts the normalisation before the second one."""

    def __init__(self, channels: int, out_channels: int, time_dim: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(group_norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, 2 * out_channels))
        # The identity replaces the official dropout, which is 0 in UPSR: the last convolution keeps its index 3.
        last = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.out_layers = nn.Sequential(group_norm(out_channels), nn.SiLU(), nn.Identity(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else Pointwise(channels, out_channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.in_layers(x)
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.out_layers[0](h), 1 + scale)
        return self.skip_connection(x) + self.out_layers[1:](h)


class Downsample(nn.Module):
    """Halves the resolution by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Doubles the resolution by nearest-neighbour interpolation and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return convolve_doubled(self.conv, x)


def convolve_doubled(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3×3 convolution of x enlarged twice by nearest-neighbour interpolation, (B, C, H, W) -> (B, C', 2H, 2W).

    Each output pixel sees 2×2 different pixels of x. So it is a transposed 4×4 convolution of x with stride 2, whose
    taps are sums of the weights, and which takes 4/9 of the multiplications.
    """
    taps = (conv.weight.flatten(2) @ _doubling(conv.weight.device).to(conv.weight)).unflatten(2, (4, 4))
    return F.conv_transpose2d(x, taps.transpose(0, 1), conv.bias, stride=2, padding=1)


def _doubling(device: torch.device) -> Tensor:
    """(9, 16): which of the 3×3 weights the 4×4 taps sum: weight u is in the taps 2 − u and 3 − u of each axis."""
    axis = torch.eye(3, device=device).flip(1)
    axis = F.pad(axis, (0, 1)) + F.pad(axis, (1, 0))
    return torch.kron(axis, axis)


class Block(nn.Sequential):
    """A sequence of layers, of which the residual blocks also get the timestep embedding."""

    recomputable = True  # see training/memory.py

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


class Decoder(nn.Module):
    """The upward path of a UNet, and the convolutions that turn its features into an image at HR size."""

    def __init__(
        self,
        widths: Sequence[int],
        *,
        scale: int,
        res_blocks: int,
        tail_dim: int,
        hr_images: int,
        out_channels: int,
        residual: Callable[[int, int], ResBlock],
        swin: Callable[[int, int], SwinStage],
    ) -> None:
        super().__init__()
        self.scale = scale
        # upward path
        skips = skip_widths(widths, res_blocks)
        channels = widths[-1]
        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for i in range(res_blocks + 1):
                block: list[nn.Module] = [residual(channels + skips.pop(), width)]
                channels = width
                if i == 0:
                    block.append(swin(channels, level))
                if level and i == res_blocks:
                    block.append(Upsample(channels))
                self.output_blocks.append(Block(*block))
        # tail
        self.conv_before_upsample = nn.Sequential(nn.Conv2d(channels, tail_dim, 3, padding=1), nn.LeakyReLU())
        self.conv_up1 = nn.Conv2d(tail_dim, tail_dim, 3, padding=1)
        if scale == 4:
            self.conv_up2 = nn.Conv2d(tail_dim, tail_dim, 3, padding=1)
        self.conv_hr = nn.Conv2d(tail_dim + 3 * hr_images, tail_dim, 3, padding=1)
        self.conv_last = nn.Conv2d(tail_dim, out_channels, 3, padding=1)

    def decode(self, h: Tensor, skips: Sequence[Tensor], embedding: Tensor, hr: Tensor | None) -> Tensor:
        """Features of the middle block and skip features, the last one used first -> (B, out_channels, s·h, s·w).

        `hr`, (B, 3 · `hr_images`, s·h, s·w), is None for a decoder without images at HR size.
        """
        for block, skip in zip(self.output_blocks, reversed(skips), strict=True):
            h = block(torch.cat([h, skip], dim=1), embedding)
        h = self.conv_before_upsample(h)
        for conv in [self.conv_up1, self.conv_up2] if self.scale == 4 else [self.conv_up1]:
            h = F.leaky_relu(convolve_doubled(conv, h), 0.2)
        h = h if hr is None else torch.cat([h, hr.to(h.dtype)], dim=1)
        return self.conv_last(F.leaky_relu(self.conv_hr(h), 0.2))


def skip_widths(widths: Sequence[int], res_blocks: int) -> list[int]:
    """Channels of the skip features: of the first convolution, every residual block and every downsampling."""
    last = len(widths) - 1
    return [widths[0]] + [w for i, w in enumerate(widths) for _ in range(res_blocks + (i < last))]


class UNet(Decoder):
    """Noisy image, timestep, condition -> image at HR size. LR height and width are multiples of `downscale`.

    `lr_size` (official: 64) decides where windows are shifted: not at levels where an LR patch of that side fits one
    window. `official_mask`: see `windows.attention_mask`. With two `branches`, a second decoder, `smooth`,
    makes smooth structure; the decoder with the official names makes detail and texture. With `hr_inputs`, the last
    convolutions also see two images at HR size. With `zero_init`, the output starts at zero.
    """

    def __init__(
        self,
        *,
        scale: int = 4,
        dim: int = 160,
        channel_mult: Sequence[int] = (1, 2, 2, 4),
        res_blocks: int = 2,
        swin_dim: int = 192,
        swin_depth: int = 2,
        window: int = 8,
        head_dim: int = 32,
        mlp_ratio: float = 4,
        tail_dim: int = 128,
        condition_images: int = 2,
        lr_size: int = 64,
        official_mask: bool = False,
        branches: int = 1,
        hr_inputs: bool = False,
        out_channels: int = 3,
        zero_init: bool = False,
    ) -> None:
        def residual(channels: int, out_channels: int) -> ResBlock:
            return ResBlock(channels, out_channels, 4 * dim)

        def swin(channels: int, level: int) -> SwinStage:
            return SwinStage(
                channels,
                dim=swin_dim,
                heads=swin_dim // head_dim,
                window=window,
                depth=swin_depth,
                mlp_ratio=mlp_ratio,
                shifted=lr_size // 2**level > window,
                official_mask=official_mask,
            )

        # decoder
        widths = [dim * mult for mult in channel_mult]
        decoder: dict[str, Any] = {
            "widths": widths,
            "scale": scale,
            "res_blocks": res_blocks,
            "tail_dim": tail_dim,
            "hr_images": 2 if hr_inputs else 0,
            "out_channels": out_channels,
            "residual": residual,
            "swin": swin,
        }
        super().__init__(**decoder)
        self.dim, self.downscale = dim, 2 ** (len(widths) - 1)

        # encoder
        self.time_embed = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, 4 * dim))
        channels = widths[0]
        first = nn.Conv2d(3 * scale**2 * (1 + condition_images), channels, 3, padding=1)
        self.input_blocks = nn.ModuleList([Block(first)])
        for level, width in enumerate(widths):
            for i in range(res_blocks):
                layers = [residual(channels, width)] + ([swin(width, level)] if i == 0 else [])
                self.input_blocks.append(Block(*layers))
                channels = width
            if level < len(widths) - 1:
                self.input_blocks.append(Block(Downsample(channels)))

        # middle block, second decoder
        middle = swin(channels, len(widths) - 1)
        self.middle_block = Block(residual(channels, channels), middle, residual(channels, channels))
        self.smooth = Decoder(**decoder) if branches == 2 else None
        for last in [d.conv_last for d in (self, self.smooth) if d is not None] if zero_init else []:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(
        self, x: Tensor, t: Tensor, condition: Tensor, detail: Tensor | None = None, hr: Tensor | None = None
    ) -> Tensor:
        """x (B, 3s², h, w) scaled, t (B,) from 0, condition (B, images·3s², h, w) -> (B, out_channels, s·h, s·w).

        `detail` is W in [0, 1], (B, 1 or out_channels, s·h, s·w): two branches return W ⊙ detail + (1−W) ⊙ smooth.
        `hr`, (B, 6, s·h, s·w), is what the last convolutions see with `hr_inputs`.
        """
        embedding = self.time_embed(timestep_embedding(t, self.dim))
        h = torch.cat([x, condition], dim=1)
        skips = []
        for block in self.input_blocks:
            h = block(h, embedding)
            skips.append(h)
        h = self.middle_block(h, embedding)
        out = self.decode(h, skips, embedding, hr)
        if self.smooth is not None:
            assert detail is not None
            out = detail * out + (1 - detail) * self.smooth.decode(h, skips, embedding, hr)
        return out


def build_unet(cfg: Unet, scale: int) -> UNet:
    """An untrained network from the config section `unet`."""
    return UNet(
        scale=scale,
        condition_images=len(cfg.condition),
        out_channels=4 if cfg.skip == "edm" else 3,
        zero_init=cfg.skip != "none",
        **cfg.model_dump(exclude={"condition", "placebo", "skip", "sigma_data"}),
    )
