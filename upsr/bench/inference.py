"""Speed and memory of upscaling."""

import resource
import time
from pathlib import Path
from statistics import median

import torch

from upsr.inference.precision import Dtype
from upsr.inference.upscaler import Upscaler

ROUNDS = 5  # each measures every precision, so that other load on the machine affects all alike
DTYPES: tuple[Dtype, ...] = ("auto", "bf16", "fp32")  # fp32, which needs most, is last: a process's peak never falls


def bench_inference(model: Path, side: int, device: str) -> None:
    """Prints time and peak memory of upscaling an image of side × side pixels as one tile, for each precision.

    Raises `CheckpointError` as `Upscaler.from_pretrained` does, and `ValueError` for a side below 16.
    """
    cuda = torch.device(device).type == "cuda"
    upscalers = {dtype: Upscaler.from_pretrained(model, device=device, dtype=dtype) for dtype in DTYPES}
    lr = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    seconds: dict[Dtype, list[float]] = {dtype: [] for dtype in DTYPES}
    peaks: dict[Dtype, int] = {}
    for _ in range(1 + ROUNDS):
        for dtype, upscaler in upscalers.items():
            if cuda:
                torch.cuda.reset_peak_memory_stats(device)
            start = time.perf_counter()
            upscaler.upscale(lr, tile=side)  # its result is on the CPU, so it has waited for a GPU
            seconds[dtype].append(time.perf_counter() - start)
            peaks.setdefault(dtype, _peak(device, cuda))
    print(
        f"{model.parent.name}, {side}x{side}, torch {torch.__version__} on {device}, {torch.get_num_threads()} threads"
    )
    times = {dtype: median(values[1:]) for dtype, values in seconds.items()}  # the first round warms up
    for dtype in DTYPES:
        print(
            f"{dtype:5}{times[dtype]:9.3f} s{side**2 / 1e6 / times[dtype]:9.4f} MP/s, "
            f"{times['fp32'] / times[dtype]:.2f} x fp32, peak memory {peaks[dtype] / 1e6:.0f} MB"
        )


def _peak(device: str, cuda: bool) -> int:
    return (
        torch.cuda.max_memory_allocated(device) if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
