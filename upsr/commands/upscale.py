"""`upsr upscale`: upscales images and folders with one model."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from upsr.commands import add_model_options, model_file, new, open_device, positive

if TYPE_CHECKING:
    from upsr.commands import Commands
    from upsr.inference.upscaler import Tick
    from upsr.photo.reading import Photo
    from upsr.photo.size import Size

FORMATS = ("png", "jpeg", "webp", "tiff", "bmp", "avif", "same")


def add(commands: "Commands") -> None:
    command = new(commands, "upscale", run, "upscale images, four times with the bundled models")
    add_model_options(command)
    command.add_argument("input", nargs="+", type=Path, help="images, or folders with images and further folders")
    command.add_argument(
        "-o", "--output", type=Path, help="output folder, or a file for a single image (default: beside each image)"
    )
    command.add_argument(
        "--suffix", help="added to the names (default: their size, such as _x4 or _800x, and none with -o)"
    )
    command.add_argument("--format", choices=FORMATS, default="png", help="format, where -o does not name a file")
    command.add_argument(
        "--scale", type=size, help="size of the results: a factor such as 2 or 1.5, or a width such as 800x"
    )
    command.add_argument("--quality", type=percent, help="1 to 100, of JPEG, WebP and AVIF")
    command.add_argument(
        "--background", type=rgb, default="white", help="colour below what is transparent, in formats without alpha"
    )
    command.add_argument("--srgb", action="store_true", help="convert colours to sRGB; otherwise the profile is kept")
    command.add_argument("--strip", action="store_true", help="leave out EXIF, XMP and IPTC")
    command.add_argument("--first-frame", action="store_true", help="take the first image of several in a file")
    command.add_argument("--skip-existing", action="store_true", help="leave out images that have a result")
    command.add_argument("--steps", type=positive, help="number of sampling steps (default: all)")
    command.add_argument(
        "--compare", action="store_true", help="write a page with a slider and a strip, both against bicubic"
    )
    command.add_argument("--save-maps", action="store_true", help="write the uncertainty maps next to each image")


def size(text: str) -> "Size":
    """A size of results; an argparse type."""
    from upsr.photo.size import Size

    try:
        return Size.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def rgb(text: str) -> tuple[int, ...]:
    """A colour by its name or as #rrggbb; an argparse type."""
    from PIL import ImageColor

    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: give a name such as white, or #rrggbb") from None


def percent(text: str) -> int:
    """An integer from 1 to 100; an argparse type."""
    number = positive(text)
    if number > 100:
        raise argparse.ArgumentTypeError(f"{text} is above 100")
    return number


def run(options: argparse.Namespace) -> None:
    """Upscales every image; one that fails is named, and the others go on.

    Raises `ImageError` at the end if any failed.
    """
    from tqdm import tqdm

    from upsr.files import ImageError, one_line
    from upsr.inference.batch import Style, plan, upscale
    from upsr.inference.upscaler import Upscaler
    from upsr.memory import free_memory
    from upsr.photo.reading import FramesError

    started = time.monotonic()
    weights = model_file(options.model)
    jobs = plan(options.input, options.output, _suffix(options, weights), options.format)
    left = [job for job in jobs if not (options.skip_existing and job.target.exists())]
    style = Style(
        size=options.scale,
        quality=options.quality,
        background=options.background,
        strip=options.strip,
        srgb=options.srgb,
        first_frame=options.first_frame,
        maps=options.save_maps,
        compare=options.compare,
    )
    model = Upscaler.from_pretrained(
        weights, device=open_device(options.device), dtype=options.dtype, steps=options.steps or 0
    )
    tile = options.tile or model.fitting_tile(free_memory(model.device))

    @contextmanager
    def progress(photo: "Photo") -> "Iterator[Tick]":
        """A bar over the tiles of an image. After Ctrl-C, no further tile begins."""
        tiles, megapixels = model.tiles(photo, tile), photo.pixels.size / photo.pixels.shape[2] / 1e6
        form = "{l_bar}{bar}| {n_fmt}/{total_fmt} tiles [{elapsed}<{remaining}, {rate_inv_fmt}{postfix}]"
        with tqdm(total=tiles, unit="tile", leave=False, disable=None, bar_format=form) as bar:
            begun = time.monotonic()

            def tick() -> None:
                check()
                bar.update()
                bar.set_postfix_str(f"{megapixels * bar.n / tiles / (time.monotonic() - begun):.3f} MP/s")

            yield tick

    failed = 0
    bar = tqdm(left, desc="upscale", unit="image", disable=None if len(left) > 1 else True)
    with interruptible() as check:
        try:
            for job in bar:
                check()
                try:
                    upscale(model, job, style, seed=options.seed, tile=tile, progress=progress)
                except Exception as error:  # the last image ends a batch, nothing else
                    failed += 1
                    text = one_line(error) if isinstance(error, ValueError | OSError) else f"{job.source}: {error!r}"
                    text += ", or give --first-frame" if isinstance(error, FramesError) else ""
                    tqdm.write(f"error: {text}", file=sys.stderr)
        except KeyboardInterrupt:
            tqdm.write("stopped: whole files only were written; --skip-existing goes on from here", file=sys.stderr)
            raise
    counts = {"upscaled": len(left) - failed, "there already": len(jobs) - len(left), "failed": failed}
    told = ", ".join(f"{number} {what}" for what, number in counts.items() if number)
    folder = os.path.commonpath([job.target.absolute().parent for job in jobs])
    print(f"{told} in {time.monotonic() - started:.0f} s: {jobs[0].target if len(jobs) == 1 else folder}")
    if failed:
        raise ImageError(f"{failed} of {len(jobs)} images could not be upscaled")


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Ctrl-C raises `KeyboardInterrupt`, if not at once, then when the function given is called.

    Python drops an exception that is raised in a finalizer or in a callback from C, as libvips makes them.
    """
    pressed = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.default_int_handler(number, frame)

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    previous = signal.getsignal(signal.SIGINT)
    if previous is signal.default_int_handler:  # a job in the background ignores Ctrl-C
        signal.signal(signal.SIGINT, handle)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, previous)


def _suffix(options: argparse.Namespace, weights: Path) -> str:
    """What the names of results end with: what was asked for, nothing with `-o`, otherwise their size."""
    from upsr.photo.size import Size
    from upsr.pretrained import load_pretrained

    if options.suffix is not None or options.output:
        return options.suffix or ""
    return (options.scale or Size(factor=load_pretrained(weights).scale)).suffix
