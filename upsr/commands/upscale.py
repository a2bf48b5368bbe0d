"""`upsr upscale`: pictures and folders through one model."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from upsr import images
from upsr.commands import add_model_options, device, model_file, new
from upsr.images import ImageError

if TYPE_CHECKING:
    from upsr.commands import Commands


def add(commands: "Commands") -> None:
    up = new(commands, "upscale", run, "make pictures four times as large")
    add_model_options(up)
    up.add_argument("input", nargs="+", help="pictures or folders of pictures")
    up.add_argument("-o", "--output", required=True, help="a folder, or a file for a single picture")
    up.add_argument(
        "--model",
        default="starter",
        help="`starter`, a weights file, the folder that holds it, or models:/upsr@champion",
    )
    up.add_argument("--steps", type=int, default=0, help="sampling steps (0: as trained)")
    up.add_argument("--save-maps", action="store_true", help="write maps of the uncertainty beside each picture")


def run(options: argparse.Namespace) -> None:
    """Files and folders through one model. A picture that fails is named, the others go on, the exit code tells."""
    from upsr.inference.maps import pictures
    from upsr.inference.upscaler import Upscaler

    jobs = outputs([Path(p) for p in options.input], Path(options.output))
    model = Upscaler.from_pretrained(
        model_file(options.model), device=device(options.device), dtype=options.dtype, steps=options.steps
    )
    failed = 0
    for source, target in tqdm(jobs, desc="upscale", unit="picture", disable=None):
        try:
            image = images.read(source)
            if options.save_maps:
                larger, upscaled = model.with_maps(image, seed=options.seed, tile=options.tile)
                for name, picture in pictures(upscaled).items():
                    images.write(target.with_name(f"{target.stem}.{name}.png"), picture)
            else:
                larger = model(image, seed=options.seed, tile=options.tile)
            images.write(target, larger)
        except ImageError as error:
            failed += 1
            tqdm.write(f"error: {error}", file=sys.stderr)
    if failed:
        raise ImageError(f"{failed} of {len(jobs)} pictures could not be upscaled")


def outputs(inputs: Sequence[Path], output: Path) -> list[tuple[Path, Path]]:
    """(picture, where its result goes). One picture may go to a named file; several, or a folder, go to a folder."""
    pictures = [p for path in inputs for p in (images.find(path) if path.is_dir() else [path])]
    if not pictures:
        raise ImageError(f"{', '.join(map(str, inputs))}: no pictures there: name files or folders with pictures")
    if len(inputs) == 1 and not inputs[0].is_dir() and output.suffix.lower() in images.SUFFIXES:
        if inputs[0].resolve() == output.resolve():
            raise ImageError(f"{output}: the result would replace the picture: choose another name")
        return [(pictures[0], output)]
    targets = [output / f"{p.stem}.png" for p in pictures]
    replaced = [p for p, t in zip(pictures, targets, strict=True) if p.resolve() == t.resolve()]
    if replaced:
        raise ImageError(f"{replaced[0]}: the result would replace it: choose another folder")
    twice = {t for t in targets if targets.count(t) > 1}
    if twice:
        raise ImageError(f"{min(twice)}: two pictures would be written there: upscale them one by one")
    return list(zip(pictures, targets, strict=True))
