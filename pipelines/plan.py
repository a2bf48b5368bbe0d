"""Estimates the disk space, memory and time that the pipeline needs."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipelines import train_atd, train_unet
from pipelines.processes import shares
from upsr.acquisition.space import data_sizes, free_space, on_disk
from upsr.bench.rate import DTYPES, product_rate
from upsr.config import Params, Recipe
from upsr.memory import free_memory
from upsr.models.atd import build_atd
from upsr.training.atd_objective import AtdObjective, build_atd_objective
from upsr.training.memory import TRIAL_SHARE, recompute_activations
from upsr.training.unet_objective import UnetObjective, build_unet_objective

GIB = 2**30
MODELS = Path("models")
SOURCES = {"sample": "8 photographs of installed packages", "df2k": "3,450 images of about 2K, and their archives"}
STATE = 5 * 4  # bytes per parameter: weight, gradient, AdamW's two moments, moving average
# One H100 with micro-batches of 32: FLOP/s of a large product of bf16 matrices, and of each training in bf16, without
# torch.compile and degradation (docs/benchmarks.md). Other GPUs are assumed to reach the same shares, CPUs CPU_SHARE.
H100_PRODUCT, H100_TRAINING, H100_GIB = 767e12, {"train_atd": 25.8e12, "train_unet": 51.1e12}, 79
CPU_SHARE = 0.5


@dataclass(frozen=True)
class Step:
    """The cost of one optimizer step; `flops` of the whole batch, `activations` of one patch."""

    parameters: int
    flops: int
    activations: int
    """Bytes saved between forward and backward, in single precision."""


def plan(params: Params) -> str:
    """A table of the stages: disk space, and the trainings' memory and time on this machine and on one H100.

    Needs no data and no weights. FLOPs and activations are counted in a step on meta tensors. Times are FLOPs over the
    speed that the first line states, so they may be wrong by a factor of two. Raises `ConfigError` and `DataError` as
    the stages would.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    product = product_rate(device, DTYPES[params.train.precision])
    lines = [f"{_name(device)}: {product / 1e12:.3g} TFLOP/s in a product of {params.train.precision} matrices"]
    # data
    sizes = data_sizes(params)
    crop, source = params.crop, SOURCES.get(params.data.source, f"the images of {params.data.folder}")
    what = {
        "download": source,
        "crop": f"sub-images of {crop.size}×{crop.size}, step {crop.step}",
        "pack": f"one LMDB as {params.pack.encoding}",
    }
    lines += [f"{stage:<14}{size.total / 1e9:.1f} GB on disk: {what[stage]}" for stage, size in sizes.items()]
    # trainings
    models, here, there = 0, 0.0, 0.0
    for name, recipe, step in trainings(params):
        section = name.split()[0]
        count = shares(recipe.batch) if device.type == "cuda" else 1
        share = H100_TRAINING[section] / H100_PRODUCT if device.type == "cuda" else CPU_SHARE
        work = recipe.steps * step.flops
        seconds, seconds_h100 = work / (count * share * product), work / H100_TRAINING[section]
        here, there, models = here + seconds, there + seconds_h100, models + _disk(step, recipe, params)
        memory = _memory(device)
        lines.append(
            f"{name:<14}{_disk(step, recipe, params) / 1e9:.1f} GB on disk: {step.parameters / 1e6:.2f} M parameters, "
            f"{recipe.steps:,} steps of {recipe.batch} patches of {recipe.patch}×{recipe.patch}, "
            f"{step.flops / 1e12:.3g} TFLOP each"
        )
        lines.append(
            f"{'':<14}here: {_duration(seconds)} on {count} of these at {share:.1%} of that speed, "
            f"{_needs(step, recipe, recipe.batch // count, memory)}"
        )
        lines.append(
            f"{'':<14}one H100: {_duration(seconds_h100)} at {H100_TRAINING[section] / 1e12:.3g} TFLOP/s, "
            f"{_needs(step, recipe, recipe.batch, H100_GIB)}"
        )
    # evaluation
    names = ", ".join(params.evaluate.benchmarks)
    lines.append(f"{'evaluate':<14}bicubic, ATD and UPSR on {names}, tiles of {params.evaluate.tile}")
    # in all
    total = models + sum(size.total for size in sizes.values())
    missing = max(models - on_disk(MODELS), 0) + sum(size.missing for size in sizes.values())
    enough = "enough" if missing <= free_space() else "not enough: free some, or let data be a link to a larger disk"
    lines.append(f"disk: {total / 1e9:.0f} GB, of which {missing / 1e9:.0f} GB are still missing")
    lines[-1] += f"; {free_space() / 1e9:.0f} GB are free: {enough}"
    return "\n".join([*lines, f"training: {_duration(here)} here, {_duration(there)} on one H100"])


