"""The contact sheet of `upsr degrade --preview`: a few images, their degradations and the values drawn."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from upsr import images
from upsr.degradation.second_order import SecondOrder

SIDE = 256  # side of an image on the sheet, in pixels
LINE = 14  # height of a line of text, in pixels


def sheet(degrade: SecondOrder, paths: list[Path], seed: int, columns: int) -> np.ndarray:
    """(H, W, 3) uint8: a row per image, its centre crop and `columns` degradations of it."""
    return np.concatenate([_row(degrade, path, seed, columns) for path in paths])


def _row(degrade: SecondOrder, path: Path, seed: int, columns: int) -> np.ndarray:
    """One row; LR images are enlarged by nearest neighbour, which shows their pixels."""
    hr = images.to_tensor(_centre(images.read_rgb(path)))
    tiles = [_labelled(images.to_image(hr), [path.name[:34], "original"])]
    for column in range(columns):
        lr, notes = degrade.named(hr, path.stem, (seed, column))
        large = cv2.resize(images.to_image(lr), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
        tiles.append(_labelled(large, _lines(notes)))
    return np.concatenate(tiles, axis=1)


def _centre(rgb: np.ndarray) -> np.ndarray:
    """The centre crop, (SIDE, SIDE, 3); a smaller image is enlarged."""
    factor = max(1, SIDE / min(rgb.shape[:2]))
    if factor > 1:
        rgb = cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    y, x = ((side - SIDE) // 2 for side in rgb.shape[:2])
    return rgb[y : y + SIDE, x : x + SIDE]


def _lines(notes: dict[str, Any]) -> list[str]:
    """The values drawn, one line per round."""
    if notes["plain"]:
        return ["plain: shrunk by bicubic,", "no other degradation"]
    lines = []
    for name in ("first", "second"):
        kind = "sigma" if f"{name}.noise.sigma" in notes else "poisson_scale"
        noise = f"{'gauss' if kind == 'sigma' else 'poisson'} {notes[f'{name}.noise.{kind}']:.3g}"
        gray = " gray" if notes[f"{name}.noise.gray"] else ""
        mode, factor = notes.get(f"{name}.resize.mode", "kept"), notes.get(f"{name}.resize.factor", 1)
        size = f"{mode} x{factor:.2f}"
        lines.append(f"blur {notes[f'{name}.blur.spread']:.1f} {size} {noise}{gray} q{notes[f'{name}.jpeg']:.0f}")
    return lines


def _labelled(tile: np.ndarray, lines: list[str]) -> np.ndarray:
    """The tile with a strip of text below and a gap on its right."""
    strip = np.full((len(lines) * LINE + 6, SIDE, 3), 255, np.uint8)
    for number, text in enumerate(lines, start=1):
        cv2.putText(strip, text, (2, number * LINE - 2), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (0, 0, 0), 1, cv2.LINE_AA)
    return np.pad(np.concatenate([tile, strip]), ((0, 0), (0, 8), (0, 0)), constant_values=255)
