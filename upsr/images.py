"""Images on disk and in memory: read and write, ranges, luma, padding, resizing."""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from upsr.files import ImageError as ImageError
from upsr.photo import reading, writing
from upsr.photo.formats import SUFFIXES as SUFFIXES
from upsr.photo.formats import is_image_name
from upsr.photo.reading import MAX_PIXELS as MAX_PIXELS

NAME_BYTES = 240  # of a name without suffix: file systems allow 255, and `crop` adds `_s001.png`


def find(folder: str | Path) -> list[Path]:
    """The images directly in a folder, sorted by name; folders, pipes and devices with such a name are none.

    Raises `ImageError` where the folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder of images")
    named = (p for p in folder.iterdir() if is_image_name(p.name))
    return sorted(p for p in named if p.is_file() or not p.exists())  # a broken link is an image that cannot be read


def find_below(folder: Path) -> list[Path]:
    """The images in a folder and the folders below it, sorted. Hidden ones are left out, and links to folders."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if is_image_name(name)]
    return sorted(p for p in found if p.is_file() or not p.exists())  # a broken link is named when it is read


def shown(path: Path) -> str:
    """A path, whose name may be any bytes, as one line of text."""
    return "\\n".join(os.fsencode(path).decode(errors="backslashreplace").splitlines())


def check_name(path: Path) -> None:
    """Raises `ImageError` for a file name that DVC, `crop` or a table cannot hold."""
    stem = os.fsencode(path.stem)
    for wrong, reason in (
        (stem.decode(errors="replace") != path.stem, "is not UTF-8"),
        (len(stem) > NAME_BYTES, f"has more than {NAME_BYTES} bytes"),
        (len(path.stem.splitlines()) > 1, "has a line break"),
    ):
        if wrong:
            raise ImageError(f"{shown(path)}: the file name {reason}: rename it")


def decode(data: bytes, name: str | Path, most: int = MAX_PIXELS) -> np.ndarray:
    """Encoded bytes -> (H, W, C) uint8 or uint16 in sRGB; C is 1 (grey), 2 (with alpha), 3, or 4 (with alpha).

    Raises `ImageError` as `photo.reading.decode` does.
    """
    return reading.decode(data, name, most=most).array()


def read(path: str | Path) -> np.ndarray:
    """Reads an image file as `decode` does. Raises `ImageError` for a missing or unreadable file."""
    return reading.open_photo(path).array()


def read_rgb(path: str | Path) -> np.ndarray:
    """Reads an image as (H, W, 3) uint8 RGB: grey is repeated, alpha dropped, 16 bit rounded to 8. Raises as `read`."""
    return as_rgb8(read(path))


def as_rgb8(image: np.ndarray) -> np.ndarray:
    """(H, W, C) uint8 or uint16 -> (H, W, 3) uint8."""
    image = _as8(image)
    return np.repeat(image[:, :, :1], 3, axis=2) if image.shape[2] < 3 else np.ascontiguousarray(image[:, :, :3])


def _as8(image: np.ndarray) -> np.ndarray:
    return image if image.dtype == np.uint8 else ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)


def write(path: str | Path, image: np.ndarray) -> None:
    """Writes (H, W, C) uint8 or uint16 sRGB, atomically. The suffix chooses the format; only PNG and TIFF keep 16 bit.

    Raises `ImageError` as `photo.writing.save` does.
    """
    writing.save(Path(path), image)


def encode(image: np.ndarray, suffix: str) -> bytes:
    """(H, W, C) uint8 or uint16 sRGB -> encoded bytes in the suffix's format. Raises `ImageError` as `write` does."""
    return writing.encode(image, suffix)


def encode_png(rgb: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB -> PNG. Sets no compression level: setting even OpenCV's default is three times slower."""
    return cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()


def number_of(name: str) -> int:
    """CRC-32 of an image's name, part of its seed: its noise does not depend on the other images of a folder."""
    return zlib.crc32(os.fsencode(name))


def to_signed(x: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1], the range inside `diffusion`."""
    return x * 2 - 1


def to_unit(x: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], the range outside `diffusion`."""
    return (x + 1) / 2


def to_tensor(image: np.ndarray) -> Tensor:
    """(H, W, C) uint8 or uint16 -> (1, C, H, W) float32 in [0, 1]."""
    peak = np.iinfo(image.dtype).max
    return torch.from_numpy(image.astype(np.float32) / peak).permute(2, 0, 1)[None].contiguous()


def to_image(x: Tensor, dtype: type = np.uint8) -> np.ndarray:
    """(1, C, H, W) or (C, H, W) float in [0, 1] -> (H, W, C) of `dtype`, clipped and rounded."""
    peak = np.iinfo(dtype).max
    x = x.detach().reshape(x.shape[-3:]).permute(1, 2, 0).float().clamp(0, 1)
    return (x * peak).round().cpu().numpy().astype(dtype)


def round8(x: Tensor) -> Tensor:
    """Clips to [0, 1] and rounds to the 256 values of an 8-bit file."""
    return (x.clamp(0, 1) * 255).round() / 255


def luma(x: Tensor) -> Tensor:
    """(B, 3, H, W) RGB in [0, 1] -> (B, 1, H, W): Y of ITU-R BT.601 in studio range, 16/255 to 235/255."""
    weights = x.new_tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1)
    return ((x * weights).sum(1, keepdim=True) + 16) / 255


def pad_to(x: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H, W) -> (B, C, height, width), padded by reflection at the right and lower edge.

    The padding may be larger than the image: the reflection is then reflected again.
    """
    return x[:, :, mirrored(x.shape[2], 0, height, x.device)][:, :, :, mirrored(x.shape[3], 0, width, x.device)]


def mirrored(size: int, start: int, stop: int, device: torch.device) -> Tensor:
    """Indices start..stop-1 reflected into 0..size-1; for size 3: ... 2 1 0 1 2 1 0 1 ..."""
    period = max(2 * (size - 1), 1)
    i = torch.arange(start, stop, device=device) % period
    return torch.minimum(i, period - i)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """MATLAB's `imresize` (bicubic, antialiased) of (B, C, H, W) float to `size` = (height, width).

    torch's antialiased bicubic has MATLAB's kernel but crops it at the edge, where MATLAB reflects the image. So the
    image is first padded by symmetric reflection, by a length that maps to whole output pixels.
    """
    for dim, length in ((2, size[0]), (3, size[1])):
        x = _resize_one_side(x, dim, length)
    return x


def _resize_one_side(x: Tensor, dim: int, length: int) -> Tensor:
    size = x.shape[dim]
    if size == length:
        return x
    reach = 2 * max(1.0, size / length) + 1  # half the kernel's support, in input pixels
    out_pad = 1
    while (size * out_pad) % length or size * out_pad / length < reach:
        out_pad += 1
    pad = size * out_pad // length
    i = torch.arange(-pad, size + pad, device=x.device) % (2 * size)
    x = x.index_select(dim, torch.minimum(i, 2 * size - 1 - i))
    shape = list(x.shape[2:])
    shape[dim - 2] = length + 2 * out_pad
    x = F.interpolate(x, shape, mode="bicubic", antialias=True, align_corners=False)
    return x.narrow(dim, out_pad, length)
