"""Colours: networks see sRGB; a file may have another profile, and its result keeps it."""

from functools import lru_cache

import numpy as np
import pyvips

PROFILE = "icc-profile-data"  # libvips's name
HALF_LEVEL = 0.5 / 255
LINEAR = 0.0031308  # below it, the curve of sRGB is a line (IEC 61966-2-1)


def to_srgb(rgb: np.ndarray, profile: bytes) -> np.ndarray:
    """(H, W, 3) uint8 or uint16 with an ICC profile -> float32 sRGB, about [0, 1].

    Colours that sRGB lacks lie outside of [0, 1], so that `from_srgb` restores them. Raises `pyvips.Error` for a
    profile that cannot be used.
    """
    image = pyvips.Image.new_from_array(rgb, interpretation="srgb" if rgb.dtype == np.uint8 else "rgb16")
    image.set_type(pyvips.GValue.blob_type, PROFILE, profile)
    linear = image.icc_import(embedded=True, pcs="xyz", intent="relative").colourspace("scrgb").numpy()
    size = np.abs(linear)
    return np.copysign(np.where(size <= LINEAR, 12.92 * size, 1.055 * size ** (1 / 2.4) - 0.055), linear)


def from_srgb(rgb: np.ndarray, profile: bytes, dtype: np.dtype) -> np.ndarray:
    """(H, W, 3) float32 sRGB, about [0, 1] -> uint8 or uint16 in the colours of an ICC profile."""
    size = np.abs(rgb)
    linear = np.where(size <= 12.92 * LINEAR, size / 12.92, ((size + 0.055) / 1.055) ** 2.4)
    image = pyvips.Image.new_from_array(np.copysign(linear, rgb).astype(np.float32), interpretation="scrgb")
    image = image.colourspace("xyz").copy()
    image.set_type(pyvips.GValue.blob_type, PROFILE, profile)
    return image.icc_export(pcs="xyz", depth=np.iinfo(dtype).bits, intent="relative").numpy()


@lru_cache(maxsize=16)
def is_srgb(profile: bytes) -> bool:
    """True if a profile moves no colour by half a level: most profiles in files are sRGB's.

    Raises `pyvips.Error` for a profile that cannot be used.
    """
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    return bool(np.abs(to_srgb(grid, profile) - grid / 255).max() < HALF_LEVEL)
