"""Speed of the degradation."""

import time

import numpy as np
import torch

from upsr import images
from upsr.acquisition import sources
from upsr.config import load_params
from upsr.degradation.second_order import build_degradation

PATCH = 256


def bench_degrade(batch: int, steps: int, device: str) -> None:
    """Prints mean and median time of degrading `batch` patches by the settings of params.yaml, over `steps` batches.

    Raises `ConfigError` where params.yaml is missing or invalid.
    """
    degrade = build_degradation(load_params().degradation, 4)
    photos = [images.read_rgb(photo.path) for photo in sources.find("sample", None, {})]
    cuts = [images.to_tensor(photos[i % len(photos)][:PATCH, :PATCH]) for i in range(batch)]
    hr = torch.cat([images.pad_to(cut, PATCH, PATCH) for cut in cuts]).to(device)
    wait = torch.cuda.synchronize if hr.is_cuda else lambda: None
    seconds = []
    for step in range(-3, steps):  # the first three warm up
        wait()
        start = time.perf_counter()
        degrade(hr, (0, step + 3))
        wait()
        seconds += [time.perf_counter() - start] * (step >= 0)
    mean, median = np.mean(seconds), np.median(seconds)
    print(
        f"{device}: a batch of {batch} in {1e3 * mean:.1f} ms (median {1e3 * median:.1f}), {batch / mean:.0f} images/s"
    )
