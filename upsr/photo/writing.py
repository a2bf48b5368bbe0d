"""Writes image files with the colours and metadata of their source."""

import errno
import io
import re
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
import pyvips
from PIL import Image

from upsr.files import ImageError, atomic
from upsr.photo import colour, tiff
from upsr.photo.fork import not_after_fork
from upsr.photo.formats import FORMATS, format_of
from upsr.photo.reading import EXIF, IPTC, Photo

WHITE = (255, 255, 255)
PLAIN = Photo(np.zeros((1, 1, 3), np.uint8))  # without profile and metadata
METADATA = ("exif-", "xmp-data", IPTC)  # starts of libvips's names
OUTDATED = ("exif-ifd0-Orientation", "exif-ifd1-")  # the second: a thumbnail's
LOSSLESS = 100  # from this quality on, WebP and AVIF lose nothing
BIG = 2**28  # pixels: above, TIFF may need 64-bit offsets
EFFORT = 2  # of AVIF, of 9: more takes minutes for a photo
XMP_NUMBERS = {
    "tiff:Orientation": "1",
    "tiff:ImageWidth": "{width}",
    "tiff:ImageLength": "{height}",
    "exif:PixelXDimension": "{width}",
    "exif:PixelYDimension": "{height}",
}


def check_target(path: PurePath, width: int, height: int) -> None:
    """Raises `ImageError` for a name whose format is not written, and for a size that its format does not hold."""
    name = format_of(path)
    if name is None:
        known = ", ".join(form.suffixes[0] for form in FORMATS.values())
        raise ImageError(f"{path}: cannot write {path.suffix or 'a file without suffix'}: use {known}")
    most = FORMATS[name].side
    if max(width, height) > most:
        raise ImageError(f"{path}: {name} holds {most} pixels a side, not {width}x{height}: write .png or .tif")


def suited(photo: Photo, path: PurePath) -> Photo:
    """The image in the colours that the format of a path can name: sRGB where it holds no profile."""
    name = format_of(path)
    return photo if name and FORMATS[name].profile else photo.plain()


@not_after_fork
def save(
    path: Path,
    pixels: np.ndarray,
    source: Photo = PLAIN,
    *,
    size: tuple[int, int] | None = None,
    quality: int | None = None,
    background: tuple[int, int, int] = WHITE,
) -> None:
    """Writes (H, W, C) uint8 or uint16, C as of `Photo.array`, in the format of the suffix, atomically.

    The values are in the colours of `source`, whose profile and metadata the file gets. `size`: (height, width) to
    resize to by Lanczos's kernel. `quality`: 1 to 100, for formats with loss; None means the format's default.
    `background`: 8-bit RGB below what is transparent, where the format has no alpha. Raises `ImageError` as
    `check_target` does, and for a name that is too long.
    """
    height, width = size or pixels.shape[:2]
    check_target(path, width, height)
    try:
        with atomic(path) as temporary, temporary.open("w+b") as file:
            _write(file, path, _resized(pixels, height, width), source, quality, background)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ImageError(f"{path}: the file name is too long: shorten it") from None
        raise


@not_after_fork
def encode(pixels: np.ndarray, suffix: str) -> bytes:
    """(H, W, C) uint8 or uint16, C as of `Photo.array`, in sRGB -> a file's bytes. Raises `ImageError` as `save`."""
    name = PurePath(f"image{suffix}")
    check_target(name, pixels.shape[1], pixels.shape[0])
    file = io.BytesIO()
    _write(file, name, _image(pixels), PLAIN, None, WHITE)
    return file.getvalue()


def _image(pixels: np.ndarray) -> pyvips.Image:
    height, width, bands = pixels.shape
    deep = pixels.dtype == np.uint16
    image = pyvips.Image.new_from_memory(
        np.ascontiguousarray(pixels).reshape(-1).data, width, height, bands, "ushort" if deep else "uchar"
    )
    grey = bands < 3
    return image.copy(interpretation=("grey16" if deep else "b-w") if grey else ("rgb16" if deep else "srgb"))


