"""Training: one function in the order of time, for both networks."""

import csv
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from upsr.checkpoint import CheckpointError, load_state, save_state
from upsr.config import Recipe, Train
from upsr.data.datasets import PatchDataset, step_batches
from upsr.images import atomic
from upsr.training.ema import Ema
from upsr.training.objectives import AtdObjective, UnetObjective

STATES_KEPT = 2


class TrainingError(ValueError):
    """A training that cannot start or go on, in one line that says what to do."""


def learning_rate(step: int, recipe: Recipe) -> float:
    """The rate of a step: a linear rise over `warmup` steps, halved at each milestone passed."""
    halvings = sum(step >= milestone for milestone in recipe.milestones)
    return recipe.lr * min(1.0, (step + 1) / max(recipe.warmup, 1)) * 0.5**halvings


def fit(
    network: nn.Module,
    objective: AtdObjective | UnetObjective,
    dataset: PatchDataset,
    *,
    recipe: Recipe,
    train: Train,
    seed: int,
    folder: Path,
    identity: dict[str, Any],
    report: Callable[[int, dict[str, float]], None],
    preview: Callable[[int, nn.Module], None],
) -> nn.Module:
    """Trains `network` and returns its moving average.

    A run that was stopped at any point and is started again ends with the same weights, bit for bit on the CPU:
    all randomness is a function of (seed, step, rank), and `folder` holds the state. `identity` is what a state
    belongs to; one that belongs to something else is refused. SIGTERM and SIGINT save and leave.
    """
    # ---- set-up
    precision = "no" if train.precision == "fp32" else train.precision
    accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    layout = torch.channels_last if train.channels_last else torch.contiguous_format
    network = network.to(device, memory_format=layout).train()  # type: ignore[call-overload]
    objective = objective.to(device)
    ema = Ema(network, recipe.ema)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
    )
    weights = network  # the bare network, below whatever wraps it
    network, optimizer = accelerator.prepare(network, optimizer)
    model: Any = torch.compile(network) if train.compile else network

    # ---- where were we?
    progress = {"step": 0, "bad_steps": 0, "bad_in_a_row": 0}
    sums: dict[str, torch.Tensor] = {}
    identity = identity | {"processes": world}  # each has a pool of its own
    state = _newest_state(folder, identity)
    if state is not None:
        weights.load_state_dict(state["network"])
        ema.network.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        objective.pairs.pool.load_state_dict(state["pools"][rank])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        progress, sums = state["progress"], {k: v.to(device) for k, v in state["sums"].items()}
    start = progress["step"]
    log = _open_log(folder / "log.csv", start) if accelerator.is_main_process else None

    def save() -> None:
        pools = gather_object([{k: v.cpu() for k, v in objective.pairs.pool.state_dict().items()}])
        if accelerator.is_main_process:
            _save(folder, weights, ema, optimizer, accelerator, pools, progress, sums, identity)
        accelerator.wait_for_everyone()

    # ---- the loop
    batches = step_batches(start, recipe.steps, recipe.batch, recipe.micro_batch, rank, world)
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=train.workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_leave_signals_to_the_training,
    )
    micro_batches = iter(loader)
    parts = recipe.batch // (recipe.micro_batch * world)
    bar = tqdm(initial=start, total=recipe.steps, unit="step", disable=None if accelerator.is_main_process else True)
    clock = time.perf_counter()
    with _stop_signal() as stopped:
        for step in range(start, recipe.steps):
            # -- pairs
            hr = torch.cat([batch.to(device, non_blocking=True) for batch in islice(micro_batches, parts)])
            drawn = objective.draw(hr, (seed, step, rank))

            # -- gradients
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, recipe)
            for i, part in enumerate(zip(*(tensor.chunk(parts) for tensor in drawn), strict=True)):
                last = i == parts - 1
                with accelerator.autocast(), _synchronised(accelerator, network, last):
                    loss, values = objective.loss(model, *part)
                    accelerator.backward(loss / parts)
                _add(sums, {"loss": loss, **values}, parts)

            # -- weights
            norm = accelerator.clip_grad_norm_(network.parameters(), recipe.clip)
            finite = bool(torch.isfinite(norm))
            if finite or accelerator.scaler is not None:  # the scaler skips by itself and must see the step to adapt
                optimizer.step()
            optimizer.zero_grad()
            if finite:
                ema.update(weights)
            _add(sums, {"grad_norm": torch.where(torch.isfinite(norm), norm, 0)}, 1)
            progress["step"] = step + 1
            progress["bad_in_a_row"] = 0 if finite else progress["bad_in_a_row"] + 1
            progress["bad_steps"] += not finite
            if progress["bad_in_a_row"] >= train.max_bad_steps:
                raise TrainingError(
                    f"step {step + 1}: loss or gradient was not finite {train.max_bad_steps} times in a row: lower the "
                    f"learning rate or use train.precision: bf16; the last good state is kept in {folder}"
                )

            # -- what a person sees
            bar.update()
            if (step + 1) % train.log_every == 0 or step + 1 == recipe.steps:
                count = (step + 1) % train.log_every or train.log_every
                row = {k: accelerator.reduce(v, "mean").item() / count for k, v in sorted(sums.items())}
                row |= {"lr": learning_rate(step, recipe), "bad_steps": float(progress["bad_steps"])}
                sums.clear()
                if log is not None:
                    _write_row(log, step + 1, row)
                    elapsed, clock = time.perf_counter() - clock, time.perf_counter()
                    _show(bar, step + 1, recipe.steps, row)
                    report(step + 1, row | {"images_per_second": count * recipe.batch / elapsed} | _memory(device))

            # -- what survives
            signal_number = stopped.agreed(accelerator)
            if (step + 1) % train.save_every == 0 or step + 1 == recipe.steps or signal_number:
                save()
            if accelerator.is_main_process and ((step + 1) % train.preview_every == 0 or step + 1 == recipe.steps):
                preview(step + 1, ema.network)
            if signal_number:
                raise SystemExit(128 + signal_number)
    bar.close()
    return ema.network


