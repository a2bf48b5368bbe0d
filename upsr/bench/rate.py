"""What a device reaches at best: the speed of a product of large matrices."""

import functools
import time

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@functools.cache
def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of square matrices, by measurement: the best of three rounds."""
    side, count = (8192, 20) if device.type == "cuda" else (1024, 2)
    a = torch.rand(side, side, device=device).to(dtype)

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(count):
            a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    seconds()  # warm-up
    return 2 * side**3 * count / min(seconds() for _ in range(3))
