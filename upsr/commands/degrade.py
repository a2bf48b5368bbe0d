"""`upsr degrade`: LR images, a fixed benchmark of them, or a contact sheet of the degradation."""

import argparse
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from upsr.commands import new, positive

if TYPE_CHECKING:
    import numpy as np

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
    command.add_argument(
        "--sample", type=positive, help="use this many images, drawn by the seed from the folders and all below them"
    )
    command.add_argument(
        "--side",
        type=positive,
        help="use the central square of each image, after resizing its shorter side to this many pixels",
    )
    command.add_argument("--columns", type=positive, default=5, help="degradations per image on the contact sheet")


def run(options: argparse.Namespace) -> None:
    """Writes an LR image and a .json of the values drawn for each image, a benchmark of them, or one contact sheet.

    Raises `ImageError` where there is no image, one cannot be read, or a result would replace its source, and
    `DataError` where two images have the same name, there are too few to sample, or the benchmark exists.
    """
    from upsr import images
    from upsr.commands.contact_sheet import sheet
    from upsr.commands.scale import load_at
    from upsr.config import load_params
    from upsr.degradation.second_order import build_degradation
    from upsr.files import by_stem

    params = load_at(options.scale, options.params) if options.scale else load_params(options.params)
    degrade = build_degradation(params.degradation, params.scale)
    find = images.find_below if options.sample else images.find
    paths = [p for path in options.input for p in (find(path) if path.is_dir() else [path])]
    if not paths:
        raise images.ImageError(f"{', '.join(map(str, options.input))}: no images found: name files or folders")
    if options.sample:
        paths = _sample(paths, options.sample, options.seed)
    if options.preview:
        shown = paths[:ROWS]
        images.write(options.output, sheet(degrade, shown, options.seed, options.columns))
        print(f"{options.output}: {len(shown)} images, {options.columns} degradations per image")
        return
    by_stem(paths)  # an LR image has the name of its HR image
    if options.benchmark:
        _write_benchmark(degrade, paths, options, params)
    else:
        _write_lr(degrade, paths, options.output, options.seed, options.side)
    print(f"{options.output}: {len(paths)} LR images, each with the values drawn in a .json")


def _write_benchmark(
    degrade: "SecondOrder", paths: Sequence[Path], options: argparse.Namespace, params: "Params"
) -> None:
    from upsr import images
    from upsr.files import DataError, whole_folder

    if options.output.exists():
        raise DataError(f"{options.output}: exists: choose another folder, or remove it")
    source = f"scales/{options.scale}.yaml" if options.scale else options.params.name
    lr = f"second-order degradation by {source}, seed {options.seed} and each image's name"
    with whole_folder(options.output) as folder:
        _write_lr(degrade, paths, folder / f"LRx{degrade.scale}", options.seed, options.side)
        (folder / "HR").mkdir()
        for path in paths:
            if options.side:
                images.write(folder / "HR" / f"{path.stem}.png", _read(path, options.side))
            else:
                shutil.copyfile(path, folder / "HR" / path.name)
        drawn = {"sample": options.sample, "seed": options.seed, "side": options.side}
        manifest = {"lr": lr, "hr": drawn, "degradation": params.degradation.model_dump(mode="json")}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def _write_lr(degrade: "SecondOrder", paths: Sequence[Path], folder: Path, seed: int, side: int | None) -> None:
    from tqdm import tqdm

    for path in tqdm(paths, desc="degrade", unit="image", disable=None):
        _write(degrade, path, folder, seed, side)


def _write(degrade: "SecondOrder", path: Path, folder: Path, seed: int, side: int | None) -> None:
    from upsr import images
    from upsr.files import atomic

    target = folder / f"{path.stem}.png"
    if target.resolve() == path.resolve():
        raise images.ImageError(f"{target}: the result would replace the image: choose another folder")
    hr = images.to_tensor(_read(path, side))
    if min(hr.shape[2:]) < degrade.scale:
        raise images.ImageError(f"{path}: narrower than {degrade.scale} pixels: leave it out")
    height, width = (side // degrade.scale * degrade.scale for side in hr.shape[2:])  # as an evaluation cuts HR
    lr, notes = degrade.named(hr[:, :, :height, :width], path.stem, (seed,))
    images.write(target, images.to_image(lr))
    with atomic(target.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({"seed": seed, "source": path.name} | notes, indent=2) + "\n")


def _sample(paths: Sequence[Path], count: int, seed: int) -> list[Path]:
    """Draws `count` of the images; which, depends on all names and the seed. Raises `DataError` where there are fewer.

    Seed 10000 draws, of the 50,000 images of ImageNet's validation set, those that ResShift's script
    `prepare_testing_imagenet_sr.py` draws of them in one folder.
    """
    from upsr.files import DataError

    if count > len(paths):
        raise DataError(f"--sample {count}: found {len(paths)} images only: lower it, or name more folders")
    names = sorted(paths, key=lambda path: path.name)
    rng = random.Random(seed)
    rng.shuffle(list(names))  # the script shuffles a list that it then leaves; it is here for what is drawn after it
    return sorted(rng.sample(names, count), key=lambda path: path.name)


def _read(path: Path, side: int | None) -> "np.ndarray":
    """(H, W, 3) uint8: the image, or with `side` its central square, resized without antialiasing as ResShift does."""
    import cv2
    import numpy as np

    from upsr import images

    rgb = images.read_rgb(path)
    if side is None:
        return rgb
    height, width = (round(length * side / min(rgb.shape[:2])) for length in rgb.shape[:2])
    resized = cv2.resize(rgb.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    y, x = (height - side) // 2, (width - side) // 2
    return resized[y : y + side, x : x + side].round().astype(np.uint8)
