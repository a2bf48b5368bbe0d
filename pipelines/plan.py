"""What a run of the pipeline will take: sizes, memory and time, before anything is spent."""

import time
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipelines import train_atd, train_unet
from upsr.config import Params, Recipe
from upsr.models import build_atd
from upsr.training.atd_objective import AtdObjective
from upsr.training.memory import recompute_activations
from upsr.training.unet_objective import UnetObjective

GB = 2**30
# Assumptions: of what a large matrix product reaches, a training step of these networks gets about this much; and
# half of what it keeps is of half size under mixed precision.
EFFICIENCY, HALF = 0.5, 0.6
STATE = 5 * 4  # bytes a parameter: itself, gradient, AdamW's two moments, moving average


@dataclass(frozen=True)
class Step:
    """One optimizer step of a training: what it computes, and what it holds for its largest part."""

    parameters: int
    flops: int
    activations: int
    """Bytes kept between forward and backward, in single precision."""


def plan(params: Params, processes: int = 1) -> str:
    """A table of the stages: what they make, and for the trainings memory and time on the device at hand.

    The operations and the activations of a step are counted, by running it on tensors without contents; the time is
    these over the speed of a large matrix product, measured here. Expect a factor of two either way.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    speed = EFFICIENCY * matrix_speed(device, params.train.precision) * processes
    lines = [f"{processes} × {_name(device)}, about {speed / 1e12:.3g} useful TFLOP/s in {params.train.precision}"]
    lines += [f"{name:<14}{text}" for name, text in _before(params)]
    total = 0.0
    for name, recipe, step in trainings(params):
        seconds = recipe.steps * step.flops / speed
        total += seconds
        held = (STATE * step.parameters + step.activations * (1 if params.train.precision == "fp32" else HALF)) / GB
        lines.append(
            f"{name:<14}{step.parameters / 1e6:.2f} M parameters, {recipe.steps:,} steps of {recipe.batch} patches of "
            f"{recipe.patch}×{recipe.patch}: {step.flops / 1e12:.3g} TFLOP a step, {held:.1f} GB a device with "
            f"micro_batch {recipe.micro_batch}, {_duration(seconds)}; on disk {_disk(step, params):.1f} GB"
        )
    names = ", ".join(params.evaluate.benchmarks)
    lines.append(f"{'evaluate':<14}bicubic, ATD and UPSR on {names}, tiles of {params.evaluate.tile}")
    return "\n".join([*lines, f"in all about {_duration(total)} of training"])


def trainings(params: Params) -> list[tuple[str, Recipe, Step]]:
    """Each training with its recipe and a step of it."""
    cfg, found = params.train_atd, []
    recipes = [(params.scale, train_atd.own_recipe(cfg))]
    if params.atd.schedule == "x2_then_x4":
        recipes.insert(0, (2, train_atd.recipe_x2(cfg)))
    for scale, recipe in recipes:
        objective = train_atd.build_objective(params, scale, recipe)
        found.append(
            (f"train_atd x{scale}", recipe, count(build_atd(params.atd, scale), objective, recipe, scale, params))
        )
    objective_unet = train_unet.build_objective(params, build_atd(params.atd, params.scale))
    step = count(train_unet.fresh_denoiser(params), objective_unet, params.train_unet, params.scale, params)
    return [*found, ("train_unet", params.train_unet, step)]


def count(
    network: nn.Module, objective: AtdObjective | UnetObjective, recipe: Recipe, scale: int, params: Params
) -> Step:
    """Runs forward and backward of one micro-batch on tensors without contents, which takes no memory."""
    network, objective, n = network.to("meta"), objective.to("meta"), recipe.micro_batch
    if params.train.checkpointing:
        recompute_activations(network)
    hr, lr = (torch.empty(n, 3, side, side, device="meta") for side in (recipe.patch, recipe.patch // scale))
    batch = (lr, hr, torch.empty(n, device="meta"), hr) if isinstance(objective, UnetObjective) else (lr, hr)
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x
        return x

    counter = FlopCounterMode(display=False)
    with counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss, _ = objective.loss(network, *batch)
        loss.backward()
    weights = {p.untyped_storage()._cdata for module in (network, objective) for p in module.parameters()}
    held = sum(x.untyped_storage().nbytes() for place, x in kept.items() if place not in weights)
    parameters = sum(p.numel() for p in network.parameters())
    return Step(parameters, counter.get_total_flops() * recipe.batch // n, held)


def matrix_speed(device: torch.device, precision: str, side: int = 2048, seconds: float = 0.5) -> float:
    """Operations a second of a large matrix product."""
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    a = torch.rand(side, side, device=device).to(kinds[precision])
    (a @ a).sum().item()  # warms up
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        (a @ a).sum().item()
        rounds += 1
    return 2 * side**3 * rounds / (time.perf_counter() - start)


def _before(params: Params) -> list[tuple[str, str]]:
    sources = {"sample": "8 photographs, a few MB", "df2k": "3,450 pictures of about 2K, 15 GB, from the net"}
    source = sources.get(params.data.source, f"the pictures of {params.data.folder}")
    crop = params.crop
    return [
        ("download", source),
        ("crop", f"sub-images of {crop.size}×{crop.size}, every {crop.step}: "
                 f"about {(crop.size / crop.step) ** 2:.2g} times the pictures' size on disk"),
        ("pack", f"the same again, in one store as {params.pack.encoding}"),
    ]  # fmt: skip


def _disk(step: Step, params: Params) -> float:
    """Two states, the checkpoints kept with their raw weights, the model: GB."""
    return 4 * step.parameters * (2 * 4 + 2 * params.train.keep + 2) / GB


def _duration(seconds: float) -> str:
    for length, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({torch.get_num_threads()} threads)"
