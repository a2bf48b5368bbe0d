"""Upscales image files: which file each result goes to, and how it is written."""

import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from upsr import images
from upsr.files import ImageError, full_disk_in_one_line
from upsr.inference.comparison import write_comparison
from upsr.inference.maps import map_images
from upsr.inference.upscaler import Empty, Tick, Upscaler
from upsr.photo.formats import FORMATS, format_of
from upsr.photo.reading import Photo, open_photo
from upsr.photo.size import Size
from upsr.photo.writing import WHITE, check_target, save, suited

Progress = Callable[[Photo], AbstractContextManager[Tick]]

NAME_BYTES = 255  # of a file name, at most
IN_MEMORY = 2**28  # bytes of a result; a larger one lies on the disk until it is encoded


@dataclass(frozen=True)
class Job:
    """An image file and the file of its result."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Style:
    """How results are written."""

    size: Size | None = None
    """None: as the model enlarges."""
    quality: int | None = None
    background: tuple[int, int, int] = WHITE
    strip: bool = False
    """Leave out EXIF, XMP and IPTC."""
    srgb: bool = False
    """Convert colours to sRGB; otherwise the source's profile is kept."""
    first_frame: bool = False
    maps: bool = False
    """Write the uncertainty maps beside the result."""
    compare: bool = False
    """Write a strip and a page of bicubic against the result beside it."""


def plan(inputs: Sequence[Path], output: Path | None, suffix: str, form: str) -> list[Job]:
    """A job for every image of `inputs`, which are files and folders.

    A result is named like its source with `suffix` before the format's own, in the folder `output`, which gets the
    folders of an input folder, or beside its source where `output` is None. A single image may have a named file. Where
    two results would share a name, each gets its source's format in it. `form`: a format's name, or `same`. Raises
    `ImageError` where there is no image, or a result would replace a source.
    """
    if output and len(inputs) == 1 and not inputs[0].is_dir() and output.suffix and not output.is_dir():
        check_target(output, 1, 1)
        return _checked([Job(inputs[0], output)])
    found = [(source, folder) for given in inputs for source, folder in _sources(given, output)]
    if not found:
        raise ImageError(f"{', '.join(map(str, inputs))}: no images found: name files or folders with images")
    wanted = [folder / f"{source.stem}{suffix}{_ending(source, form)}" for source, folder in found]
    shared, taken, jobs = Counter(wanted), set[Path](), []
    for (source, _), target in zip(found, wanted, strict=True):
        if shared[target] > 1:
            target = target.with_stem(f"{source.stem}_{source.suffix[1:]}{suffix}")
        first, number = target, 2
        while target in taken:
            target, number = first.with_stem(f"{first.stem}-{number}"), number + 1
        taken.add(target)
        jobs.append(Job(source, target))
    return _checked([job for job in jobs if job.source not in taken] if output is None else jobs)


def _sources(given: Path, output: Path | None) -> Iterator[tuple[Path, Path]]:
    """The images of an input, each with the folder of its result. Results of an earlier run are left out."""
    if not given.is_dir():
        yield given, output or given.parent
        return
    below = output and output != given and output.is_relative_to(given)
    for source in images.find_below(given):
        if not (output and below and source.is_relative_to(output)):
            yield source, output / source.parent.relative_to(given) if output else source.parent


def _ending(source: Path, form: str) -> str:
    if form == "same":
        return source.suffix if format_of(source) else ".png"
    return FORMATS[form].suffixes[0]


def _checked(jobs: list[Job]) -> list[Job]:
    sources = {os.path.realpath(job.source) for job in jobs}  # Path.resolve raises RuntimeError for a loop of links
    for job in jobs:
        if os.path.realpath(job.target) in sources:
            raise ImageError(f"{job.target}: the result would replace an image: choose another name or folder")
    return jobs


def result_size(name: Path | str, height: int, width: int, asked: Size | None, scale: int) -> tuple[int, int]:
    """(height, width) of the result for a source of a size, `scale` times it unless another is asked for.

    Raises `ImageError`, which begins with `name`, for a larger one.
    """
    size = (asked or Size(factor=scale)).of(height, width)
    if size[0] > height * scale or size[1] > width * scale:
        raise ImageError(f"{name}: {size[1]}x{size[0]} is more than {scale} times its size: ask for less")
    return size


@contextmanager
def quiet(_: Photo) -> Iterator[Tick]:
    """No progress."""
    yield lambda: None


def upscale(model: Upscaler, job: Job, style: Style, *, seed: int, tile: int, progress: Progress = quiet) -> None:
    """Upscales one image. What can be wrong with the target is checked before the network runs.

    Raises `ImageError` and `DataError`, each in one line that names a file.
    """
    photo = open_photo(job.source, first_frame=style.first_frame)
    height, width = photo.pixels.shape[:2]
    size = result_size(job.source, height, width, style.size, model.scale)
    check_target(job.target, size[1], size[0])
    if len(os.fsencode(job.target.name)) > NAME_BYTES:
        raise ImageError(f"{job.target}: the file name is too long: shorten it")
    job.target.parent.mkdir(parents=True, exist_ok=True)
    photo = photo.plain() if style.srgb else suited(photo, job.target)
    photo = replace(photo, header=None) if style.strip else photo
    with progress(photo) as tick:
        if style.maps:
            larger, upscaled = model.with_maps(photo, seed=seed, tile=tile, tick=tick)
            for name, image in map_images(upscaled).items():
                images.write(job.target.with_name(f"{job.target.stem}.{name}.png"), image)
        else:
            larger = model.enlarge(photo, seed=seed, tile=tile, empty=canvas(job.target.parent), tick=tick)
    save(job.target, larger, photo, size=size, quality=style.quality, background=style.background)
    if style.compare:
        write_comparison(photo, job.target)


def canvas(folder: Path) -> Empty:
    """A maker of arrays; one of more than `IN_MEMORY` bytes lies in an unnamed file in `folder`.

    Raises `DataError` where the disk is too full for it.
    """

    def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        size = math.prod(shape) * dtype.itemsize
        if size <= IN_MEMORY:
            return np.empty(shape, dtype)
        with full_disk_in_one_line(folder / "result"), tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk would end the process later
            return np.memmap(file, dtype, "r+", shape=shape)

    return empty
