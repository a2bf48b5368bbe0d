"""Where a picture has detail: its edges E and its high frequencies H.

Both are measured in units of LR pixels, so that y and its enlarged successors tell of the same things: `pixel` is the
side of a picture's pixel in LR pixels, 1 for y, 1/s for a picture at HR size.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from upsr.images import pad_to

LEAST = 1 / 255  # a picture in which nothing exceeds one grey level is flat, not full of weak edges
DEXINED_MEAN = (103.939, 116.779, 123.68)  # blue, green, red
DEXINED_STEP = 16  # its side outputs are so many times smaller

Detector = Callable[[Tensor, float], Tensor]
"""(picture (B, 3, H, W) in [0, 1], pixel) -> how much of an edge each place is, (B, 1, H, W), from 0."""


def gray(x: Tensor) -> Tensor:
    """Luma of BT.601, full range, (B, 1, H, W)."""
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def sobel(x: Tensor, pixel: float) -> Tensor:
    """The gradient's magnitude per LR pixel, by Sobel's filters."""
    try:
        from kornia.filters import spatial_gradient
    except ImportError:
        raise ValueError("uncertainty.variant: edges need kornia: pip install kornia, or choose `residual`") from None
    gradient: Tensor = spatial_gradient(gray(x), "sobel")
    return gradient.norm(dim=2) / pixel


class LearnedEdges(nn.Module):
    """A trained DexiNed (Soria et al., WACV 2020): the probability of an edge. Its weights come with the model's."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        try:
            from kornia.filters.dexined import DexiNed
        except ImportError:
            raise ValueError("uncertainty.edges: `dexined` needs kornia: pip install kornia, or use `sobel`") from None
        self.network = DexiNed(pretrained=False).eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(DEXINED_MEAN).view(1, 3, 1, 1), persistent=False)

    def load(self, path: str | Path) -> None:
        """Reads kornia's checkpoint, executing nothing. Raises `ValueError` for another file."""
        try:
            self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except FileNotFoundError:
            raise
        except Exception:  # torch raises a dozen kinds for broken and for foreign files
            raise ValueError(f"uncertainty.edge_weights: {path}: not the weights of kornia's DexiNed") from None

    def train(self, mode: bool = True) -> "LearnedEdges":
        """Stays as it was trained: its batch statistics never move."""
        return super().train(False)

    def forward(self, x: Tensor, pixel: float) -> Tensor:
        height, width = x.shape[2:]
        x = pad_to(x, *(-(-side // DEXINED_STEP) * DEXINED_STEP for side in (height, width)))
        return self.network(x.flip(1) * 255 - self.mean).sigmoid()[:, :, :height, :width]


def high_pass(x: Tensor, pixel: float, cutoff: float, softness: float) -> Tensor:
    """|F⁻¹(T(r) · F(x))|: what varies faster than `cutoff` (1: LR's Nyquist frequency), (B, 1, H, W), from 0.

    T rises from 0 to 1 over a width of `softness` around the cutoff, without a corner (3s² − 2s³), so that an edge
    does not ring across the picture. The picture is continued by its mirror image, so that its borders are no edges.
    """
    x = gray(x)
    height, width = x.shape[2:]
    x = torch.cat([x, x.flip(2)], 2)
    x = torch.cat([x, x.flip(3)], 3)
    rows = torch.fft.fftfreq(2 * height, device=x.device)[:, None]
    columns = torch.fft.rfftfreq(2 * width, device=x.device)[None]
    radius = torch.hypot(rows, columns) * 2 / pixel
    s = ((radius - cutoff) / softness + 0.5).clamp(0, 1)
    kept = torch.fft.irfft2(torch.fft.rfft2(x) * (3 * s**2 - 2 * s**3), s=x.shape[2:])
    return kept[:, :, :height, :width].abs()


def unit(x: Tensor, percentile: float) -> Tensor:
    """(B, C, H, W) from 0 -> (B, C, 1, 1): the magnitude that `percentile` % of the places do not exceed."""
    flat = x.flatten(2)
    rank = max(1, round(percentile / 100 * flat.shape[2]))
    return flat.kthvalue(rank, dim=2).values.clamp(min=LEAST)[:, :, None, None]
