"""`upsr degrade`: LR images, a fixed benchmark of them, or a contact sheet of the degradation."""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from upsr.commands import new, positive

if TYPE_CHECKING:
    from upsr.commands import Commands
    from upsr.config import Params
    from upsr.degradation.second_order import SecondOrder

ROWS = 6  # images on a contact sheet


def add(commands: "Commands") -> None:
    command = new(commands, "degrade", run, "make LR images from HR images by the `degradation` of params.yaml")
    command.add_argument("input", nargs="+", type=Path, help="images or folders of images")
    command.add_argument(
        "-o", "--output", type=Path, required=True, help="output folder; with --preview, an image file"
    )
    command.add_argument("--scale", help="name of a file in scales/ whose settings are used, such as df2k")
    command.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings file")
    command.add_argument("--seed", type=int, default=0, help="the same seed and image name give the same LR image")
    what = command.add_mutually_exclusive_group()
    what.add_argument(
        "--benchmark",
        action="store_true",
        help="write a new benchmark folder: copies of the images in HR/, their LR images in LRx4/, and manifest.json",
    )
    what.add_argument(
        "--preview", action="store_true", help="write a contact sheet: a row per image, a column per degradation"
    )
    command.add_argument("--columns", type=positive, default=5, help="degradations per image on the contact sheet")


def run(options: argparse.Namespace) -> None:
    """Writes an LR image and a .json of the values drawn for each image, a benchmark of them, or one contact sheet.

    Raises `ImageError` where there is no image, one cannot be read, or a result would replace its source, and
    `DataError` where two images have the same name, or the benchmark exists.
    """
    from upsr import images
    from upsr.commands.contact_sheet import sheet
    from upsr.commands.scale import load_at
    from upsr.config import load_params
    from upsr.degradation.second_order import build_degradation
    from upsr.files import by_stem

    params = load_at(options.scale, options.params) if options.scale else load_params(options.params)
    degrade = build_degradation(params.degradation, params.scale)
    paths = [p for path in options.input for p in (images.find(path) if path.is_dir() else [path])]
    if not paths:
        raise images.ImageError(f"{', '.join(map(str, options.input))}: no images found: name files or folders")
    if options.preview:
        shown = paths[:ROWS]
        images.write(options.output, sheet(degrade, shown, options.seed, options.columns))
        print(f"{options.output}: {len(shown)} images, {options.columns} degradations per image")
        return
    by_stem(paths)  # an LR image has the name of its HR image
    if options.benchmark:
        _write_benchmark(degrade, paths, options, params)
    else:
        _write_lr(degrade, paths, options.output, options.seed)
    print(f"{options.output}: {len(paths)} LR images, each with the values drawn in a .json")


def _write_benchmark(
    degrade: "SecondOrder", paths: Sequence[Path], options: argparse.Namespace, params: "Params"
) -> None:
    from upsr.files import DataError, whole_folder

    if options.output.exists():
        raise DataError(f"{options.output}: exists: choose another folder, or remove it")
    source = f"scales/{options.scale}.yaml" if options.scale else options.params.name
    lr = f"second-order degradation by {source}, seed {options.seed} and each image's name"
    with whole_folder(options.output) as folder:
        _write_lr(degrade, paths, folder / f"LRx{degrade.scale}", options.seed)
        (folder / "HR").mkdir()
        for path in paths:
            shutil.copyfile(path, folder / "HR" / path.name)
        manifest = {"lr": lr, "degradation": params.degradation.model_dump(mode="json")}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def _write_lr(degrade: "SecondOrder", paths: Sequence[Path], folder: Path, seed: int) -> None:
    from tqdm import tqdm

    for path in tqdm(paths, desc="degrade", unit="image", disable=None):
        _write(degrade, path, folder, seed)


def _write(degrade: "SecondOrder", path: Path, folder: Path, seed: int) -> None:
    from upsr import images
    from upsr.files import atomic

    target = folder / f"{path.stem}.png"
    if target.resolve() == path.resolve():
        raise images.ImageError(f"{target}: the result would replace the image: choose another folder")
    hr = images.to_tensor(images.read_rgb(path))
    if min(hr.shape[2:]) < degrade.scale:
        raise images.ImageError(f"{path}: narrower than {degrade.scale} pixels: leave it out")
    height, width = (side // degrade.scale * degrade.scale for side in hr.shape[2:])  # as an evaluation cuts HR
    lr, notes = degrade.named(hr[:, :, :height, :width], path.stem, (seed,))
    images.write(target, images.to_image(lr))
    with atomic(target.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({"seed": seed, "source": path.name} | notes, indent=2) + "\n")
