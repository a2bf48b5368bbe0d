"""One model over one benchmark, and the means of what was measured."""

import math
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from upsr.data.benchmarks import Benchmark, Pair
from upsr.evaluation.metrics import Metrics
from upsr.images import ImageError, read_rgb, resize, to_tensor

Row = dict[str, Any]
Upscale = Callable[[Tensor, int], Tensor]
OnPicture = Callable[[str, Tensor, Tensor, Tensor | None], None]


def bicubic(lr: Tensor, scale: int) -> Tensor:
    """The baseline: MATLAB's `imresize`. (B, 3, h, w) -> (B, 3, scale·h, scale·w), both in [0, 1]."""
    return resize(lr, (lr.shape[2] * scale, lr.shape[3] * scale)).clamp(0, 1)


def picture_number(name: str) -> int:
    """What a picture's noise is drawn from beside the seed: its name, so that files may come in any order."""
    return zlib.crc32(name.encode())


def evaluate(
    upscale: Upscale, benchmark: Benchmark, metrics: Metrics, on_picture: OnPicture | None = None
) -> tuple[list[Row], list[Row]]:
    """Upscales and measures each picture: (rows {benchmark, picture, metrics..., seconds}, failed).

    `upscale(lr, number)` maps (1, 3, h, w) in [0, 1] on the metrics' device, with the picture's `picture_number`.
    `on_picture(name, lr, sr, hr)` is told each result, `sr` cut to the size of `hr`. A picture that cannot be read,
    does not fit its reference or the device's memory, and a metric without value for a picture, stand in `failed` as
    {benchmark, picture, reason}; the others go on.
    """
    rows, failed = [], []
    for pair in benchmark.pairs:
        where = {"benchmark": benchmark.name, "picture": pair.name}
        try:
            lr, hr = _read(pair, benchmark.scale, metrics.device)
            sr, seconds = _timed(upscale, lr, picture_number(pair.name))
        except (ImageError, torch.OutOfMemoryError) as error:
            failed.append(where | {"reason": str(error)})
            continue
        if hr is not None:
            sr = sr[:, :, : hr.shape[2], : hr.shape[3]]
        values = metrics(sr, hr)
        failed += [where | {"reason": f"{name} has no value"} for name, v in values.items() if math.isnan(v)]
        rows.append(where | {name: v for name, v in values.items() if not math.isnan(v)} | {"seconds": seconds})
        if on_picture:
            on_picture(pair.name, lr, sr, hr)
    return rows, failed


def summary(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Means over the pictures that have a value: benchmark -> model -> metric. Each row names its `model`."""
    values: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        of_model = values.setdefault(row["benchmark"], {}).setdefault(row["model"], {})
        for name, value in row.items():
            if name not in ("benchmark", "model", "picture"):
                of_model.setdefault(name, []).append(value)
    return {
        benchmark: {model: {name: fmean(v) for name, v in of_model.items()} for model, of_model in models.items()}
        for benchmark, models in values.items()
    }


def _read(pair: Pair, scale: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """LR and HR as (1, 3, ., .). HR is cut to a multiple of LR's size; it may be smaller where LR was rounded up."""
    lr = to_tensor(read_rgb(pair.lr)).to(device)
    if pair.hr is None:
        return lr, None
    hr = to_tensor(read_rgb(pair.hr)).to(device)
    height, width = lr.shape[2] * scale, lr.shape[3] * scale
    if abs(hr.shape[2] - height) >= scale or abs(hr.shape[3] - width) >= scale:
        raise ImageError(f"{pair.hr}: {_size(hr)} is not {scale} times {_size(lr)}, the size of {Path(pair.lr).name}")
    return lr, hr[:, :, :height, :width]


def _size(x: Tensor) -> str:
    return f"{x.shape[3]}×{x.shape[2]}"


def _timed(upscale: Upscale, lr: Tensor, number: int) -> tuple[Tensor, float]:
    start = time.perf_counter()
    with torch.inference_mode():
        sr = upscale(lr, number)
    if sr.is_cuda:  # the device may still be at work
        torch.cuda.synchronize(sr.device)
    return sr, time.perf_counter() - start
