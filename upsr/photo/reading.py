"""Reads image files of any format, upright, with all their bits, and refuses those that are damaged."""

import io
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyvips
from PIL import Image, ImageOps

from upsr.files import ImageError, check_regular
from upsr.photo import colour, jpeg, tiff
from upsr.photo.fork import not_after_fork

MAX_PIXELS = 2**29
"""The pixels of an image that is read, at most. A file of some kB can hold any number of them."""

PADDING = "extraneous bytes before marker 0xd9"  # what some cameras write before a JPEG's end
HEIC = frozenset(b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"))
DEPTHS = ("uchar", "ushort")
EXIF, IPTC = "exif-data", "iptc-data"  # libvips's names

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray
"""What `as_photo` takes."""

logging.getLogger("pyvips").setLevel(logging.ERROR)  # a decoder's own words: what matters is raised


class FramesError(ImageError):
    """An image file of several frames or pages."""


@dataclass(frozen=True)
class Photo:
    """An image in memory, upright."""

    pixels: np.ndarray
    """(H, W, 1 or 3) uint8, uint16, or float32 in [0, 1]: grey or RGB, in the colours of `profile`."""
    alpha: np.ndarray | None = None
    """(H, W, 1) of the same dtype."""
    profile: bytes | None = None
    """The ICC profile of the file."""
    header: pyvips.Image | None = None
    """EXIF, XMP, IPTC and the resolution of the file: an image of one pixel that carries them."""

    @property
    def foreign(self) -> bool:
        """Whether its colours must be converted to sRGB."""
        return self.profile is not None and self.pixels.shape[2] == 3 and not colour.is_srgb(self.profile)

    def rgb(self, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
        """A part as (h, w, 3) float32 sRGB, in [0, 1] but for colours that sRGB lacks; grey is repeated."""
        part = np.ascontiguousarray(self.pixels[rows, columns])
        if self.profile is not None and self.foreign:
            return colour.to_srgb(part, self.profile)
        part = part.astype(np.float32) / peak(part.dtype)
        return part if part.shape[2] == 3 else np.repeat(part, 3, axis=2)

    def stored(self, rgb: np.ndarray) -> np.ndarray:
        """The inverse of `rgb` for an image of the same kind: (h, w, 3) float32 -> (h, w, 1 or 3) as `pixels` is."""
        if self.profile is not None and self.foreign:
            return colour.from_srgb(rgb, self.profile, self.pixels.dtype)
        return quantised(rgb if self.pixels.shape[2] == 3 else rgb.mean(axis=2, keepdims=True), self.pixels.dtype)

    def plain(self) -> "Photo":
        """The same image in sRGB, without profile."""
        pixels = quantised(self.rgb(), self.pixels.dtype) if self.foreign else self.pixels
        return replace(self, pixels=pixels, profile=None)

    def array(self) -> np.ndarray:
        """(H, W, C) in sRGB of the file's dtype; C is 1 (grey), 2 (with alpha), 3, or 4 (with alpha)."""
        pixels = self.plain().pixels
        return pixels if self.alpha is None else np.concatenate([pixels, self.alpha], axis=2)


def peak(dtype: np.dtype) -> int:
    """The value of white."""
    return np.iinfo(dtype).max if dtype.kind == "u" else 1


def quantised(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Floats in [0, 1], clipped to it -> `dtype`, rounded where it holds integers."""
    values = values.clip(0, 1) * peak(dtype)
    return (values.round() if dtype.kind == "u" else values).astype(dtype)


def as_photo(image: ImageLike) -> Photo:
    """A path, a PIL image, or an array (H, W) or (H, W, C) with C up to 4: uint8, uint16, or float in [0, 1].

    Raises `ValueError` for anything else, and `ImageError` as `open_photo`.
    """
    if isinstance(image, str | os.PathLike):
        return open_photo(Path(image))
    if isinstance(image, Image.Image):
        return _from_pillow(image)
    if not isinstance(image, np.ndarray):
        raise ValueError(f"{type(image).__name__}: no image: give a path, a PIL image or a NumPy array")
    values = image[:, :, None] if image.ndim == 2 else image
    if values.dtype.kind == "f":
        values = values.astype(np.float32)
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError("an array of floats beyond [0, 1]: divide it by its white, or give uint8")
    elif values.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"an array of {values.dtype}: give uint8, uint16, or floats in [0, 1]")
    if values.ndim != 3 or not 1 <= values.shape[2] <= 4 or 0 in values.shape:
        raise ValueError(f"an array of shape {image.shape}: give (H, W), or (H, W, C) with C from 1 to 4")
    if values.shape[2] in (1, 3):
        return Photo(values)
    return Photo(values[:, :, :-1], values[:, :, -1:])


def _from_pillow(image: Image.Image) -> Photo:
    image = ImageOps.exif_transpose(image)
    if image.mode in ("F", "I"):
        raise ValueError(f"a PIL image of mode {image.mode}: give an array with floats in [0, 1]")
    if image.mode not in ("L", "LA", "RGB", "RGBA", "I;16"):
        image = image.convert("RGBA" if image.has_transparency_data else "L" if image.mode == "1" else "RGB")
    return replace(as_photo(np.asarray(image)), profile=_usable(image.info.get("icc_profile")))


def open_photo(path: str | Path, *, first_frame: bool = False) -> Photo:
    """Reads an image file. Raises `ImageError` as `decode` does, and for a file that cannot be read."""
    try:
        check_regular(path)
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from None
    return decode(data, path, first_frame=first_frame)


@not_after_fork
def decode(data: bytes, name: str | Path, *, most: int = MAX_PIXELS, first_frame: bool = False) -> Photo:
    """Encoded bytes -> the image, turned as its EXIF orientation says. CMYK becomes sRGB.

    Raises `ImageError`, in one line that starts with `name`, for an image that is damaged or incomplete, of more than
    `most` pixels, or of other than 8 or 16 bits per channel; and in a process that was forked after the first image was
    read. Raises `FramesError` for one of several frames, unless `first_frame`.
    """

    def check(width: int, height: int, frames: int) -> None:
        if frames > 1 and not first_frame:
            raise FramesError(f"{name}: {frames} frames or pages: save one as a file of its own")
        if width * height > most:
            raise ImageError(f"{name}: more than {most / 1e6:.0f} megapixels: cut it into parts or remove it")

    try:
        if data[:2] == b"BM" or data[4:12] in HEIC:
            data = _as_png(data, check)
        is_jpeg = data[:2] == b"\xff\xd8"
        if is_jpeg and not jpeg.has_all_scans(data):
            raise ImageError(f"{name}: truncated image: replace or remove it")
        image = pyvips.Image.new_from_buffer(data, "", fail_on="warning" if is_jpeg else "error")
        check(image.width, image.height, image.get("n-pages") if "n-pages" in image.get_fields() else 1)
        if image.format not in DEPTHS:
            raise ImageError(f"{name}: its values are of the type {image.format}: save it with 8 or 16 bits")
        return _photo(_decoded(image, data), *tiff.read_blocks(data))
    except ImageError:
        raise
    except Exception as error:  # of two decoders, of any type
        reason = " ".join(getattr(error, "detail", str(error)).split("\n")[0].split()) or "truncated"
        raise ImageError(f"{name}: not a readable image ({reason}): replace or remove it") from None


def _as_png(data: bytes, check: Callable[[int, int, int], None]) -> bytes:
    """BMP and HEIC, which libvips's wheels do not read, by way of Pillow."""
    if data[:2] != b"BM":
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise ValueError("HEIC needs the extra `heic`: pip install 'upsr[heic]'") from None
        register_heif_opener()
    with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
        image = Image.open(io.BytesIO(data))
    check(image.width, image.height, getattr(image, "n_frames", 1))
    png = io.BytesIO()
    image.save(png, "PNG", compress_level=0, exif=image.getexif(), icc_profile=image.info.get("icc_profile"))
    return png.getvalue()


def _decoded(image: pyvips.Image, data: bytes) -> pyvips.Image:
    """The image with its pixels in memory. Raises `pyvips.Error` for a damaged one."""
    try:
        return image.copy_memory()
    except pyvips.Error as error:
        lines = [line for line in error.detail.split("\n") if line]
        if not lines or not all(line.endswith(PADDING) for line in lines):
            raise
        return pyvips.Image.new_from_buffer(data, "", fail_on="truncated").copy_memory()


def _photo(image: pyvips.Image, exif: bytes | None, iptc: bytes | None) -> Photo:
    image = image.autorot()
    profile = image.get(colour.PROFILE) if colour.PROFILE in image.get_fields() else None
    if image.interpretation == "cmyk":
        image, profile = image.icc_transform("srgb", embedded=True, input_profile="cmyk"), None
    values = image.numpy().reshape(image.height, image.width, image.bands)
    pixels, alpha = (values[:, :, :-1], values[:, :, -1:]) if image.hasalpha() else (values, None)
    if pixels.shape[2] not in (1, 3):
        raise ValueError(f"{pixels.shape[2]} channels")
    header = image.crop(0, 0, 1, 1).copy_memory()
    for name, block in {EXIF: exif, IPTC: iptc}.items():
        if block:
            header.set_type(pyvips.GValue.blob_type, name, block)
    return Photo(np.ascontiguousarray(pixels), alpha, profile if pixels.shape[2] == 1 else _usable(profile), header)


def _usable(profile: bytes | None) -> bytes | None:
    """A profile of RGB; None for a damaged one and for one of other colours."""
    try:
        if profile is not None:
            colour.is_srgb(profile)
        return profile
    except pyvips.Error:
        return None