def _add(sums: dict[str, torch.Tensor], values: dict[str, torch.Tensor], parts: int) -> None:
    """Adds on the device: nothing is copied to the host before it is logged."""
    for name, value in values.items():
        sums[name] = sums.get(name, 0) + value.detach().float() / parts


@contextmanager
def _synchronised(accelerator: Accelerator, network: nn.Module, last: bool) -> Iterator[None]:
    """Processes exchange gradients with the last part of a batch only."""
    if last:
        yield
    else:
        with accelerator.no_sync(network):
            yield


def _leave_signals_to_the_training(_: int) -> None:
    """A reader that a signal to the whole group ended would take the training with it before it has saved."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class _Stop:
    """The signal that asked the training to end, 0 while none did."""

    number = 0

    def agreed(self, accelerator: Accelerator) -> int:
        """The same answer in every process: rank 0's."""
        if accelerator.num_processes == 1:
            return self.number
        return int(broadcast_object_list([self.number])[0])


@contextmanager
def _stop_signal() -> Iterator[_Stop]:
    stop = _Stop()

    def handle(number: int, _: object) -> None:
        stop.number = number

    before = {s: signal.signal(s, handle) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _save(
    folder: Path,
    weights: nn.Module,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    pools: list[dict[str, torch.Tensor]],
    progress: dict[str, int],
    sums: dict[str, torch.Tensor],
    identity: dict[str, Any],
) -> None:
    scaler = accelerator.scaler
    state = {
        "network": weights.state_dict(),
        "ema": ema.network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "pools": pools,
        "progress": progress,
        "sums": sums,
        "identity": identity,
    }
    save_state(folder / f"state-{progress['step']:08d}.pt", state)
    for old in sorted(folder.glob("state-*.pt"))[:-STATES_KEPT]:
        old.unlink()


def _newest_state(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The newest whole state, a truncated one being passed over; None to start from nothing."""
    for path in sorted(folder.glob("state-*.pt"), reverse=True):
        try:
            state = load_state(path)
        except CheckpointError as error:
            print(f"{error}: passed over", flush=True)
            continue
        differences = _differences(state["identity"], identity)
        if differences:
            raise TrainingError(
                f"{path}: belongs to another training ({'; '.join(differences)}): "
                f"go back to those settings to finish it, or remove {folder}/state-*.pt, as --fresh does"
            )
        print(f"resuming from step {state['progress']['step']} ({path})", flush=True)
        return state
    return None


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """`key: old -> new` for each leaf in which two nested settings differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{path}.{k}" if path else k)]
    return [] if old == new else [f"{path}: {old} -> {new}"]


def clear(folder: Path) -> None:
    """Removes the states of a training that has ended, or that is to start anew."""
    for path in [*folder.glob("state-*.pt"), *folder.glob(".state-*.pt")]:  # the latter from a kill while saving
        path.unlink(missing_ok=True)


def _open_log(path: Path, start: int) -> Path:
    """Keeps the rows up to step `start`. The file is new in any case: the old one may be a link into DVC's cache."""
    rows = []
    if start and path.is_file():
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
        rows = rows[:1] + [row for row in rows[1:] if int(row[0]) <= start]
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def _write_row(path: Path, step: int, row: dict[str, float]) -> None:
    new = path.stat().st_size == 0
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", *row])
        writer.writerow([step, *row.values()])


def _show(bar: tqdm, step: int, steps: int, row: dict[str, float]) -> None:
    """On a terminal beside the bar, in a log a line of its own."""
    values: dict[str, object] = {name: f"{row[name]:.4g}" for name in ("loss", "lr", "grad_norm") if name in row}
    if bar.disable:
        print(f"step {step}/{steps}  " + "  ".join(f"{k} {v}" for k, v in values.items()), flush=True)
    else:
        bar.set_postfix(values)


def _memory(device: torch.device) -> dict[str, float]:
    return {"memory_mb": torch.cuda.max_memory_allocated(device) / 2**20} if device.type == "cuda" else {}
