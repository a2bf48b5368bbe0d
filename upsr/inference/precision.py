"""Which precision is fast on a device."""

from pathlib import Path
from typing import Literal

import torch

Dtype = Literal["auto", "fp32", "bf16", "fp16"]
FLAGS = ("amx_bf16", "avx512_bf16")  # of processors that multiply in bfloat16
CAPABILITY = (8, 0)  # of GPUs that do


def fast_dtype(device: torch.device) -> tuple[Literal["bf16", "fp32"], str]:
    """The precision in which the UNet is fastest on a device, and why: bf16 where the hardware multiplies in it."""
    if device.type == "cuda":
        has = torch.cuda.get_device_capability(device) >= CAPABILITY
        return ("bf16", "the GPU multiplies in it") if has else ("fp32", "the GPU does not multiply in bf16")
    flags = Path("/proc/cpuinfo").read_text().split()
    found = [flag for flag in FLAGS if flag in flags]
    return (
        ("bf16", f"the processor has {found[0]}") if found else ("fp32", f"the processor has no {' or '.join(FLAGS)}")
    )
