"""The nightly evaluation: champion and newest candidate on every available benchmark.

Each is compared with its previous nightly run, and the candidate with the champion. This module decides what is a
regression and whether the champion changes; flows.py runs it.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from pipelines import registry, tracking
from upsr.config import Nightly, Params
from upsr.data.benchmarks import locate, open_benchmark
from upsr.files import DataError, atomic, sha256
from upsr.images import ImageError
from upsr.pretrained import FILE

REPORTS = Path("reports/nightly")
LOCAL = Path("models/unet", FILE)  # the candidate if the registry has no model
Figures = Mapping[str, Mapping[str, float]]
"""Benchmark -> metric -> mean."""


class Regression(RuntimeError):
    """A metric is worse than its tolerance allows. The message lists all such metrics."""


@dataclass(frozen=True)
class Model:
    """A model that is evaluated; `digest` is the SHA-256 of its weights file."""

    source: str
    version: str | None
    digest: str
    weights: Path


@dataclass(frozen=True)
class Row:
    """One metric of a model, now and `before`: its previous run or the champion."""

    model: str
    against: str
    benchmark: str
    metric: str
    before: float
    now: float
    worse: bool

    def __str__(self) -> str:
        figure = f"{self.model} on {self.benchmark}: {self.metric} {self.now:.4f}"
        return f"{figure}, {self.against} {self.before:.4f}"


@dataclass
class NightlyRun:
    """A nightly run. Field names are the keys of its record `NAME.json`."""

    name: str
    settings: dict[str, Any]
    """Figures are compared only between runs with equal settings."""
    models: dict[str, Model] = field(default_factory=dict)
    benchmarks: dict[str, str] = field(default_factory=dict)
    """Name -> SHA-256 of the images."""
    figures: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Role (`champion`, `candidate`) -> benchmark -> metric -> mean."""
    rows: list[Row] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    """Notes about what was missing or failed."""
    promotes: str | None = None
    """The version that becomes the champion."""

    @property
    def folder(self) -> Path:
        """The folder of the evaluations' per-image figures."""
        return REPORTS / self.name

    @property
    def worse(self) -> list[Row]:
        """The rows that regressed."""
        return [row for row in self.rows if row.worse]


def begin(params: Params) -> NightlyRun:
    """Creates a run with the available models and benchmarks. `told` lists what is missing."""
    evaluation = params.evaluate
    settings = {"protocol": evaluation.protocol, "seed": evaluation.seeds[0], "tile": evaluation.tile}
    run = NightlyRun(_name(datetime.now()), settings)
    run.folder.mkdir(parents=True)
    run.models = _models(run.told)
    for name in evaluation.benchmarks:
        try:
            benchmark = open_benchmark(locate(name), params.scale)
            run.benchmarks[benchmark.name] = benchmark.digest
        except (DataError, ImageError) as error:
            run.told.append(f"benchmark {name} is absent: {error}")
    return run


def evaluations(run: NightlyRun, params: Params) -> dict[str, list[str]]:
    """Job name -> command, for every model on every benchmark. Each writes NAME.json to the run's folder."""
    folders = {name.rpartition("/")[2]: locate(name) for name in params.evaluate.benchmarks}
    options = {"protocol": params.evaluate.protocol, "tile": params.evaluate.tile, "seed": params.evaluate.seeds[0]}
    shared = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    shared += ["--metrics", *params.evaluate.metrics]
    command = [sys.executable, "-m", "upsr", "evaluate", *shared]
    return {
        f"{role}-{name}": [
            *[*command, "--model", str(model.weights.resolve()), "--benchmark", str(folders[name])],
            *["--json", str(run.folder / f"{role}-{name}.json")],
        ]
        for role, model in run.models.items()
        for name in run.benchmarks
    }


def judge(run: NightlyRun, rules: Nightly) -> None:
    """Reads the figures, compares them, and decides whether the champion changes.

    Each model is compared with the last run that had the same weights, and the candidate with the champion.
    """
    run.figures = {role: _figures(run, role) for role in run.models}
    for role, model in run.models.items():
        date, figures = _previous(run, model.digest)
        run.rows += compare(run.figures[role], figures, rules, role, f"on {date}")
    champion, candidate = run.figures.get("champion"), run.figures.get("candidate")
    if champion is not None and candidate is not None:
        run.rows += compare(candidate, champion, rules, "candidate", "champion")
    _promote(run, rules)


def compare(now: Figures, before: Figures, rules: Nightly, model: str, against: str) -> list[Row]:
    """A row for each metric of `rules` that both models have."""
    rows = []
    for benchmark, metric in _judged(now, rules):
        if metric in before.get(benchmark, {}):
            old, new = before[benchmark][metric], now[benchmark][metric]
            worse = _gain(old, new, metric, rules) < -rules.metrics[metric].tolerance
            rows.append(Row(model, against, benchmark, metric, old, new, worse))
    return rows


def improves(now: Figures, before: Figures, rules: Nightly) -> bool:
    """True if the metric `rules.improves`, averaged over the benchmarks, gained more than `rules.by`.

    False if `now` lacks a figure that `before` has.
    """
    if set(_judged(before, rules)) - set(_judged(now, rules)):
        return False
    metric = rules.improves
    gains = [_gain(before[b][m], now[b][m], m, rules) for b, m in _judged(before, rules) if m == metric]
    return bool(gains) and fmean(gains) > rules.by


