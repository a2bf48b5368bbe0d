"""The field's two conventions for PSNR and SSIM. Results of one cannot be compared with those of the other."""

from dataclasses import dataclass

from torch import Tensor

from upsr.images import luma


@dataclass(frozen=True)
class Protocol:
    """Both conventions compare the Y channel of 8-bit images; they differ in the border."""

    name: str
    border: int
    """Pixels cut off at each edge, as a multiple of the scale."""


PROTOCOLS = {p.name: p for p in (Protocol("basicsr", border=1), Protocol("upsr", border=0))}


def for_fidelity(x: Tensor, protocol: Protocol, scale: int) -> Tensor:
    """(B, 3, H, W) RGB in [0, 1], rounded to 8 bit -> (B, 1, h, w) float64: Y of BT.601 in 16..235, border cut off.

    Empty where the image is no larger than its two borders.
    """
    height, width = x.shape[2:]
    cut = protocol.border * scale
    return luma(x.double())[:, :, cut : height - cut, cut : width - cut] * 255
