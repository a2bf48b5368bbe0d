"""The formats of image files: names, and what each can hold."""

from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True)
class Format:
    """A format that is written. Which format a file that is read has, its contents say."""

    suffixes: tuple[str, ...]
    deep: bool = False
    """Whether it holds 16 bits per channel."""
    alpha: bool = True
    profile: bool = True
    """Whether it holds an ICC profile."""
    side: int = 10_000_000
    """Largest width or height in pixels; libvips has 10 million."""
    quality: int | None = None
    """The default quality, from 1 to 100; None for a format without loss."""


FORMATS = {
    "png": Format((".png",), deep=True),
    "jpeg": Format((".jpg", ".jpeg", ".jpe", ".jfif"), alpha=False, side=65_535, quality=95),
    "webp": Format((".webp",), side=16_383, quality=95),
    "tiff": Format((".tif", ".tiff"), deep=True),
    "bmp": Format((".bmp",), alpha=False, profile=False, side=32_767),
    "avif": Format((".avif",), side=16_384, quality=90),
}
"""By name."""

READ_ONLY = frozenset({".heic", ".heif"})

SUFFIXES = READ_ONLY.union(*(form.suffixes for form in FORMATS.values()))
"""Suffixes of the files that are taken for images in a folder, in lower case."""


def format_of(path: PurePath) -> str | None:
    """The name of the format that a path's suffix stands for; None where it is not written."""
    suffix = path.suffix.lower()
    return next((name for name, form in FORMATS.items() if suffix in form.suffixes), None)


def is_image_name(name: str) -> bool:
    """Whether a file of this name in a folder is taken for an image. Hidden ones are not."""
    return PurePath(name).suffix.lower() in SUFFIXES and not name.startswith(".")
