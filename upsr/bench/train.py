"""Speed of both trainings: where a step's time goes, and the same steps by other settings."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from upsr import images
from upsr.bench.rate import DTYPES, product_rate
from upsr.config import Params, Recipe, Train
from upsr.data.datasets import PatchDataset, step_batches
from upsr.data.lmdb_store import pack
from upsr.diffusion.denoiser import build_denoiser
from upsr.models.atd import build_atd
from upsr.models.unet import build_unet
from upsr.training.atd_objective import build_atd_objective
from upsr.training.ema import Ema
from upsr.training.memory import memory_errors_in_one_line, micro_batch_size, recompute_activations
from upsr.training.pairs import Objective
from upsr.training.perceptual import ALEX, CHANNELS, DISTS, VGG
from upsr.training.unet_objective import UnetObjective, build_unet_objective

LMDB, WEIGHTS = Path("data/train.lmdb"), Path("data/metric_weights")
PARTS = ("data", "degradation", "g", "network", "perceptual", "optimiser")
PAUSE = ""  # between two steps
ROUNDS = 5  # each measures every setting, so that other load on the machine affects all alike


def bench_train(params: Params, device: str, folder: Path, compiled: bool) -> None:
    """Prints the speed of steps of both trainings with untrained networks, by the settings of `params` and by others.

    Reads the training images and LPIPS's weights of the working directory. What is missing is made up in the empty
    `folder`. `compiled` also measures torch.compile. Raises `DataError` for a broken LMDB, `CheckpointError` for a
    teacher that cannot be used, and `TrainingError` where a step needs more memory than there is.
    """
    lmdb = LMDB if LMDB.exists() else _made_up_images(folder, params)
    weights = (
        WEIGHTS
        if all((WEIGHTS / name).exists() for name in (VGG.weights, ALEX.weights, DISTS))
        else _made_up_weights(folder)
    )
    made_up = [name for name, path in (("images", lmdb), ("LPIPS weights", weights)) if path.is_relative_to(folder)]
    print(
        f"torch {torch.__version__} on {device}, {torch.get_num_threads()} threads"
        + (f"; {' and '.join(made_up)} are made up" if made_up else "")
    )
    for name in ("train_atd", "train_unet"):
        recipe: Recipe = getattr(params, name)
        with memory_errors_in_one_line(name, recipe.micro_batch, recipe.patch):
            _bench(name, recipe, params, lmdb, weights, torch.device(device), compiled)


def _bench(
    name: str, recipe: Recipe, params: Params, lmdb: Path, weights: Path, device: torch.device, compiled: bool
) -> None:
    """Prints the figures of one training."""
    make, objective = (_atd if name == "train_atd" else _unet)(params, weights)
    objective = objective.to(device)
    # the settings to compare, the first of which are those of params.yaml
    base, micro_batch = params.train, recipe.micro_batch
    if micro_batch == "auto":
        precision = "no" if base.precision == "fp32" else base.precision
        accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
        micro_batch = micro_batch_size(recipe, make().to(device), objective, accelerator)
    parts = recipe.batch // micro_batch
    changes: list[dict[str, Any]] = [{}, {"precision": "fp32" if base.precision != "fp32" else "bf16"}]
    changes += [{"channels_last": not base.channels_last}] + ([{"compile": not base.compile}] if compiled else [])
    runs = [Steps(make(), objective, recipe, parts, base.model_copy(update=change), device) for change in changes]
    read = _reader(PatchDataset(lmdb, recipe.patch, params.seed), recipe, parts, base, device)
    # seconds per step, in rounds that alternate
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds: list[list[float]] = [[] for _ in runs]
    for i in range(1 + ROUNDS):
        for run, times in zip(runs, seconds, strict=True):
            wait()
            start = time.perf_counter()
            run.step(read, (params.seed, i))
            wait()
            times += [time.perf_counter() - start] * (i > 0)  # the first round warms up
    # FLOPs and parts of the same steps
    with FlopCounterMode(display=False) as counter:
        for i in range(1, 1 + ROUNDS):
            runs[0].gradients(runs[0].network, objective.draw(read(), (params.seed, i)))
    clock = Clock(wait)
    with _watched(objective, clock):
        for i in range(1, 1 + ROUNDS):
            runs[0].step(read, (params.seed, i), clock)
    total = sum(clock.seconds.values())
    # table
    print(f"{name}: {recipe.batch} patches of {recipe.patch}x{recipe.patch} per step, micro_batch {micro_batch}")
    print("  " + ", ".join(f"{p} {100 * clock.seconds[p] / total:.0f} %" for p in PARTS if p in clock.seconds))
    for change, run, times in zip(changes, runs, seconds, strict=True):
        label = ", ".join(f"{key}: {str(value).lower()}" for key, value in change.items()) or base.precision
        faster = median(first / own for first, own in zip(seconds[0], times, strict=True))
        flops = counter.get_total_flops() / sum(times)
        rate = product_rate(device, DTYPES[run.train.precision])
        print(
            f"  {label:21}{1e3 * median(times):9.1f} ms{1 / median(times):8.2f} steps/s{faster:7.2f} x as fast"
            f"{flops / 1e12:9.3g} TFLOP/s, {100 * flops / rate:.0f} % of a matrix product"
        )


class Steps:
    """A network and what trains it: the steps of `training.loop.fit`, without its logs, checkpoints and processes."""

    def __init__(
        self, network: nn.Module, objective: Objective, recipe: Recipe, parts: int, train: Train, device: torch.device
    ) -> None:
        layout = torch.channels_last if train.channels_last else torch.contiguous_format
        self.network = network.to(device, memory_format=layout).train()  # type: ignore[call-overload]
        self.objective, self.recipe, self.parts, self.train, self.device = objective, recipe, parts, train, device
        self.ema = Ema(self.network, recipe.ema)
        if train.checkpointing:
            recompute_activations(self.network)
        self.adam = torch.optim.AdamW(
            self.network.parameters(), recipe.lr, recipe.betas, weight_decay=recipe.weight_decay, fused=True
        )
        self.model: Any = torch.compile(self.network) if train.compile else self.network

    def step(
        self, read: Callable[[], Tensor], seed: tuple[int, int], clock: Callable[[str], None] = lambda _: None
    ) -> None:
        """One step on the patches of `read`; tells `clock` which part begins."""
        clock("data")
        hr = read()
        clock("degradation")
        drawn = self.objective.draw(hr, seed)
        clock("network")
        self.gradients(self.model, drawn)
        clock("optimiser")
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.adam.step()
        self.adam.zero_grad()
        self.ema.update(self.network, skip=~torch.isfinite(norm))
        clock(PAUSE)

    def gradients(self, model: nn.Module, drawn: tuple[Tensor, ...]) -> None:
        """Forward and backward pass of the network, compiled or not, in micro-batches."""
        dtype, mixed = DTYPES[self.train.precision], self.train.precision != "fp32"
        for part in zip(*(tensor.chunk(self.parts) for tensor in drawn), strict=True):
            with torch.autocast(self.device.type, dtype if mixed else None, enabled=mixed):
                loss, _ = self.objective.loss(model, *part)
            (loss / self.parts).backward()


class Clock:
    """Seconds by part: each call names the part that begins, once the device has finished the one before."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self.seconds: dict[str, float] = {}
        self.wait, self.part, self.start = wait, PAUSE, 0.0

    def __call__(self, part: str) -> None:
        self.wait()
        now = time.perf_counter()
        if self.part != PAUSE:
            self.seconds[self.part] = self.seconds.get(self.part, 0) + now - self.start
        self.part, self.start = part, now


