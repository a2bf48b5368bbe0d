"""Cuts photographs into overlapping sub-images, so that a training sample costs a small decode."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from upsr import images
from upsr.data import DataError, by_stem, settle_corrupt, whole_folder


def crop(folder: Path, out: Path, *, size: int, step: int, threshold: int, on_corrupt: str) -> dict[str, Any]:
    """Fills `out` anew with `STEM_s001.png` ... of every picture in `folder`, by BasicSR's geometry.

    Returns what it writes to `out/report.json`: pictures read, sub-images written, pictures no larger than `size` and
    so kept whole, and a message for each corrupt one. Memory: one picture per thread. Raises `DataError`.
    """
    paths = list(by_stem(images.find(folder)).values())
    with whole_folder(out) as new:
        work = partial(_crop_one, out=new, size=size, step=step, threshold=threshold)
        with ThreadPoolExecutor() as pool:  # OpenCV codes and decodes outside Python's lock
            results = list(tqdm(pool.map(work, paths), total=len(paths), desc="crop", disable=None))
        report = _report(results)
        settle_corrupt(report["corrupt"], on_corrupt)
        if not report["subimages"]:
            raise DataError(f"{folder}: no readable picture to cut: run the `download` stage")
        (new / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


def positions(length: int, size: int, step: int, threshold: int) -> list[int]:
    """Where sub-images start along one side: every `step`, and flush with the edge if more than `threshold` is left."""
    starts = list(range(0, max(length - size, 0) + 1, step))
    return [*starts, length - size] if length - (starts[-1] + size) > threshold else starts


def _crop_one(path: Path, *, out: Path, size: int, step: int, threshold: int) -> tuple[int, bool] | str:
    """Writes one picture's sub-images; returns how many and whether it was kept whole, or why it cannot be read."""
    try:
        rgb = images.read_rgb(path)
    except images.ImageError as error:
        return str(error)
    rows, columns = (positions(side, size, step, threshold) for side in rgb.shape[:2])
    for number, (y, x) in enumerate(product(rows, columns), start=1):
        images.write(out / f"{path.stem}_s{number:03d}.png", rgb[y : y + size, x : x + size])
    return len(rows) * len(columns), max(rgb.shape) <= size


def _report(results: list[tuple[int, bool] | str]) -> dict[str, Any]:
    done = [r for r in results if not isinstance(r, str)]
    return {
        "pictures": len(done),
        "subimages": sum(count for count, _ in done),
        "whole": sum(whole for _, whole in done),
        "corrupt": [r for r in results if isinstance(r, str)],
    }
