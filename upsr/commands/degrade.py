"""`upsr degrade`: the LR images of a fixed benchmark, or a contact sheet of the degradation."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from upsr.commands import new, positive

if TYPE_CHECKING:
    from upsr.commands import Commands
    from upsr.degradation.second_order import SecondOrder

ROWS = 6  # images on a contact sheet


def add(commands: "Commands") -> None:
    command = new(commands, "degrade", run, "make LR images from HR images by the `degradation` of params.yaml")
    command.add_argument("input", nargs="+", type=Path, help="images or folders of images")
    command.add_argument(
        "-o", "--output", type=Path, required=True, help="output folder; with --preview, an image file"
    )
    command.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings file")
    command.add_argument("--seed", type=int, default=0, help="the same seed and image name give the same LR image")
    command.add_argument(
        "--preview", action="store_true", help="write a contact sheet: a row per image, a column per degradation"
    )
    command.add_argument("--columns", type=positive, default=5, help="degradations per image on the contact sheet")


def run(options: argparse.Namespace) -> None:
    """Writes an LR image and a .json of the values drawn for each image, or one contact sheet.

    Raises `ImageError` where there is no image, one cannot be read, or a result would replace its source.
    """
    from tqdm import tqdm

    from upsr import images
    from upsr.commands.contact_sheet import sheet
    from upsr.config import load_params
    from upsr.degradation.second_order import build_degradation

    params = load_params(options.params)
    degrade = build_degradation(params.degradation, params.scale)
    paths = [p for path in options.input for p in (images.find(path) if path.is_dir() else [path])]
    if not paths:
        raise images.ImageError(f"{', '.join(map(str, options.input))}: no images found: name files or folders")
    if options.preview:
        shown = paths[:ROWS]
        images.write(options.output, sheet(degrade, shown, options.seed, options.columns))
        print(f"{options.output}: {len(shown)} images, {options.columns} degradations per image")
        return
    for path in tqdm(paths, desc="degrade", unit="image", disable=None):
        _write(degrade, path, options.output, options.seed)
    print(f"{options.output}: {len(paths)} LR images, each with the values drawn in a .json")


def _write(degrade: "SecondOrder", path: Path, folder: Path, seed: int) -> None:
    from upsr import images
    from upsr.files import atomic

    target = folder / f"{path.stem}.png"
    if target.resolve() == path.resolve():
        raise images.ImageError(f"{target}: the result would replace the image: choose another folder")
    hr = images.to_tensor(images.read_rgb(path))
    if min(hr.shape[2:]) < degrade.scale:
        raise images.ImageError(f"{path}: narrower than {degrade.scale} pixels: leave it out")
    lr, notes = degrade.named(hr, path.stem, (seed,))
    images.write(target, images.to_image(lr))
    with atomic(target.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({"seed": seed, "source": path.name} | notes, indent=2) + "\n")
