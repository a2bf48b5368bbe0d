"""Where an image has detail: its edges E and its high frequencies H.

Both are measured in LR pixels, so the values of y and of images at HR size are comparable. `pixel` is the side of an
image's pixel in LR pixels: 1 for y, 1/s at HR size.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from upsr.images import pad_to

LEAST = 1 / 255  # an image in which nothing exceeds one grey level is flat, not full of weak edges
DEXINED_MEAN = (103.939, 116.779, 123.68)  # blue, green, red
DEXINED_STEP = 16  # it downsamples by this factor, so sides must be multiples of it

Detector = Callable[[Tensor, float], Tensor]
"""(image (B, 3, H, W) in [0, 1], pixel) -> edge strength of each pixel, (B, 1, H, W), at least 0."""


def gray(x: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 1, H, W) in [0, 1]: full-range luma of BT.601."""
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def sobel(x: Tensor, pixel: float) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 1, H, W), at least 0: the gradient's magnitude per LR pixel, by Sobel's filters.

    Raises `ValueError` where kornia is not installed.
    """
    try:
        from kornia.filters import spatial_gradient
    except ImportError:
        raise ValueError(
            "uncertainty.variant: edges need the extra `edges`: pip install 'upsr[edges]', or use `residual`"
        ) from None
    gradient: Tensor = spatial_gradient(gray(x), "sobel")
    return gradient.norm(dim=2) / pixel


class LearnedEdges(nn.Module):
    """A trained DexiNed (Soria et al., WACV 2020): (B, 3, H, W) in [0, 1] -> edge probability, (B, 1, H, W).

    A model's weights file includes its weights. Raises `ValueError` where kornia is not installed.
    """

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        try:
            from kornia.filters.dexined import DexiNed
        except ImportError:
            raise ValueError(
                "uncertainty.edges: `dexined` needs the extra `edges`: pip install 'upsr[edges]', or use `sobel`"
            ) from None
        self.network = DexiNed(pretrained=False).eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(DEXINED_MEAN).view(1, 3, 1, 1), persistent=False)

    def load(self, path: str | Path) -> None:
        """Loads kornia's checkpoint without executing it. Raises `FileNotFoundError`; `ValueError` for another file."""
        try:
            self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except FileNotFoundError:
            raise
        except Exception:  # torch raises a dozen exception types for broken and for foreign files
            raise ValueError(
                f"uncertainty.edge_weights: {path}: not the weights of kornia's DexiNed: fetch them, or use sobel"
            ) from None

    def train(self, mode: bool = True) -> "LearnedEdges":
        """Always stays in evaluation mode: the batch statistics are fixed."""
        return super().train(False)

    def forward(self, x: Tensor, pixel: float) -> Tensor:
        height, width = x.shape[2:]
        x = pad_to(x, *(-(-side // DEXINED_STEP) * DEXINED_STEP for side in (height, width)))
        return self.network(x.flip(1) * 255 - self.mean).sigmoid()[:, :, :height, :width]


def high_pass(x: Tensor, pixel: float, cutoff: float, softness: float) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> |F⁻¹(T(r) · F(x))|, (B, 1, H, W), at least 0: what varies faster than `cutoff`.

    A cutoff of 1 is the LR Nyquist frequency. T rises smoothly from 0 to 1 (3s² − 2s³) over a width of `softness`
    around it, so an edge does not ring across the image. The image is mirrored, so its borders are not edges.
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
    """(B, C, H, W) -> (B, C, 1, 1), at least 1/255: the value that `percentile` % of the pixels do not exceed."""
    flat = x.flatten(2)
    rank = max(1, round(percentile / 100 * flat.shape[2]))
    return flat.kthvalue(rank, dim=2).values.clamp(min=LEAST)[:, :, None, None]
