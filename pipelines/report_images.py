"""The images embedded in the report: results and maps of one benchmark image."""

import base64
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from upsr.images import read_rgb

RESULTS = ("lr", "bicubic", "atd", "upsr", "hr")  # display order; other models come before UPSR
MAPS = ("residual", "edge", "frequency", "mix", "weight", "weights")  # display order; others come last
STRIPS = ("weights",)  # images of several maps side by side
LARGEST = 512  # pixels per side; a larger result is cropped to its most detailed part
LARGEST_PNG = 48_000  # bytes; a larger image becomes a JPEG without chroma subsampling


@dataclass(frozen=True)
class Embedded:
    """A result, the reference, or a map as a data URI; width and height in pixels."""

    name: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class ReportImages:
    """`focus`: (x, y) of the most detailed spot, in percent of the shown size.

    `part`: the size of the crop and of the image, empty if the image is shown whole.
    """

    results: list[Embedded]
    maps: list[Embedded]
    focus: tuple[float, float]
    part: str


def read_images(folder: Path, models: Collection[str]) -> ReportImages:
    """Reads all PNG files of a benchmark image's folder, which has `lr.png` and at least one result.

    Files named after one of the `models`, `lr` or `hr` are results; all others are maps.
    """
    # files
    results = {"lr", "hr", *models}
    paths = sorted((p for p in folder.glob("*.png") if p.stem in results), key=_order_of_result)
    maps = sorted((p for p in folder.glob("*.png") if p.stem not in results), key=_order_of_map)
    # crop: a window in LR pixels around the most detailed spot of the largest result
    sharpest = read_rgb(paths[-1])
    lr_size = read_rgb(folder / "lr.png").shape[:2]
    scale = max(1, round(sharpest.shape[1] / lr_size[1]))
    spot = _most_detail(sharpest)
    view = [_window(int(spot[i] / scale), lr_size[i], LARGEST // scale) for i in (0, 1)]
    height, width = (scale * (part.stop - part.start) for part in view)
    y, x = (100 * (spot[i] - scale * view[i].start) / side for i, side in ((0, height), (1, width)))
    cropped = (height, width) != (scale * lr_size[0], scale * lr_size[1])
    return ReportImages(
        results=[_embedded(path.stem, _crop(read_rgb(path), view, lr_size[1])) for path in paths],
        maps=[
            _embedded(path.stem, _shrunk(read_rgb(path), 3 * LARGEST if path.stem in STRIPS else LARGEST))
            for path in maps
        ],
        focus=(round(x, 1), round(y, 1)),
        part=f"{width} × {height} of {scale * lr_size[1]} × {scale * lr_size[0]} pixels" if cropped else "",
    )


def _order_of_result(path: Path) -> tuple[int, str]:
    return RESULTS.index(path.stem if path.stem in RESULTS else "atd"), path.stem


def _order_of_map(path: Path) -> tuple[int, str]:
    return MAPS.index(path.stem) if path.stem in MAPS else len(MAPS), path.stem


def _most_detail(image: np.ndarray) -> tuple[int, int]:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    detail = cv2.GaussianBlur(np.abs(cv2.Laplacian(grey, cv2.CV_32F)), (0, 0), sigmaX=max(grey.shape) / 16)
    y, x = np.unravel_index(detail.argmax(), grey.shape)
    return int(y), int(x)


def _window(centre: int, length: int, side: int) -> slice:
    start = max(0, min(centre - side // 2, length - side))
    return slice(start, min(start + side, length))


def _crop(image: np.ndarray, view: list[slice], lr_width: int) -> np.ndarray:
    """The crop of an image; `view` is (rows, columns) in LR pixels."""
    scale = max(1, round(image.shape[1] / lr_width))
    y, x = (slice(scale * part.start, scale * part.stop) for part in view)
    return np.ascontiguousarray(image[y, x])


def _shrunk(image: np.ndarray, side: int) -> np.ndarray:
    factor = min(1.0, side / max(image.shape[:2]))
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA) if factor < 1 else image


def _embedded(name: str, image: np.ndarray) -> Embedded:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    kind, data = "png", cv2.imencode(".png", bgr)[1].tobytes()
    if len(data) > LARGEST_PNG:
        options = [cv2.IMWRITE_JPEG_QUALITY, 92, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
        kind, data = "jpeg", cv2.imencode(".jpg", bgr, options)[1].tobytes()
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Embedded(name, uri, width=image.shape[1], height=image.shape[0])
