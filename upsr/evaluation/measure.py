"""One model on one picture of a benchmark."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from upsr.data.benchmarks import Pair
from upsr.evaluation.metrics import Metrics, Row
from upsr.images import ImageError, number_of, read_rgb, resize, to_tensor

Upscale = Callable[[Tensor, int], Tensor]
Keep = Callable[[Tensor, Tensor, Tensor | None], None]


def bicubic(lr: Tensor, scale: int) -> Tensor:
    """The baseline: MATLAB's `imresize`. (B, 3, h, w) -> (B, 3, scale·h, scale·w), both in [0, 1]."""
    return resize(lr, (lr.shape[2] * scale, lr.shape[3] * scale)).clamp(0, 1)


def measure(
    upscale: Upscale, pair: Pair, scale: int, metrics: Metrics, keep: Keep | None = None
) -> tuple[Row | None, list[Row]]:
    """Upscales and measures a picture: ({picture, metrics..., seconds}, failures).

    `upscale(lr, number)` maps (1, 3, h, w) in [0, 1] on the metrics' device, with the `number_of` its name.
    `keep(lr, sr, hr)` is handed the result, `sr` cut to the size of `hr`. Failures are {picture, metric, reason}: a
    picture that cannot be read, does not fit its reference or the device's memory has no row and one failure, of no
    metric; a metric without value for the picture is one more.
    """
    where = {"picture": pair.name}
    try:
        lr, hr = _read(pair, scale, metrics.device)
        sr, seconds = _timed(upscale, lr, number_of(pair.name))
    except (ImageError, RuntimeError) as error:  # among the latter: no memory left on the device
        return None, [where | {"metric": None, "reason": str(error)}]
    if hr is not None:
        sr = sr[:, :, : hr.shape[2], : hr.shape[3]]
    values = metrics(sr, hr)
    failed = [where | {"metric": k, "reason": f"{k} has no value"} for k, v in values.items() if math.isnan(v)]
    if keep:
        keep(lr, sr, hr)
    return where | {k: v for k, v in values.items() if not math.isnan(v)} | {"seconds": seconds}, failed


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
