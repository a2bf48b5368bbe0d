"""`upsr degrade`: LR pictures for a fixed benchmark, or a contact sheet of what the settings do."""

import argparse
import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from tqdm import tqdm

from upsr import images
from upsr.commands import new, positive

if TYPE_CHECKING:
    from upsr.commands import Commands
    from upsr.degradation.second_order import SecondOrder

SIDE = 256  # of a picture on the contact sheet
LINE = 14  # height of a line of text


def add(commands: "Commands") -> None:
    de = new(commands, "degrade", run, "make LR pictures of HR pictures, as params.yaml's `degradation` says")
    de.add_argument("input", nargs="+", type=Path, help="pictures or folders of pictures")
    de.add_argument("-o", "--output", type=Path, required=True, help="a folder; with --preview a .png")
    de.add_argument("--params", type=Path, default=Path("params.yaml"), help="the settings")
    de.add_argument("--seed", type=int, default=0, help="same seed and name of a picture, same LR")
    de.add_argument(
        "--preview", action="store_true", help="one sheet: each picture in its first columns, degraded anew"
    )
    de.add_argument("--columns", type=positive, default=5, help="degradations of each picture on the sheet")


def run(options: argparse.Namespace) -> None:
    """Files and folders degraded one by one, the numbers drawn beside each."""
    from upsr.config import load_params
    from upsr.degradation.second_order import build_degradation

    params = load_params(options.params)
    degrade = build_degradation(params.degradation, params.scale)
    paths = [p for path in options.input for p in (images.find(path) if path.is_dir() else [path])]
    if not paths:
        raise images.ImageError(f"{', '.join(map(str, options.input))}: no pictures there: name some")
    if options.preview:
        rows = [_row(degrade, path, options.seed, options.columns) for path in tqdm(paths[:6], disable=None)]
        images.write(options.output, np.concatenate(rows))
        print(f"{options.output}: {len(rows)} pictures, {options.columns} degradations of each")
        return
    for path in tqdm(paths, desc="degrade", unit="picture", disable=None):
        _write(degrade, path, options.output, options.seed)
    print(f"{options.output}: {len(paths)} LR pictures, the numbers drawn for each in its .json")


def seed_of(path: Path, seed: int) -> tuple[int, int]:
    """What a picture's degradation is drawn from: its name, so that others beside it change nothing."""
    return seed, zlib.crc32(path.stem.encode())


def _write(degrade: "SecondOrder", path: Path, folder: Path, seed: int) -> None:
    target = folder / f"{path.stem}.png"
    if target.resolve() == path.resolve():
        raise images.ImageError(f"{target}: the result would replace the picture: choose another folder")
    hr = images.to_tensor(images.read_rgb(path))
    if min(hr.shape[2:]) < degrade.scale:
        raise images.ImageError(f"{path}: is narrower than {degrade.scale} pixels: leave it out")
    lr, notes = degrade.drawn(degrade.target(hr), seed_of(path, seed))
    images.write(target, images.to_image(lr))
    with images.atomic(target.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({"seed": seed, "source": path.name} | notes[0], indent=2) + "\n")


def _row(degrade: "SecondOrder", path: Path, seed: int, columns: int) -> np.ndarray:
    """The middle of a picture, and it degraded anew in each column, LR enlarged by repeating its pixels."""
    hr = images.to_tensor(_middle(images.read_rgb(path)))
    tiles = [_labelled(images.to_image(hr), [path.name[:34], "the original"])]
    for column in range(columns):
        lr, notes = degrade.drawn(degrade.target(hr), (*seed_of(path, seed), column))
        large = cv2.resize(images.to_image(lr), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
        tiles.append(_labelled(large, _lines(notes[0])))
    return np.concatenate(tiles, axis=1)


def _middle(rgb: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE, 3) from the middle of a picture; a smaller one is enlarged."""
    factor = max(1, SIDE / min(rgb.shape[:2]))
    if factor > 1:
        rgb = cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    y, x = ((side - SIDE) // 2 for side in rgb.shape[:2])
    return rgb[y : y + SIDE, x : x + SIDE]


def _lines(notes: dict[str, Any]) -> list[str]:
    """What was drawn, a line for each round."""
    if notes["plain"]:
        return ["plain: shrunk by bicubic,", "nothing else"]
    lines = []
    for name in ("first", "second"):
        kind = "sigma" if f"{name}.noise.sigma" in notes else "poisson_scale"
        noise = f"{'gauss' if kind == 'sigma' else 'poisson'} {notes[f'{name}.noise.{kind}']:.3g}"
        gray = " gray" if notes[f"{name}.noise.gray"] else ""
        size = f"{notes[f'{name}.resize.mode']} x{notes[f'{name}.resize.factor']:.2f}"
        lines.append(f"blur {notes[f'{name}.blur.spread']:.1f} {size} {noise}{gray} q{notes[f'{name}.jpeg']:.0f}")
    return lines


def _labelled(tile: np.ndarray, lines: list[str]) -> np.ndarray:
    """The tile with a strip of text below, and a gap to its neighbours."""
    strip = np.full((len(lines) * LINE + 6, SIDE, 3), 255, np.uint8)
    for number, text in enumerate(lines, start=1):
        cv2.putText(strip, text, (2, number * LINE - 2), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (0, 0, 0), 1, cv2.LINE_AA)
    return np.pad(np.concatenate([tile, strip]), ((0, 0), (0, 8), (0, 0)), constant_values=255)
