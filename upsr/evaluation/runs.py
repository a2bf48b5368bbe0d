"""An evaluation run: models on the images of benchmarks, in one process or several."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from tqdm import tqdm

from upsr.data.benchmarks import Benchmark, Pair
from upsr.evaluation.measure import Precomputed, bicubic, measure
from upsr.evaluation.metrics import Metrics, Row
from upsr.evaluation.protocol import PROTOCOLS
from upsr.evaluation.spread import spread
from upsr.files import DataError
from upsr.images import to_image, write
from upsr.inference.maps import map_images
from upsr.inference.precision import Dtype
from upsr.inference.upscaler import Upscaled, Upscaler

PROGRESS_SECONDS = 30.0  # between two lines of progress, where there is no terminal


@dataclass(frozen=True)
class Job:
    """One model on one image."""

    benchmark: str
    model: str
    pair: Pair


@dataclass(frozen=True)
class Result:
    """One measurement. `row` is None where the image failed; `absent`: name of an unavailable metric -> reason."""

    row: Row | None
    failed: list[Row]
    absent: dict[str, str]


@dataclass
class Outcome:
    """All measurements of a run, its failures, and the unavailable metrics with their reasons."""

    rows: list[Row] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def lost(self) -> list[Row]:
        """Failures of whole images, without those of a single metric on a small image."""
        return [row for row in self.failed if row["metric"] is None]


@dataclass(frozen=True)
class EvaluationRun:
    """Which models are measured, and how. Plain values only: it is pickled for the worker processes."""

    models: Mapping[str, Path | Precomputed | None]
    """Folders or weights files by name, or the images of another program; None: bicubic interpolation."""
    scale: int
    protocol: str
    metrics: tuple[str, ...]
    weights: Path
    """Folder of the metrics' weights."""
    seeds: tuple[int, ...]
    """Seeds of the sampler's noise. An image's values are the means over them; its kept result has the first."""
    tile: int
    images: Path | None
    """Folder for results and maps, as BENCHMARK/IMAGE/MODEL.png; None: do not keep them."""
    dtype: Dtype = "fp32"
    """Precision of the networks."""
    steps: int = 0
    """Number of sampling steps, where every weights file samples; 0: as trained."""

    def jobs(self, benchmarks: list[Benchmark]) -> list[Job]:
        """Every model on every image, in the order of the results."""
        return [Job(b.name, model, pair) for b in benchmarks for model in self.models for pair in b.pairs]

    def __call__(self, device: torch.device) -> Callable[[Job], Result]:
        """Opens the networks and the metrics, once per process.

        Raises `CheckpointError` and `ConfigError`, and `ValueError` for `steps` that a model does not have.
        """
        metrics = Metrics(self.metrics, self.weights, PROTOCOLS[self.protocol], self.scale, device)
        upscalers = {
            name: Upscaler.from_pretrained(model, device=str(device), dtype=self.dtype, steps=self.steps)
            if isinstance(model, Path)
            else model
            for name, model in self.models.items()
        }
        return partial(self._measure, metrics, upscalers)

    def _measure(self, metrics: Metrics, upscalers: dict[str, Upscaler | Precomputed | None], job: Job) -> Result:
        upscaler, latest = upscalers[job.model], None
        samples = isinstance(upscaler, Upscaler) and upscaler.diffuser is not None
        seeds = self.seeds if samples else self.seeds[:1]

        def upscale(seed: int, lr: Tensor, number: int) -> Tensor:
            nonlocal latest
            if upscaler is None:
                return bicubic(lr, self.scale)
            if isinstance(upscaler, Precomputed):
                return upscaler.read(job.pair.name, lr, self.scale)
            latest = upscaler.upscale(lr, seed=seed + number, tile=self.tile)
            return latest.image

        def keep(lr: Tensor, sr: Tensor, hr: Tensor | None) -> None:
            if self.images is not None:
                mapped = latest if samples else None
                _keep_images(self.images / job.benchmark / job.pair.name, {"lr": lr, job.model: sr, "hr": hr}, mapped)

        measured = [
            measure(partial(upscale, seed), job.pair, self.scale, metrics, None if i else keep)
            for i, seed in enumerate(seeds)
        ]
        keys = {"benchmark": job.benchmark, "model": job.model}
        row, failed = mean_row([row for row, _ in measured]), [keys | f for _, own in measured for f in own]
        if row and isinstance(upscaler, Precomputed):
            del row["seconds"]  # of reading a file: how long the other program took is not known
        return Result(keys | row if row else None, failed, metrics.absent)


def mean_row(rows: Sequence[Row | None]) -> Row | None:
    """One image's values as means over its samples: only those that every sample has. None if a sample failed."""
    found = [row for row in rows if row is not None]
    if len(found) < len(rows):
        return None
    common = [name for name in found[0] if all(name in row for row in found)]
    return {name: found[0][name] if name == "picture" else fmean(row[name] for row in found) for name in common}


def _keep_images(folder: Path, results: dict[str, Tensor | None], mapped: Upscaled | None) -> None:
    """Writes the images, and the maps where the model has some."""
    for name, x in results.items():
        if x is not None:
            write(folder / f"{name}.png", to_image(x))
    if mapped:
        for name, image in map_images(mapped).items():
            write(folder / f"{name}.png", image)


def evaluate(run: EvaluationRun, benchmarks: list[Benchmark], workers: int, devices: list[torch.device]) -> Outcome:
    """Measures every model on every image, in `workers` processes.

    Raises `DataError` where every image failed, `SpreadError` where a process died, and as `EvaluationRun` does.
    """
    outcome = Outcome()
    jobs = run.jobs(benchmarks)
    for result in _progress(spread(run, jobs, workers, devices), len(jobs)):
        outcome.rows += [result.row] if result.row else []
        outcome.failed += result.failed
        outcome.absent |= result.absent
    if not outcome.rows:
        raise DataError(f"evaluate: every image failed: correct the first: {outcome.failed[0]['reason']}")
    return outcome


def _progress(results: Iterable[Result], total: int) -> Iterator[Result]:
    """Yields the results, with a bar on a terminal. Elsewhere, such as in the log of a flow, a line tells how many.

    At most one in `PROGRESS_SECONDS`.
    """
    if sys.stderr.isatty():
        yield from tqdm(results, "evaluate", total, unit="image")
        return
    latest = time.monotonic()
    for done, result in enumerate(results, 1):
        yield result
        if time.monotonic() - latest >= PROGRESS_SECONDS:
            print(f"evaluate: {done} of {total} images", file=sys.stderr, flush=True)
            latest = time.monotonic()
