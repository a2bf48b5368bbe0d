"""Transparency: colours below it, and results without fringes."""

import cv2
import numpy as np

from upsr.photo.reading import peak, quantised

REACHES = (24.0, 6.0, 1.5)  # pixels: blurs that spread the colours of what is visible below what is not
KEPT = 1 / 16  # from this alpha on, a pixel keeps its colour


def fill(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """(H, W, C) pixels and (H, W, 1) alpha of one dtype -> pixels with the colours of what is visible spread below.

    What is stored where nothing is seen, often black, would bleed into the visible edge: a dark fringe.
    """
    a = alpha.astype(np.float32) / peak(alpha.dtype)
    seen = pixels * a
    filled = np.broadcast_to(seen.mean((0, 1)) / max(a.mean(), 1e-6), pixels.shape)
    for reach in REACHES:  # the nearest colours last
        spread, cover = (_blur(x, reach) for x in (seen, a))
        filled = np.where(cover > 1e-3, spread / np.maximum(cover, 1e-3), filled)
    share = np.minimum(a / KEPT, 1)
    return quantised((share * pixels + (1 - share) * filled) / peak(pixels.dtype), pixels.dtype)


def _blur(x: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(x, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE).reshape(x.shape)


def is_flat(alpha: np.ndarray) -> bool:
    """Whether all pixels are equally transparent."""
    return bool((alpha == alpha[0, 0]).all())


def limits(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 1) alpha -> its least and greatest value around each pixel.

    An upscaled alpha within them is opaque and transparent where its source is, whatever a network makes of it.
    """
    around = np.ones((3, 3), np.uint8)
    return cv2.erode(alpha, around).reshape(alpha.shape), cv2.dilate(alpha, around).reshape(alpha.shape)
