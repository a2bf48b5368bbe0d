"""The operations of the degradation, on (B, 3, H, W) float32 images in [0, 1].

Random parameters are drawn from numpy generators on the CPU and sent to the device; noise is drawn on the device.
Nothing is read back, so the CPU never waits for the GPU.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from upsr.degradation.draws import Draws
from upsr.images import mirrored, round8

MODES = ("area", "bilinear", "bicubic")
USM_RADIUS, USM_WEIGHT, USM_THRESHOLD = 25, 0.5, 10


def filter2d(x: Tensor, kernels: Tensor) -> Tensor:
    """Correlates sample b of (B, C, H, W) with kernel b of (B, kh, kw), odd sides; the border is reflected."""
    batch, channels = x.shape[:2]
    # Every channel of every sample becomes a channel of one image, filtered by its own kernel.
    planes = _reflect(x, kernels.shape[1] // 2, kernels.shape[2] // 2).flatten(0, 1)
    weights = kernels.repeat_interleave(channels, dim=0)[:, None]
    with torch.autocast(x.device.type, enabled=False):
        return F.conv2d(planes[None], weights, groups=batch * channels).view_as(x)


def _reflect(x: Tensor, rows: int, columns: int) -> Tensor:
    """Pads all sides by reflection, repeated where the image is smaller than the padding."""
    if x.shape[2] > rows and x.shape[3] > columns:
        return F.pad(x, (columns, columns, rows, rows), mode="reflect")
    height, width = x.shape[2:]
    x = x.index_select(3, mirrored(width, -columns, width + columns, x.device))
    return x.index_select(2, mirrored(height, -rows, height + rows, x.device))


def usm_sharpen(x: Tensor) -> Tensor:
    """Unsharp masking as Real-ESRGAN does it (arXiv 2107.10833, section 3.5): only where a detail exceeds 10/255."""
    residual = x - _usm_blur(x)
    soft_mask = _usm_blur((residual.abs() * 255 > USM_THRESHOLD).float())
    sharp = (x + USM_WEIGHT * residual).clamp(0, 1)
    return torch.lerp(x, sharp, soft_mask)


def _usm_blur(x: Tensor) -> Tensor:
    sigma = 0.3 * (USM_RADIUS - 1) + 0.8  # what OpenCV derives from the kernel size if no sigma is given
    bell = torch.exp(-0.5 * (torch.arange(-USM_RADIUS, USM_RADIUS + 1, device=x.device) / sigma) ** 2)
    kernels = (bell / bell.sum()).expand(len(x), -1)
    return filter2d(filter2d(x, kernels[:, :, None]), kernels[:, None, :])


def random_factor(rng: np.random.Generator, *, up_down_keep: tuple[float, ...], range: tuple[float, float]) -> float:
    """Draws the factor of a resize by the keys of `config.Resize`."""
    bounds = ((1, range[1]), (range[0], 1), (1, 1))
    return rng.uniform(*bounds[rng.choice(3, p=np.divide(up_down_keep, sum(up_down_keep)))])


def random_resize(x: Tensor, name: str, size: Sequence[int], draws: Draws) -> Tensor:
    """Resizes to (height, width) by area, bilinear or bicubic interpolation. The result may leave [0, 1]."""
    draws.notes[f"{name}.mode"] = mode = MODES[draws.batch.integers(len(MODES))]
    return F.interpolate(x, tuple(size), mode=mode)


def random_noise(
    x: Tensor,
    name: str,
    draws: Draws,
    *,
    gaussian: float,
    sigma: tuple[float, float],
    poisson_scale: tuple[float, float],
    gray: float,
) -> Tensor:
    """Adds noise by the keys of `config.Noise`: one kind per batch, strength and greyness per sample."""
    is_gray = draws.chance(f"{name}.gray", gray)
    if draws.batch.random() < gaussian:
        return gaussian_noise(x, draws.uniform(f"{name}.sigma", sigma), is_gray, draws.fields)
    return poisson_noise(x, draws.uniform(f"{name}.poisson_scale", poisson_scale), is_gray, draws.fields)


def gaussian_noise(x: Tensor, sigma: Tensor, gray: Sequence[bool], fields: Sequence[torch.Generator]) -> Tensor:
    """Adds N(0, σ²), σ (B,) on the 0..255 scale; one field for all channels where `gray` (B) is set. Clips to [0, 1].

    Each sample's noise comes from its own generator in `fields`.
    """
    shape, draw = x.shape[2:], partial(torch.randn, device=x.device)
    noise = [draw(1 if one else 3, *shape, generator=f).expand(3, *shape) for one, f in zip(gray, fields, strict=True)]
    return torch.addcmul(x, torch.stack(noise), per_sample(sigma) / 255).clamp_(0, 1)


def poisson_noise(x: Tensor, scale: Tensor, gray: Sequence[bool], fields: Sequence[torch.Generator]) -> Tensor:
    """Adds `scale` (B,) times photon noise: Poisson(v x)/v - x, v from `_photons`. Clips to [0, 1].

    Where `gray` (B) is set, photons are counted on the grey image and all channels get the same noise. Each sample's
    noise comes from its own generator in `fields`.
    """
    is_gray = per_sample(torch.tensor(gray).to(x.device, non_blocking=True))
    rate = round8(torch.where(is_gray, 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:], x))
    photons = per_sample(_photons(rate))
    expected = rate * photons
    counts = [
        torch.poisson(rates[: 1 if one else 3], field).expand_as(rates)
        for rates, one, field in zip(expected, gray, fields, strict=True)
    ]
    noise = torch.stack(counts).sub_(expected).div_(photons)
    return torch.addcmul(x, noise, per_sample(scale)).clamp_(0, 1)


def _photons(x: Tensor) -> Tensor:
    """(B, C, H, W) of 8-bit values -> (B,): 2^ceil(log2 n), n the number of distinct values in a sample."""
    values = (x * 255).round().long().flatten(1)
    distinct = x.new_zeros(len(x), 256).scatter_(1, values, 1.0).sum(1)
    return torch.exp2(torch.frexp(distinct - 1).exponent.float())  # the bit length of n - 1 is ceil(log2 n), exactly


def per_sample(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), to broadcast against images."""
    return values.view(-1, 1, 1, 1)