@contextmanager
def _watched(objective: Any, clock: Clock) -> Iterator[None]:
    """Within the block, the clock knows when g and the perceptual loss begin, forward and backward; each returns to the
    network."""

    def begins(part: str) -> Callable[..., None]:
        return lambda *_: clock(part)

    network, handles = begins("network"), []
    for loss in (objective.perceptual, *getattr(objective, "more", {}).values()):
        handles += [
            loss.register_forward_pre_hook(begins("perceptual")),
            loss.register_forward_hook(network),
            loss.register_full_backward_pre_hook(begins("perceptual")),
            loss.register_full_backward_hook(network),
        ]
    if isinstance(objective, UnetObjective):
        handles += [
            objective.atd.register_forward_pre_hook(begins("g")),
            objective.atd.register_forward_hook(network),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _atd(params: Params, weights: Path) -> tuple[Callable[[], nn.Module], Objective]:
    """A function that makes an untrained ATD, and its objective."""
    objective = build_atd_objective(params, params.scale, params.train_atd, weights)
    return lambda: build_atd(params.atd, params.scale), objective


def _unet(params: Params, weights: Path) -> tuple[Callable[[], nn.Module], Objective]:
    """A function that makes an untrained denoiser, and its objective with an untrained g."""
    settings: dict[str, Any] = {key: getattr(params, key) for key in ("unet", "diffusion", "uncertainty", "scale")}
    objective = build_unet_objective(params, build_atd(params.atd, params.scale), weights)
    return lambda: build_denoiser(build_unet(params.unet, params.scale), **settings), objective


def _reader(
    dataset: PatchDataset, recipe: Recipe, parts: int, train: Train, device: torch.device
) -> Callable[[], Tensor]:
    """A function that returns the next step's patches, (B, 3, P, P) uint8."""
    batches = step_batches(0, 10**9, recipe.batch, recipe.batch // parts)
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=train.workers, pin_memory=device.type == "cuda")
    patches = iter(loader)
    return lambda: torch.cat([next(patches).to(device, non_blocking=True) for _ in range(parts)])


def _made_up_images(folder: Path, params: Params) -> Path:
    """An LMDB of coloured squares, each image as large as a sub-image."""
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        side = -(-params.crop.size // 16)
        images.write(folder / "images" / f"{i}.png", noise.repeat(side, 0).repeat(side, 1))
    pack(folder / "images", folder / "train.lmdb", params.pack.encoding)
    return folder / "train.lmdb"


def _made_up_weights(folder: Path) -> Path:
    """A folder of LPIPS weights with those of nothing: the time is the same."""
    for net in (VGG, ALEX):
        for name, shapes in zip((net.weights, net.linear), net.shapes(), strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            torch.save({key: _random(shape) for key, shape in shapes.items()}, folder / name)
    torch.save(dict.fromkeys(("alpha", "beta"), torch.rand(1, CHANNELS)), folder / DISTS)
    return folder


def _random(weight: Tensor) -> Tensor:
    """Random values of the shape of a meta tensor, that keep the size of what goes through them."""
    return torch.randn(weight.shape) * (2 / max(1, weight[0].numel())) ** 0.5
