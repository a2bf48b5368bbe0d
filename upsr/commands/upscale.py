"""`upsr upscale`: upscales images and folders with one model."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from upsr.commands import add_model_options, model_file, new, open_device

if TYPE_CHECKING:
    from upsr.commands import Commands


def add(commands: "Commands") -> None:
    command = new(commands, "upscale", run, "upscale images, four times with the bundled models")
    add_model_options(command)
    command.add_argument("input", nargs="+", help="images or folders of images")
    command.add_argument("-o", "--output", required=True, help="output folder, or a file for a single image")
    command.add_argument("--steps", type=int, default=0, help="number of sampling steps; 0: as trained")
    command.add_argument("--save-maps", action="store_true", help="write the uncertainty maps next to each image")


def run(options: argparse.Namespace) -> None:
    """Upscales every image; one that fails is named and skipped. Raises `ImageError` at the end if any failed."""
    from tqdm import tqdm

    from upsr import images
    from upsr.inference.maps import map_images
    from upsr.inference.upscaler import Upscaler

    jobs = outputs([Path(p) for p in options.input], Path(options.output))
    model = Upscaler.from_pretrained(
        model_file(options.model), device=open_device(options.device), dtype=options.dtype, steps=options.steps
    )
    failed = 0
    for source, target in tqdm(jobs, desc="upscale", unit="image", disable=None):
        try:
            if not options.save_maps:
                model.upscale_file(source, target, seed=options.seed, tile=options.tile)
                continue
            larger, upscaled = model.with_maps(images.read(source), seed=options.seed, tile=options.tile)
            for name, image in map_images(upscaled).items():
                images.write(target.with_name(f"{target.stem}.{name}.png"), image)
            images.write(target, larger)
        except images.ImageError as error:
            failed += 1
            tqdm.write(f"error: {error}", file=sys.stderr)
    if failed:
        raise images.ImageError(f"{failed} of {len(jobs)} images could not be upscaled")


def outputs(inputs: Sequence[Path], output: Path) -> list[tuple[Path, Path]]:
    """Pairs of (image, path of its result). A single image may have a named file; all others go to a folder.

    Raises `ImageError` where there is no image, or a result would replace its source or another result.
    """
    from upsr.images import SUFFIXES, ImageError, find

    sources = [p for path in inputs for p in (find(path) if path.is_dir() else [path])]
    if not sources:
        raise ImageError(f"{', '.join(map(str, inputs))}: no images found: name files or folders with images")
    if len(inputs) == 1 and not inputs[0].is_dir() and output.suffix.lower() in SUFFIXES:
        if _same(inputs[0], output):
            raise ImageError(f"{output}: the result would replace the image: choose another name")
        return [(sources[0], output)]
    targets = [output / f"{p.stem}.png" for p in sources]
    replaced = [p for p, t in zip(sources, targets, strict=True) if _same(p, t)]
    if replaced:
        raise ImageError(f"{replaced[0]}: the result would replace it: choose another folder")
    twice = {t for t in targets if targets.count(t) > 1}
    if twice:
        raise ImageError(f"{min(twice)}: two images would be written to this file: upscale them one by one")
    return list(zip(sources, targets, strict=True))


def _same(a: Path, b: Path) -> bool:
    return os.path.realpath(a) == os.path.realpath(b)  # Path.resolve raises RuntimeError where links form a loop
