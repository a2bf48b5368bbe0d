"""`upsr degrade`: LR images for a fixed benchmark, or a contact sheet of what the settings do."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from upsr.commands import new, positive

if TYPE_CHECKING:
    from upsr.commands import Commands
    from upsr.degradation.second_order import SecondOrder

ROWS = 6  # images on a sheet


def add(commands: "Commands") -> None:
    de = new(commands, "degrade", run, "make LR images of HR images, as params.yaml's `degradation` says")
    de.add_argument("input", nargs="+", type=Path, help="images or folders of images")
    de.add_argument("-o", "--output", type=Path, required=True, help="a folder; with --preview a .png")
    de.add_argument("--params", type=Path, default=Path("params.yaml"), help="the settings")
    de.add_argument("--seed", type=int, default=0, help="same seed and name of an image, same LR")
    de.add_argument("--preview", action="store_true", help="one sheet: a row per image, a column per degradation")
    de.add_argument("--columns", type=positive, default=5, help="degradations of each image on the sheet")


def run(options: argparse.Namespace) -> None:
    """Files and folders degraded one by one, the numbers drawn beside each."""
    from tqdm import tqdm

    from upsr import images
    from upsr.commands.contact_sheet import sheet
    from upsr.config import load_params
    from upsr.degradation.second_order import build_degradation

    params = load_params(options.params)
    degrade = build_degradation(params.degradation, params.scale)
    paths = [p for path in options.input for p in (images.find(path) if path.is_dir() else [path])]
    if not paths:
        raise images.ImageError(f"{', '.join(map(str, options.input))}: no images there: name some")
    if options.preview:
        shown = paths[:ROWS]
        images.write(options.output, sheet(degrade, shown, options.seed, options.columns))
        print(f"{options.output}: {len(shown)} images, {options.columns} degradations of each")
        return
    for path in tqdm(paths, desc="degrade", unit="image", disable=None):
        _write(degrade, path, options.output, options.seed)
    print(f"{options.output}: {len(paths)} LR images, the numbers drawn for each in its .json")


def _write(degrade: "SecondOrder", path: Path, folder: Path, seed: int) -> None:
    from upsr import images
    from upsr.files import atomic

    target = folder / f"{path.stem}.png"
    if target.resolve() == path.resolve():
        raise images.ImageError(f"{target}: the result would replace the image: choose another folder")
    hr = images.to_tensor(images.read_rgb(path))
    if min(hr.shape[2:]) < degrade.scale:
        raise images.ImageError(f"{path}: is narrower than {degrade.scale} pixels: leave it out")
    lr, notes = degrade.named(hr, path.stem, (seed,))
    images.write(target, images.to_image(lr))
    with atomic(target.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({"seed": seed, "source": path.name} | notes, indent=2) + "\n")