def markdown(run: NightlyRun) -> str:
    """The verdict, the notes, and a table with the regressions first."""
    lines = [f"**{verdict(run)}**", "", *[f"- {text}" for text in run.told], ""]
    lines += ["| model | benchmark | metric | against | before | tonight | change |", "|---|---|---|---|--:|--:|--:|"]
    for row in sorted(run.rows, key=lambda row: not row.worse):
        figures = f"{row.before:.4f} | {row.now:.4f} | {row.now - row.before:+.4f}{' **worse**' * row.worse}"
        lines.append(f"| {row.model} | {row.benchmark} | {row.metric} | {row.against} | {figures} |")
    return "\n".join(lines)


def verdict(run: NightlyRun) -> str:
    """The outcome in one line."""
    if run.worse:
        return f"Regression, the champion stays: {'; '.join(map(str, run.worse))}"
    if run.promotes:
        return f"Version {run.promotes} becomes the champion"
    if not any(run.figures.values()):
        return "Nothing was measured"
    return "No regression; the champion stays"


def save(run: NightlyRun) -> Path:
    """Writes the record, and one MLflow run per model in the experiment `nightly`. Returns the record's path."""
    models = {role: asdict(model) | {"weights": str(model.weights)} for role, model in run.models.items()}
    record = asdict(run) | {"models": models, "verdict": verdict(run), "commit": tracking.git_commit()}
    path = run.folder.with_suffix(".json")
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
    for role, model in run.models.items():
        tags = {"role": role, "version": model.version or "", "sha256": model.digest}
        with tracking.start("nightly", f"{run.name}-{role}", run.settings, tags) as tracker:
            tracker.metrics({f"{b}/{m}": v for b, values in run.figures[role].items() for m, v in values.items()})
            tracker.artifact(path)
    return path


def _name(now: datetime) -> str:
    """The date, with the time if a run of this date exists."""
    date = f"{now:%Y-%m-%d}"
    return f"{now:%Y-%m-%d-%H%M%S}" if (REPORTS / date).exists() or (REPORTS / f"{date}.json").exists() else date


def _models(notes: list[str]) -> dict[str, Model]:
    try:
        versions = {"champion": registry.champion(), "candidate": registry.newest()}
        models = {role: _registered(str(version.version)) for role, version in versions.items() if version is not None}
    except Exception as error:
        if not (isinstance(error, ValueError) or tracking.may_pass(error)):
            raise
        notes.append(f"no registered model is available, so the champion stays: {error}")
        models = {}
    if not models and LOCAL.is_file():
        notes.append(f"the registry has no model: the candidate is {LOCAL}")
        models = {"candidate": Model(str(LOCAL), None, sha256(LOCAL), LOCAL)}
    if not models:
        notes.append(f"there is no model: neither in the registry nor at {LOCAL}")
    if len(models) == 2 and models["champion"].digest == models["candidate"].digest:
        del models["candidate"]
    return models


def _registered(number: str) -> Model:
    source = f"models:/{registry.NAME}/{number}"
    weights = registry.weights_of(source)
    return Model(source, number, sha256(weights), weights)


def _figures(run: NightlyRun, role: str) -> dict[str, dict[str, float]]:
    """Benchmark -> metric -> mean, from the evaluations' JSON files. `told` lists what failed."""
    figures = {}
    for benchmark in run.benchmarks:
        path = run.folder / f"{role}-{benchmark}.json"
        if not path.is_file():
            run.told.append(f"{role} on {benchmark}: the evaluation failed")
            continue
        result = json.loads(path.read_text())
        run.told += [f"{role} on {benchmark}, {lost['picture']}: {lost['reason']}" for lost in result["failed"]]
        run.told += [f"{name} is absent: {why}" for name, why in result["absent"].items()]
        figures[benchmark] = result["mean"]
    run.told = list(dict.fromkeys(run.told))
    return figures


def _previous(run: NightlyRun, digest: str) -> tuple[str, Figures]:
    """The last run with these weights and settings, and its figures on benchmarks with unchanged images."""
    for path in sorted(REPORTS.glob("*.json"), key=lambda path: path.stem, reverse=True):
        record = json.loads(path.read_text())
        roles = [role for role, model in record["models"].items() if model["digest"] == digest]
        if roles and record["settings"] == run.settings:
            same = {name for name, images in record["benchmarks"].items() if run.benchmarks.get(name) == images}
            return record["name"], {b: values for b, values in record["figures"][roles[0]].items() if b in same}
    return "", {}


def _judged(figures: Figures, rules: Nightly) -> Iterator[tuple[str, str]]:
    return ((b, metric) for b, values in figures.items() for metric in rules.metrics if metric in values)


def _gain(old: float, new: float, metric: str, rules: Nightly) -> float:
    return new - old if rules.metrics[metric].better == "higher" else old - new


def _promote(run: NightlyRun, rules: Nightly) -> None:
    candidate, figures = run.models.get("candidate"), run.figures
    if run.worse or candidate is None or candidate.version is None or not figures["candidate"]:
        return
    if "champion" not in run.models or improves(figures["candidate"], figures["champion"], rules):
        run.promotes = candidate.version
