"""The sheet of `upsr degrade --preview`: what the degradation does to a few images, and the numbers it drew."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from upsr import images
from upsr.degradation.second_order import SecondOrder

SIDE = 256  # of an image on the sheet
LINE = 14  # height of a line of text


def sheet(degrade: SecondOrder, paths: list[Path], seed: int, columns: int) -> np.ndarray:
    """A row per image: its middle, then that degraded in `columns` ways. (H, W, 3) uint8."""
    return np.concatenate([_row(degrade, path, seed, columns) for path in paths])


def _row(degrade: SecondOrder, path: Path, seed: int, columns: int) -> np.ndarray:
    """LR is enlarged by repeating its pixels."""
    hr = images.to_tensor(_middle(images.read_rgb(path)))
    tiles = [_labelled(images.to_image(hr), [path.name[:34], "the original"])]
    for column in range(columns):
        lr, notes = degrade.drawn(degrade.target(hr), (seed, images.number_of(path.stem), column))
        large = cv2.resize(images.to_image(lr), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
        tiles.append(_labelled(large, _lines(notes[0])))
    return np.concatenate(tiles, axis=1)


def _middle(rgb: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE, 3) from the middle of an image; a smaller one is enlarged."""
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
