"""Measures one model on one image of a benchmark."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from upsr.data.benchmarks import Pair
from upsr.evaluation.metrics import Metrics, Row
from upsr.images import ImageError, number_of, read_rgb, resize, to_tensor

Upscale = Callable[[Tensor, int], Tensor]
"""(lr, number of the image) -> sr."""
Keep = Callable[[Tensor, Tensor, Tensor | None], None]
"""(lr, sr, hr): stores the result."""


def bicubic(lr: Tensor, scale: int) -> Tensor:
    """The baseline: MATLAB's `imresize`. (B, 3, h, w) -> (B, 3, scale·h, scale·w), both in [0, 1]."""
    return resize(lr, (lr.shape[2] * scale, lr.shape[3] * scale)).clamp(0, 1)


@dataclass(frozen=True)
class Precomputed:
    """Images that another program made of a benchmark's LR images, in one folder."""

    folder: Path
    files: dict[str, Path]
    """By name without suffix, which is the name of the benchmark's image."""

    def read(self, name: str, lr: Tensor, scale: int) -> Tensor:
        """The image made of `lr` (1, 3, h, w): (1, 3, scale·h, scale·w) in [0, 1], on the device of `lr`.

        Raises `ImageError` where there is none of this name, it cannot be read, or has another size.
        """
        if name not in self.files:
            raise ImageError(f"{self.folder}: no image of {name}: name it as the benchmark does, such as {name}.png")
        path = self.files[name]
        sr = to_tensor(read_rgb(path)).to(lr.device)
        if sr.shape[2:] != (lr.shape[2] * scale, lr.shape[3] * scale):
            raise ImageError(f"{path}: {_size(sr)} is not {scale} times {_size(lr)}, the size of its LR: make it again")
        return sr


def measure(
    upscale: Upscale, pair: Pair, scale: int, metrics: Metrics, keep: Keep | None = None
) -> tuple[Row | None, list[Row]]:
    """Upscales and measures an image; returns ({picture, metric: value, ..., seconds}, failures).

    `upscale` maps (1, 3, h, w) in [0, 1] on the metrics' device. `keep` receives `sr` cut to the size of `hr`.
    A failure is {picture, metric, reason}, one per metric without a value. Where the image cannot be read, does not fit
    its reference, or exceeds the device's memory, the row is None and the one failure has the metric None.
    """
    image = {"picture": pair.name}
    try:
        lr, hr = _read(pair, scale, metrics.device)
        sr, seconds = _timed(upscale, lr, number_of(pair.name))
    except (ImageError, RuntimeError) as error:  # RuntimeError: such as out of memory on the device
        return None, [image | {"metric": None, "reason": str(error)}]
    if hr is not None:
        sr = sr[:, :, : hr.shape[2], : hr.shape[3]]
    values = metrics(sr, hr)
    failed = [image | {"metric": k, "reason": f"{k} has no value"} for k, v in values.items() if math.isnan(v)]
    if keep:
        keep(lr, sr, hr)
    return image | {k: v for k, v in values.items() if not math.isnan(v)} | {"seconds": seconds}, failed


def _read(pair: Pair, scale: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """(lr, hr), each (1, 3, H, W). HR is cut to `scale` times LR's size; it is smaller where LR was rounded up."""
    lr = to_tensor(read_rgb(pair.lr)).to(device)
    if pair.hr is None:
        return lr, None
    hr = to_tensor(read_rgb(pair.hr)).to(device)
    height, width = lr.shape[2] * scale, lr.shape[3] * scale
    if abs(hr.shape[2] - height) >= scale or abs(hr.shape[3] - width) >= scale:
        raise ImageError(
            f"{pair.hr}: {_size(hr)} is not {scale} times {_size(lr)}, the size of {Path(pair.lr).name}: replace one"
        )
    return lr, hr[:, :, :height, :width]


def _size(x: Tensor) -> str:
    return f"{x.shape[3]}×{x.shape[2]}"


def _timed(upscale: Upscale, lr: Tensor, number: int) -> tuple[Tensor, float]:
    start = time.perf_counter()
    with torch.inference_mode():
        sr = upscale(lr, number)
    if sr.is_cuda:  # CUDA runs asynchronously
        torch.cuda.synchronize(sr.device)
    return sr, time.perf_counter() - start
