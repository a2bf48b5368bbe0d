"""The training loop: one function, in chronological order, for both networks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import Tensor
from torch.utils.data import DataLoader

from upsr.config import Recipe, Train
from upsr.data.datasets import PatchDataset, step_batches
from upsr.training import checkpoints, state
from upsr.training.ema import Ema
from upsr.training.log import Log
from upsr.training.memory import micro_batch_size, recompute_activations
from upsr.training.pairs import Objective
from upsr.training.record import Record
from upsr.training.state import TrainingError
from upsr.training.stopping import ignore_signals, stop_signal
from upsr.training.validation import Validation


def learning_rate(step: int, recipe: Recipe) -> float:
    """The learning rate of step 0, 1, ...: a linear warm-up over `warmup` steps, halved at each milestone passed."""
    halvings = sum(step >= milestone for milestone in recipe.milestones)
    return recipe.lr * min(1.0, (step + 1) / max(recipe.warmup, 1)) * 0.5**halvings


def fit(
    network: nn.Module,
    objective: Objective,
    dataset: PatchDataset,
    *,
    recipe: Recipe,
    train: Train,
    seed: int,
    folder: Path,
    identity: dict[str, Any],
    validate: Validation,
    save: checkpoints.Save,
    report: Callable[[int, dict[str, float]], None],
    preview: Callable[[int, nn.Module], None],
    lr_scales: Mapping[str, float] | None = None,
) -> nn.Module:
    """Trains `network`, writes the best checkpoint's weights to `folder`, and returns the last moving average.

    A run that is stopped and started again ends with the same weights, bit for bit on the CPU: all randomness is a
    function of (seed, step, sample), and `folder` holds the state. `identity` names the run that a state belongs to.
    `lr_scales`: multiples of the learning rate, by the first part of a weight's name (other weights: 1).
    SIGTERM and SIGINT save the state and exit. Only the main process writes; all read, so machines share `folder`.
    Raises `TrainingError` for a state of another run, differing states, or `max_bad_steps` non-finite steps in a row.
    """
    # ---- setup: device, precision, average, optimizer
    precision = "no" if train.precision == "fp32" else train.precision
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available(), kwargs_handlers=[parallel])
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    layout = torch.channels_last if train.channels_last else torch.contiguous_format
    network = network.to(device, memory_format=layout).train()  # type: ignore[call-overload]
    objective = objective.to(device)
    ema = Ema(network, recipe.ema)
    if train.checkpointing:
        recompute_activations(network)
    adam = torch.optim.AdamW(
        _groups(network, lr_scales or {}), recipe.lr, recipe.betas, weight_decay=recipe.weight_decay, fused=True
    )
    weights = network  # the bare network, without the wrappers of Accelerate and torch.compile
    micro_batch = micro_batch_size(recipe, network, objective, accelerator)
    network, optimizer = accelerator.prepare(network, adam)
    model: Any = torch.compile(network) if train.compile else network
    rates = torch.tensor([learning_rate(step, recipe) for step in range(recipe.steps)], device=device)

    # ---- resume from the newest state
    start, rows, record = 0, list[checkpoints.Row](), Record(device)
    share = recipe.batch // world  # of each batch: the samples from number `first` on
    first = rank * share
    found = state.newest(folder, identity)
    if found is not None:
        path, last = found
        with state.damage_in_one_line(path):
            weights.load_state_dict(last["network"])
            ema.network.load_state_dict(last["ema"])
            optimizer.load_state_dict(last["optimizer"])
            objective.pairs.pool.load_state_dict(*last["pools"], lanes=range(first, first + share))
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(last["scaler"])
            record.load_state_dict(last["record"])
            start, rows = int(last["step"]), [dict(row) for row in last["checkpoints"]]
    _check_same_start(start, folder)
    if start and accelerator.is_main_process:
        print(f"resuming from step {start} of {folder}", flush=True)
    log = Log(folder / "log.csv", start, recipe.steps, device) if accelerator.is_main_process else None

    def save_state(step: int) -> None:
        pools = gather_object([{k: v.cpu() for k, v in objective.pairs.pool.state_dict().items()}])
        if accelerator.is_main_process:
            values = {
                "step": step,
                "network": weights.state_dict(),
                "ema": ema.network.state_dict(),
                "optimizer": adam.state_dict(),
                "scaler": accelerator.scaler and accelerator.scaler.state_dict(),
                "pools": pools,
                "record": record.state_dict(),
                "checkpoints": rows,
                "identity": identity,
            }
            state.write(folder, step, values)
        accelerator.wait_for_everyone()

    # ---- data
    batches = step_batches(start, recipe.steps, recipe.batch, micro_batch, rank, world)
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=train.workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_signals,
    )
    micro_batches = iter(loader)
    parts = share // micro_batch
    if accelerator.is_main_process:
        print(f"batch {recipe.batch} = {world} processes × {parts} micro-batches × {micro_batch} samples", flush=True)

    # ---- training steps
    with stop_signal(accelerator) as stop, _ending(micro_batches):
        for step in range(start + 1, recipe.steps + 1):
            # -- batch: HR patches to LR and HR pairs
            hr = torch.cat([batch.to(device, non_blocking=True) for batch in islice(micro_batches, parts)])
            drawn = objective.draw(hr, (seed, step - 1), first)

            # -- gradients, accumulated over micro-batches
            values: dict[str, Tensor] = {}
            for i, part in enumerate(zip(*(tensor.chunk(parts) for tensor in drawn), strict=True)):
                with accelerator.autocast(), _synchronised(accelerator, network, i == parts - 1):
                    loss, terms = objective.loss(model, *part)
                    accelerator.backward(loss / parts)
                for name, value in {"loss": loss, **terms}.items():
                    values[name] = values.get(name, 0) + value.detach().float() / parts

            # -- weights. Nothing is read back: the device itself skips a step whose gradient is not finite.
            norm = accelerator.clip_grad_norm_(network.parameters(), recipe.clip)
            bad, rate = ~torch.isfinite(norm), rates[record.good][0]
            for group in adam.param_groups:
                group["lr"] = rate * group["scale"]
            if accelerator.scaler is None:  # the scaler of fp16 sets it
                adam.found_inf = bad.float()  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad()
            ema.update(weights, skip=bad)
            record.add(step, bad, {**values, "grad_norm": norm}, drawn)

            # -- log
            if log is not None:
                log.step()
            if step % train.log_every == 0 or step == recipe.steps:
                row = record.row(accelerator) | {"lr": rate.item()}
                if log is not None:
                    report(step, row | log.row(step, row, ((step - 1) % train.log_every + 1) * recipe.batch))
                record.check(folder, train, accelerator)

            # -- validation, checkpoints, state, preview
            signal_number = stop.agreed()
            if step % train.validate_every == 0 or step == recipe.steps:
                figures = validate(ema.network, accelerator)
                rows.append({"step": step, **figures, "score": checkpoints.score(figures, train.select)})
                if accelerator.is_main_process:
                    checkpoints.keep(folder, rows, train.keep, ema.network, weights, save)
                    report(step, {f"validation/{k}": v for k, v in rows[-1].items() if k != "step"})
            if step % train.save_every == 0 or step == recipe.steps or signal_number:
                save_state(step)
            if accelerator.is_main_process and (step % train.preview_every == 0 or step == recipe.steps):
                preview(step, ema.network)
            if signal_number:
                raise SystemExit(128 + signal_number)

    # ---- publish the best checkpoint
    if log is not None:
        log.close()
        print(f"the model is the checkpoint of step {checkpoints.publish(folder, rows)}", flush=True)
    accelerator.wait_for_everyone()
    return ema.network


def _groups(network: nn.Module, scales: Mapping[str, float]) -> list[dict[str, Any]]:
    """The optimizer's groups of weights, one for each learning rate, with its multiple as `scale`."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, weight in network.named_parameters():
        groups.setdefault(scales.get(name.partition(".")[0], 1.0), []).append(weight)
    return [{"params": weights, "scale": scale} for scale, weights in groups.items()]


def _check_same_start(start: int, folder: Path) -> None:
    """Raises `TrainingError` where processes found different states: they would train different networks."""
    starts = sorted(set(gather_object([start])))
    if len(starts) > 1:
        raise TrainingError(f"{folder}: processes would start from steps {starts}: let all machines share this folder")


@contextmanager
def _ending(micro_batches: Any) -> Iterator[None]:
    """Ends the data workers with the block: they ignore SIGTERM, so Python would wait for them after an error."""
    try:
        yield
    finally:
        if end := getattr(micro_batches, "_shutdown_workers", None):  # not where there are no workers
            end()


@contextmanager
def _synchronised(accelerator: Accelerator, network: nn.Module, last: bool) -> Iterator[None]:
    """Processes exchange gradients only for the last micro-batch of a batch."""
    if last:
        yield
    else:
        with accelerator.no_sync(network):
            yield