def trainings(params: Params) -> list[tuple[str, Recipe, Step]]:
    """The name, the recipe and the cost of a step of each training."""
    cfg = params.train_atd
    recipes = [(params.scale, train_atd.own_recipe(cfg))]
    if params.atd.schedule == "x2_then_x4":
        recipes.insert(0, (2, train_atd.recipe_x2(cfg)))
    steps = []
    for scale, recipe in recipes:
        objective = build_atd_objective(params, scale, recipe, weights=None)
        step = count(build_atd(params.atd, scale), objective, recipe, scale, params)
        steps.append((f"train_atd x{scale}", recipe, step))
    objective_unet = build_unet_objective(params, build_atd(params.atd, params.scale), weights=None)
    step = count(train_unet.fresh_denoiser(params), objective_unet, params.train_unet, params.scale, params)
    rolled = 1 + params.train_unet.rollout / 3  # one more forward pass, a third of a step, of a share of the samples
    return [*steps, ("train_unet", params.train_unet, replace(step, flops=round(step.flops * rolled)))]


def count(
    network: nn.Module, objective: AtdObjective | UnetObjective, recipe: Recipe, scale: int, params: Params
) -> Step:
    """Runs forward and backward of one micro-batch on meta tensors, which need no memory."""
    network, objective = network.to("meta"), objective.to("meta")
    n = recipe.batch if recipe.micro_batch == "auto" else recipe.micro_batch
    if params.train.checkpointing:
        recompute_activations(network)
    hr, lr = (torch.empty(n, 3, side, side, device="meta") for side in (recipe.patch, recipe.patch // scale))
    batch: tuple[Any, ...] = (lr, hr)
    if isinstance(objective, UnetObjective):
        batch = (lr, hr, torch.empty(n, device="meta"), hr, None, torch.zeros(n, 2, dtype=torch.long))
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
    return Step(parameters, counter.get_total_flops() * recipe.batch // n, activations // n)


def _needs(step: Step, recipe: Recipe, share: int, gib: float) -> str:
    """The memory of a micro-batch, of `auto` the largest that fits, on a device with so many GiB."""
    need = {n: (STATE * step.parameters + n * step.activations) / GIB for n in range(1, share + 1) if share % n == 0}
    limit = share if recipe.micro_batch == "auto" else recipe.micro_batch
    fitting = [n for n in need if n <= limit and (recipe.micro_batch != "auto" or need[n] <= TRIAL_SHARE * gib)]
    n = max(fitting, default=1)
    return f"{need[n]:.1f} of {gib:.0f} GiB with micro-batches of {n}" + (": too much" if need[n] > gib else "")


def _memory(device: torch.device) -> float:
    """GiB of a GPU, or what is free on this machine."""
    return (torch.cuda.mem_get_info()[1] if device.type == "cuda" else free_memory(device)) / GIB


def _disk(step: Step, recipe: Recipe, params: Params) -> int:
    """Bytes on disk: two training states, the best checkpoints with their raw weights, and the model."""
    checkpoints = min(params.train.keep, -(-recipe.steps // params.train.validate_every))
    return 4 * step.parameters * (2 * 4 + 2 * checkpoints + 2)


def _duration(seconds: float) -> str:
    for length, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({torch.get_num_threads()} threads)"