def _resized(pixels: np.ndarray, height: int, width: int) -> pyvips.Image:
    image = _image(pixels)
    if (height, width) == pixels.shape[:2]:
        return image
    kind, alpha = image.format, image.hasalpha()
    image = image.premultiply() if alpha else image  # else colours below the transparent bleed in
    image = image.resize(width / image.width, vscale=height / image.height)
    return (image.unpremultiply() if alpha else image).rint().cast(kind)


def _write(
    file: BinaryIO,
    path: PurePath,
    image: pyvips.Image,
    source: Photo,
    quality: int | None,
    background: tuple[int, int, int],
) -> None:
    name = format_of(path) or ""
    form = FORMATS[name]
    # what the format holds
    if image.hasalpha() and not form.alpha:
        peak = 257 if image.format == "ushort" else 1
        below = background if image.bands == 4 else [round(float(np.dot(background, (0.299, 0.587, 0.114))))]
        image = image.flatten(background=[value * peak for value in below])
    if image.format == "ushort" and not form.deep:
        image = (image / 257).rint().cast("uchar").copy(interpretation="srgb" if image.bands >= 3 else "b-w")
    image = _with_header(image, source)
    # encoding
    if name == "bmp":  # which libvips's wheels do not write
        Image.fromarray(image.numpy()).save(file, "BMP")
        return
    in_memory = isinstance(file, io.BytesIO)
    target = pyvips.Target.new_to_memory() if in_memory else pyvips.Target.new_to_descriptor(file.fileno())
    quality = quality or form.quality
    match name:
        case "png":  # files as small as by default, in a quarter of the time
            image.pngsave_target(target, compression=3, filter="sub")
        case "jpeg":
            image.jpegsave_target(target, Q=quality)
        case "webp":
            image.webpsave_target(target, Q=quality, lossless=quality == LOSSLESS)
        case "tiff":
            exif, iptc = (image.get(block) if block in image.get_fields() else None for block in (EXIF, IPTC))
            image.remove(IPTC)
            image.tiffsave_target(
                target, compression="deflate", predictor="horizontal", bigtiff=image.width * image.height > BIG
            )
            if not in_memory and (exif or iptc):
                tiff.write_blocks(file, exif, iptc, image.width, image.height)
        case "avif":
            image.heifsave_target(target, compression="av1", Q=quality, lossless=quality == LOSSLESS, effort=EFFORT)
    if in_memory:
        file.write(target.get("blob"))


def _with_header(image: pyvips.Image, source: Photo) -> pyvips.Image:
    """The image with the profile and metadata of its source; orientation and size are corrected."""
    image = image.copy()
    if source.profile is not None:
        image.set_type(pyvips.GValue.blob_type, colour.PROFILE, source.profile)
    if source.header is None:
        return image
    image = image.copy(xres=source.header.xres, yres=source.header.yres)
    for name in source.header.get_fields():
        if name.startswith(METADATA):
            value = source.header.get(name)
            if name == "xmp-data":
                value = _xmp(value, image.width, image.height)
            image.set_type(source.header.get_typeof(name), name, value)
    for name in image.get_fields():  # setting EXIF's data brought them back
        if name.startswith(OUTDATED):
            image.remove(name)
    image.set_type(pyvips.GValue.gint_type, "orientation", 1)
    return image


def _xmp(data: bytes, width: int, height: int) -> bytes:
    """An XMP packet with orientation 1 and a new size, where it has them: as attributes or as elements."""
    for name, number in XMP_NUMBERS.items():
        text = number.format(width=width, height=height).encode()
        pattern = rb"(\b%b(?:=[\"']|>))\d+" % name.encode()
        data = re.sub(pattern, lambda found: found[1] + text, data)  # noqa: B023
    return data
