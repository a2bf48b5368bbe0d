"""JPEG's losses on the device: colour conversion, chroma at half size, DCT, quantisation. No entropy coding."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

# ITU-R T.81, tables K.1 and K.2. K.1 is used transposed, as in the DiffJPEG that Real-ESRGAN and UPSR train with.
# That is a mistake (untransposed, the result is twice as close to libjpeg's), kept to make the same training data.
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))
# JFIF 1.02
RGB_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
YCBCR_TO_RGB = ((1, 0, 1.402), (1, -0.344136, -0.714136), (1, 1.772, 0))


def jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """(B, 3, H, W) RGB in [0, 1], any size, and `quality` (B,) in 1..100 -> the image after JPEG 4:2:0, in [0, 1]."""
    height, width = x.shape[2:]
    # Repeats the edge pixels, as encoders do: black would colour the last blocks.
    if height % 16 or width % 16:
        x = F.pad(x, (0, -width % 16, 0, -height % 16), mode="replicate")
    factor = torch.where(quality < 50, 50 / quality, 2 - quality / 50).view(-1, 1, 1, 1)
    with torch.autocast(x.device.type, enabled=False):
        return _code(x * 255 - 128, factor)[:, :, :height, :width].add(128).div_(255).clamp_(0, 1)


def _code(x: Tensor, factor: Tensor) -> Tensor:
    """RGB minus 128 -> the same after coding. JPEG's own shift: it takes 128 from Y and keeps Cb, Cr around 0."""
    dct, luma, chroma, to_ycbcr, to_rgb = _constants(x.device)
    planes = (to_ycbcr @ x.flatten(2)).view_as(x)
    y = _quantise(planes[:, :1], dct, luma * factor)
    cb_cr = _quantise(F.avg_pool2d(planes[:, 1:], 2), dct, chroma * factor)
    planes = torch.cat([y, F.interpolate(cb_cr, scale_factor=2)], dim=1)
    return (to_rgb @ planes.flatten(2)).view_as(x)


def _quantise(planes: Tensor, dct: Tensor, table: Tensor) -> Tensor:
    """Rounds the DCT coefficients of each 8x8 block of (B, C, H, W) to multiples of `table` (B, 1, 64, 1)."""
    b, c, h, w = planes.shape
    table = table.clamp(min=1)  # as in libjpeg: quality 100 would divide by zero
    blocks = F.pixel_unshuffle(planes, 8).view(b, c, 64, -1)
    blocks = dct.T @ (dct @ blocks).div_(table).round_().mul_(table)
    return F.pixel_shuffle(blocks.view(b, c * 64, h // 8, w // 8), 8)


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, ...]:
    """The 64x64 matrix of the 2-D DCT (orthonormal: its transpose inverts it), both tables, both colour matrices.

    Cached per device: a copy from the host would make every call wait.
    """
    u, i = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    dct = torch.cos((2 * i + 1) * u * math.pi / 16) / 2
    dct[0] /= math.sqrt(2)
    luma = torch.tensor(LUMA, dtype=torch.float32).T.reshape(64, 1)
    chroma = F.pad(torch.tensor(CHROMA, dtype=torch.float32), (0, 4, 0, 4), value=99).view(64, 1)
    constants = (torch.kron(dct, dct), luma, chroma, torch.tensor(RGB_TO_YCBCR), torch.tensor(YCBCR_TO_RGB))
    return tuple(constant.to(device) for constant in constants)
