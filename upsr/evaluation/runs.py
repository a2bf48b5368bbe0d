"""An evaluation run: models on the images of benchmarks, in one process or several."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from upsr.data.benchmarks import Benchmark, Pair
from upsr.evaluation.measure import bicubic, measure
from upsr.evaluation.metrics import Metrics, Row
from upsr.evaluation.protocol import PROTOCOLS
from upsr.evaluation.spread import spread
from upsr.files import DataError
from upsr.images import to_image, write
from upsr.inference.maps import map_images
from upsr.inference.upscaler import Upscaled, Upscaler


@dataclass(frozen=True)
class Job:
    """One model on one image."""

    benchmark: str
    model: str
    pair: Pair


@dataclass(frozen=True)
class Result:
    """`row` is None where the image failed; `absent` holds, by name, why a wanted metric cannot be measured at all."""

    row: Row | None
    failed: list[Row]
    absent: dict[str, str]


@dataclass
class Outcome:
    """Everything that was measured; `failed` and `absent` say what was not."""

    rows: list[Row] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def lost(self) -> list[Row]:
        """The images that failed as a whole: not a metric that has no value for an image that is too small."""
        return [row for row in self.failed if row["metric"] is None]


@dataclass(frozen=True)
class EvaluationRun:
    """Which models are measured, and how. It is sent to the processes that measure, so it holds plain values alone."""

    models: dict[str, Path | None]
    """Folders or weights files by name; None: bicubic interpolation."""
    scale: int
    protocol: str
    metrics: tuple[str, ...]
    weights: Path
    """Folder of the metrics' weights."""
    seed: int
    tile: int
    images: Path | None
    """Folder for results and maps, as BENCHMARK/IMAGE/MODEL.png; None: they are not kept."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the networks."""

    def jobs(self, benchmarks: list[Benchmark]) -> list[Job]:
        """Every model on every image, in the order of the results."""
        return [Job(b.name, model, pair) for b in benchmarks for model in self.models for pair in b.pairs]

    def __call__(self, device: torch.device) -> Callable[[Job], Result]:
        """Opens the networks and the metrics, once for a process."""
        metrics = Metrics(self.metrics, self.weights, PROTOCOLS[self.protocol], self.scale, device)
        upscalers = {
            name: Upscaler.from_pretrained(path, device=str(device), dtype=self.dtype) if path else None
            for name, path in self.models.items()
        }
        return partial(self._measure, metrics, upscalers)

    def _measure(self, metrics: Metrics, upscalers: dict[str, Upscaler | None], job: Job) -> Result:
        upscaler, latest = upscalers[job.model], None

        def upscale(lr: Tensor, number: int) -> Tensor:
            nonlocal latest
            if upscaler is None:
                return bicubic(lr, self.scale)
            latest = upscaler.upscale(lr, seed=self.seed + number, tile=self.tile)
            return latest.image

        def keep(lr: Tensor, sr: Tensor, hr: Tensor | None) -> None:
            if self.images is not None:
                mapped = latest if upscaler and upscaler.diffuser else None
                _keep_images(self.images / job.benchmark / job.pair.name, {"lr": lr, job.model: sr, "hr": hr}, mapped)

        row, failed = measure(upscale, job.pair, self.scale, metrics, keep)
        where = {"benchmark": job.benchmark, "model": job.model}
        return Result(where | row if row else None, [where | f for f in failed], metrics.absent)


def _keep_images(folder: Path, results: dict[str, Tensor | None], mapped: Upscaled | None) -> None:
    """Writes results and reference, and the maps of a model that has them."""
    for name, x in results.items():
        if x is not None:
            write(folder / f"{name}.png", to_image(x))
    if mapped:
        for name, image in map_images(mapped).items():
            write(folder / f"{name}.png", image)


def evaluate(run: EvaluationRun, benchmarks: list[Benchmark], workers: int, devices: list[torch.device]) -> Outcome:
    """Measures every model on every image, in `workers` processes. Raises `DataError` where not one could be."""
    outcome = Outcome()
    jobs = run.jobs(benchmarks)
    for result in tqdm(spread(run, jobs, workers, devices), "evaluate", len(jobs), unit="image", disable=None):
        outcome.rows += [result.row] if result.row else []
        outcome.failed += result.failed
        outcome.absent |= result.absent
    if not outcome.rows:
        raise DataError(f"no image could be evaluated; the first: {outcome.failed[0]['reason']}")
    return outcome
