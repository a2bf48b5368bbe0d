"""Speed of UPSR's parts on a device: g, and all steps of the sampler, eager and compiled, alone and in batches."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from upsr.bench.rate import product_rate
from upsr.config import Params
from upsr.diffusion.denoiser import build_denoiser, upsample
from upsr.diffusion.diffuser import Diffuser
from upsr.inference.precision import fast_dtype
from upsr.inference.upscaler import DTYPES, LAYOUT
from upsr.models.atd import build_atd
from upsr.models.unet import build_unet

BATCHES = (1, 16)
ROUNDS, WARM_UP = 5, 2  # a compiled network records its CUDA graphs in the second round


def bench_sample(params: Params, side: int, device: str, compiled: bool) -> None:
    """Prints milliseconds per image of side × side LR pixels, TFLOP/s, and their share of a matrix product's.

    The networks have the sizes of `params` and are untrained. g runs in fp32 and the UNet in the fast precision of the
    device, as in `Upscaler`. `compiled` also measures torch.compile, on a GPU with its CUDA graphs.
    """
    where = torch.device(device)
    precision = fast_dtype(where)[0]
    with torch.device(where):
        atd = build_atd(params.atd, params.scale).eval().to(where).to(memory_format=LAYOUT)
        network = build_unet(params.unet, params.scale)
        settings: dict[str, Any] = {key: getattr(params, key) for key in ("unet", "diffusion", "uncertainty")}
        denoiser = build_denoiser(network, **settings, scale=params.scale).eval().to(where).to(memory_format=LAYOUT)
    diffuser = Diffuser(denoiser, params.diffusion.sampler_eta, 1)
    print(
        f"ATD {params.atd.dim} in fp32, UNet {params.unet.dim} in {precision}, {params.diffusion.steps} steps, "
        f"{side}x{side}, torch {torch.__version__} on {device}, {torch.get_num_threads()} threads"
    )
    kinds: list[tuple[str, Any, Any]] = [("eager", atd, network)]
    if compiled:
        mode = "reduce-overhead" if where.type == "cuda" else None
        g, unet = (torch.compile(part, dynamic=False, mode=mode) for part in (atd, network))
        kinds.append(("compiled", g, unet))
    for batch in BATCHES:
        lr = torch.rand(batch, 3, side, side, device=where)
        parts: dict[str, torch.dtype | None] = {"g": None, "UNet": DTYPES[precision]}
        for part, dtype in parts.items():
            denoiser.network = network
            run = partial(atd, lr) if part == "g" else _sampler(diffuser, lr, dtype)
            flops = _flops(run)
            for label, g, unet in kinds:
                denoiser.network = unet
                seconds = _seconds(partial(g, lr) if part == "g" else run, where)
                share = flops / seconds / product_rate(where, dtype or torch.float32)
                print(
                    f"{part}, {label}, batch {batch}".ljust(26) + f"{1e3 * seconds / batch:9.1f} ms an image"
                    f"{flops / seconds / 1e12:9.3g} TFLOP/s, {100 * share:.0f} % of a matrix product"
                )


def _sampler(diffuser: Diffuser, lr: Tensor, dtype: torch.dtype | None) -> Callable[[], object]:
    """All steps from y↑ to the image, for a g that is bicubic interpolation."""
    y_up = upsample(lr, diffuser.denoiser.scale)
    noise, analysis = torch.randn_like(y_up), diffuser.analyse(lr)

    def run() -> object:
        with torch.autocast(lr.device.type, dtype) if dtype else nullcontext():
            return diffuser(y_up, y_up, lambda _: noise, analysis)

    return run


@torch.inference_mode()
def _flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@torch.inference_mode()
def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """The median of `ROUNDS`."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = []
    for _ in range(WARM_UP + ROUNDS):
        wait()
        start = time.perf_counter()
        run()
        wait()
        seconds.append(time.perf_counter() - start)
    return median(seconds[WARM_UP:])
