"""Estimates the disk space, memory and time that the pipeline needs."""

import time
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipelines import train_atd, train_unet
from upsr.config import Params, Recipe
from upsr.models.atd import build_atd
from upsr.training.atd_objective import AtdObjective
from upsr.training.memory import recompute_activations
from upsr.training.unet_objective import UnetObjective

GB = 2**30
# Assumptions: a training step of these networks reaches EFFICIENCY of a large matrix product's speed. Mixed precision
# reduces the memory of its activations to HALF.
EFFICIENCY, HALF = 0.5, 0.6
STATE = 5 * 4  # bytes per parameter: weight, gradient, AdamW's two moments, moving average


@dataclass(frozen=True)
class Step:
    """The cost of one optimizer step; `flops` of the whole batch, `activations` of one micro-batch."""

    parameters: int
    flops: int
    activations: int
    """Bytes saved between forward and backward, in single precision."""


def plan(params: Params) -> str:
    """A table of the stages with the sizes of their data, and the trainings' memory and time on this machine.

    FLOPs and activations are counted in a step on meta tensors. The time is FLOPs over the measured speed of a large
    matrix product, so it may be wrong by a factor of two.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    speed = EFFICIENCY * matrix_speed(device, params.train.precision)
    lines = [f"{_name(device)}, about {speed / 1e12:.3g} useful TFLOP/s in {params.train.precision}"]
    # data
    lines += [f"{name:<14}{text}" for name, text in _data_stages(params)]
    # trainings
    total = 0.0
    for name, recipe, step in trainings(params):
        seconds = recipe.steps * step.flops / speed
        total += seconds
        memory = (STATE * step.parameters + step.activations * (1 if params.train.precision == "fp32" else HALF)) / GB
        lines.append(
            f"{name:<14}{step.parameters / 1e6:.2f} M parameters, {recipe.steps:,} steps of {recipe.batch} patches of "
            f"{recipe.patch}×{recipe.patch}: {step.flops / 1e12:.3g} TFLOP per step, {memory:.1f} GB per device with "
            f"micro_batch {recipe.micro_batch}, {_duration(seconds)}; on disk {_disk(step, params):.1f} GB"
        )
    # evaluation
    names = ", ".join(params.evaluate.benchmarks)
    lines.append(f"{'evaluate':<14}bicubic, ATD and UPSR on {names}, tiles of {params.evaluate.tile}")
    return "\n".join([*lines, f"about {_duration(total)} of training in total"])


def trainings(params: Params) -> list[tuple[str, Recipe, Step]]:
    """The name, the recipe and the cost of a step of each training."""
    cfg = params.train_atd
    recipes = [(params.scale, train_atd.own_recipe(cfg))]
    if params.atd.schedule == "x2_then_x4":
        recipes.insert(0, (2, train_atd.recipe_x2(cfg)))
    steps = []
    for scale, recipe in recipes:
        objective = train_atd.build_objective(params, scale, recipe)
        step = count(build_atd(params.atd, scale), objective, recipe, scale, params)
        steps.append((f"train_atd x{scale}", recipe, step))
    objective_unet = train_unet.build_objective(params, build_atd(params.atd, params.scale))
    step = count(train_unet.fresh_denoiser(params), objective_unet, params.train_unet, params.scale, params)
    rolled = 1 + params.train_unet.rollout / 3  # one more forward pass, a third of a step, of a share of the samples
    return [*steps, ("train_unet", params.train_unet, replace(step, flops=round(step.flops * rolled)))]


def count(
    network: nn.Module, objective: AtdObjective | UnetObjective, recipe: Recipe, scale: int, params: Params
) -> Step:
    """Runs forward and backward of one micro-batch on meta tensors, which need no memory."""
    network, objective, n = network.to("meta"), objective.to("meta"), recipe.micro_batch
    if params.train.checkpointing:
        recompute_activations(network)
    hr, lr = (torch.empty(n, 3, side, side, device="meta") for side in (recipe.patch, recipe.patch // scale))
    batch = (lr, hr, torch.empty(n, device="meta"), hr) if isinstance(objective, UnetObjective) else (lr, hr)
    saved: dict[int, Tensor] = {}

    def save(x: Tensor) -> Tensor:
        saved[x.untyped_storage()._cdata] = x
        return x

    counter = FlopCounterMode(display=False)
    with counter:
        with torch.autograd.graph.saved_tensors_hooks(save, lambda x: x):
            loss, _ = objective.loss(network, *batch)
        loss.backward()
    weights = {p.untyped_storage()._cdata for module in (network, objective) for p in module.parameters()}
    activations = sum(x.untyped_storage().nbytes() for storage, x in saved.items() if storage not in weights)
    parameters = sum(p.numel() for p in network.parameters())
    return Step(parameters, counter.get_total_flops() * recipe.batch // n, activations)


def matrix_speed(device: torch.device, precision: str, side: int = 2048, seconds: float = 0.5) -> float:
    """FLOP/s of a large matrix product, by measurement."""
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    a = torch.rand(side, side, device=device).to(dtypes[precision])
    (a @ a).sum().item()  # warm-up
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        (a @ a).sum().item()
        rounds += 1
    return 2 * side**3 * rounds / (time.perf_counter() - start)


def _data_stages(params: Params) -> list[tuple[str, str]]:
    sources = {"sample": "8 photographs, a few MB", "df2k": "3,450 images of about 2K, 15 GB, downloaded"}
    source = sources.get(params.data.source, f"the images of {params.data.folder}")
    crop = params.crop
    return [
        ("download", source),
        ("crop", f"sub-images of {crop.size}×{crop.size}, step {crop.step}: "
                 f"about {(crop.size / crop.step) ** 2:.2g} times the images' size on disk"),
        ("pack", f"the same size again, in one LMDB as {params.pack.encoding}"),
    ]  # fmt: skip


def _disk(step: Step, params: Params) -> float:
    """GB on disk: two training states, the best checkpoints with their raw weights, and the model."""
    return 4 * step.parameters * (2 * 4 + 2 * params.train.keep + 2) / GB


def _duration(seconds: float) -> str:
    for length, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({torch.get_num_threads()} threads)"
