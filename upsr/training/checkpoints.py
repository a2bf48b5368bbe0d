"""The checkpoints of a training run: a table of all, the files of the best, and the final choice."""

import csv
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch.nn as nn

from upsr.config import Select
from upsr.files import atomic

Row = dict[str, float]
Save = Callable[[Path, nn.Module], None]


def score(figures: Row, select: Select) -> float:
    """Σ weight · figure by the rule `train.select`; the highest score is best. A non-finite score becomes -inf."""
    value = sum(weight * figures[name] for name, weight in select.model_dump().items() if weight)
    return value if math.isfinite(value) else -math.inf


def best(rows: list[Row], count: int) -> list[int]:
    """The steps of the `count` best checkpoints, best first; ties go to the earlier one."""
    ranked = sorted(rows, key=lambda row: (-row["score"], row["step"]))
    return [int(row["step"]) for row in ranked[:count]]


def keep(folder: Path, rows: list[Row], count: int, average: nn.Module, raw: nn.Module, save: Save) -> None:
    """Writes the table and, if the newest checkpoint is among the best, its files. Deletes files of all others."""
    with atomic(folder / "checkpoints.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    kept, step = best(rows, count), int(rows[-1]["step"])
    if step in kept:
        save(_averaged(folder, step), average)
        save(_raw(folder, step), raw)
    names = {file(folder, step).name for step in kept for file in (_averaged, _raw)}
    for old in (folder / "checkpoints").glob("*.safetensors"):
        if old.name not in names:
            old.unlink()


def publish(folder: Path, rows: list[Row]) -> int:
    """Copies the best checkpoint to `weights.safetensors` (average) and `weights_raw.safetensors`; returns its step."""
    step = best(rows, 1)[0]
    for source, name in ((_averaged, "weights"), (_raw, "weights_raw")):
        with atomic(folder / f"{name}.safetensors", durable=True) as temporary:
            shutil.copyfile(source(folder, step), temporary)
    return step


def _averaged(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"{step:08d}.safetensors"


def _raw(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"{step:08d}_raw.safetensors"
