"""Cuts photographs into overlapping sub-images, so that a training sample decodes a small image."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from upsr import images
from upsr.files import DataError, by_stem, report_corrupt, whole_folder


class Cut(NamedTuple):
    """Result for one image: sub-images written, flat ones dropped, kept whole or not; `fault`: why it is unreadable."""

    file: str
    written: int = 0
    flat: int = 0
    whole: bool = False
    fault: str = ""


def crop(
    folder: Path, out: Path, *, size: int, step: int, threshold: int, min_gradient: float, on_corrupt: str
) -> dict[str, Any]:
    """Replaces `out` by `STEM_s001.png` ... of every image in `folder`, in BasicSR's geometry.

    Returns the contents of `out/report.json`, which accounts for every file of `folder`: sub-images per image, a
    message per corrupt image, the other files; and the totals of sub-images, flat ones, and images no larger than
    `size`, which are kept whole. Memory: one image per thread. Raises `DataError` where no sub-image results, two
    images share a stem, or one is corrupt and `on_corrupt` is `fail`; `ImageError` where `folder` does not exist.
    """
    paths = list(by_stem(images.find(folder)).values())
    with whole_folder(out) as new:
        work = partial(_crop_one, out=new, size=size, step=step, threshold=threshold, min_gradient=min_gradient)
        with ThreadPoolExecutor() as pool:  # OpenCV releases the GIL
            results = list(tqdm(pool.map(work, paths), total=len(paths), desc="crop", disable=None))
        report = _report(results) | {"ignored": _others(folder, paths)}
        report_corrupt(report["corrupt"], on_corrupt)
        if not report["subimages"]:
            raise DataError(f"{folder}: gives no sub-image: run the `download` stage, or lower crop.min_gradient")
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        # An ignored file's name may be any bytes.
        (new / "report.json").write_text(text, encoding="utf-8", errors="backslashreplace")
    return report


def positions(length: int, size: int, step: int, threshold: int) -> list[int]:
    """Starts of the sub-images along one side: every `step`, and one at the edge if more than `threshold` is left."""
    starts = list(range(0, max(length - size, 0) + 1, step))
    return [*starts, length - size] if length - (starts[-1] + size) > threshold else starts


def gradient_energy(rgb: np.ndarray) -> float:
    """Mean of (∂x)² + (∂y)² of the grey levels 0..255 of (H, W, 3); 0 for a single colour."""
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return sum(float(np.square(np.diff(gray, axis=axis)).mean()) for axis in (0, 1) if gray.shape[axis] > 1)


def _crop_one(path: Path, *, out: Path, size: int, step: int, threshold: int, min_gradient: float) -> Cut:
    """Writes one image's sub-images. A flat one uses up a number, so that names do not depend on `min_gradient`."""
    try:
        images.check_name(path)
        rgb = images.read_rgb(path)
    except images.ImageError as error:
        return Cut(path.name, fault=str(error))
    written = flat = 0
    corners = product(*(positions(side, size, step, threshold) for side in rgb.shape[:2]))
    for number, (y, x) in enumerate(corners, start=1):
        part = rgb[y : y + size, x : x + size]
        if min_gradient and gradient_energy(part) < min_gradient:
            flat += 1
            continue
        (out / f"{path.stem}_s{number:03d}.png").write_bytes(images.encode_png(part))
        written += 1
    return Cut(path.name, written, flat, max(rgb.shape[:2]) <= size)


def _report(results: list[Cut]) -> dict[str, Any]:
    done = [r for r in results if not r.fault]
    return {
        "cut": {r.file: r.written for r in done},
        "subimages": sum(r.written for r in done),
        "flat": sum(r.flat for r in done),
        "whole": sum(r.whole for r in done),
        "corrupt": [r.fault for r in results if r.fault],
    }


def _others(folder: Path, used: list[Path]) -> list[str]:
    """Names of the other files in a folder, except the manifest of `download`."""
    known = {path.name for path in used} | {"manifest.json"}
    return sorted(path.name for path in folder.iterdir() if path.name not in known)
