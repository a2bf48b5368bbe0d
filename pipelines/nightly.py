"""A night: the champion and the newest candidate on every benchmark at hand, held against the last night and against
each other. Whether one is worse, and whether the champion changes, is said here; flows.py says when.
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
LOCAL = Path("models/unet", FILE)  # the candidate where the registry has none
Figures = Mapping[str, Mapping[str, float]]
"""Means: benchmark -> metric."""


class Regression(RuntimeError):
    """A night on which something is worse than its tolerance allows; the message names every such row."""


@dataclass(frozen=True)
class Model:
    """One of the models of a night. `digest` tells whether it is the same as another night's."""

    source: str
    version: str | None
    digest: str
    weights: Path


@dataclass(frozen=True)
class Row:
    """A model's figure tonight beside an earlier or another one's."""

    model: str
    against: str
    benchmark: str
    metric: str
    before: float
    now: float
    worse: bool

    def __str__(self) -> str:
        where = f"{self.model} on {self.benchmark}: {self.metric} {self.now:.4f}"
        return f"{where}, {self.against} {self.before:.4f}"


@dataclass
class Night:
    """All that is known of a night; its record, `NAME.json`, holds just this."""

    name: str
    settings: dict[str, Any]
    """What figures must share to be compared."""
    models: dict[str, Model] = field(default_factory=dict)
    benchmarks: dict[str, str] = field(default_factory=dict)
    """Name -> SHA-256 of the pictures."""
    figures: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Model -> benchmark -> metric."""
    rows: list[Row] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    """What was missing, or otherwise not as on a usual night."""
    promotes: str | None = None
    """The version that becomes champion."""

    @property
    def folder(self) -> Path:
        """Where the figures of each picture are."""
        return REPORTS / self.name

    @property
    def worse(self) -> list[Row]:
        return [row for row in self.rows if row.worse]


def begin(params: Params) -> Night:
    """Finds tonight's models and benchmarks; what is absent is told."""
    evaluation = params.evaluate
    settings = {"protocol": evaluation.protocol, "seed": params.seed, "tile": evaluation.tile}
    night = Night(_name(datetime.now()), settings)
    night.folder.mkdir(parents=True)
    night.models = _models(night.told)
    for name in evaluation.benchmarks:
        try:
            benchmark = open_benchmark(locate(name), params.scale)
            night.benchmarks[benchmark.name] = benchmark.digest
        except (DataError, ImageError) as error:
            night.told.append(f"benchmark {name} is absent: {error}")
    return night


def evaluations(night: Night, params: Params) -> dict[str, list[str]]:
    """Name -> command that leaves NAME.json in the night's folder, for every model on every benchmark."""
    folders = {name.rpartition("/")[2]: locate(name) for name in params.evaluate.benchmarks}
    options = {"protocol": params.evaluate.protocol, "tile": params.evaluate.tile, "seed": params.seed}
    shared = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    shared += ["--metrics", *params.evaluate.metrics]
    command = [sys.executable, "-m", "upsr", "evaluate", *shared]
    return {
        f"{role}-{name}": [
            *[*command, "--model", str(model.weights.resolve()), "--benchmark", str(folders[name])],
            *["--json", str(night.folder / f"{role}-{name}.json")],
        ]
        for role, model in night.models.items()
        for name in night.benchmarks
    }


def judge(night: Night, rules: Nightly) -> None:
    """Reads tonight's figures and compares them: each model with the last night that had it and, on the pictures of
    tonight, the candidate with the champion. Decides whether the champion changes.
    """
    night.figures = {role: _figures(night, role) for role in night.models}
    for role, model in night.models.items():
        last, figures = _last(night, model.digest)
        night.rows += compare(night.figures[role], figures, rules, role, f"on {last}")
    champion, candidate = night.figures.get("champion"), night.figures.get("candidate")
    if champion is not None and candidate is not None:
        night.rows += compare(candidate, champion, rules, "candidate", "champion")
    _promote(night, rules)


def compare(now: Figures, before: Figures, rules: Nightly, model: str, against: str) -> list[Row]:
    """A row for each judged metric that both have."""
    rows = []
    for benchmark, metric in _judged(now, rules):
        if metric in before.get(benchmark, {}):
            old, new = before[benchmark][metric], now[benchmark][metric]
            worse = _gain(old, new, metric, rules) < -rules.metrics[metric].tolerance
            rows.append(Row(model, against, benchmark, metric, old, new, worse))
    return rows


def improves(now: Figures, before: Figures, rules: Nightly) -> bool:
    """Whether the ruling metric's mean over the benchmarks is better; what `before` has, `now` must have."""
    if set(_judged(before, rules)) - set(_judged(now, rules)):
        return False
    metric = rules.improves
    gains = [_gain(before[b][m], now[b][m], m, rules) for b, m in _judged(before, rules) if m == metric]
    return bool(gains) and fmean(gains) > rules.by


def markdown(night: Night) -> str:
    """The night as a table, the rows that are worse first."""
    lines = [f"**{verdict(night)}**", "", *[f"- {text}" for text in night.told], ""]
    lines += ["| model | benchmark | metric | against | before | tonight | change |", "|---|---|---|---|--:|--:|--:|"]
    for row in sorted(night.rows, key=lambda row: not row.worse):
        figures = f"{row.before:.4f} | {row.now:.4f} | {row.now - row.before:+.4f}{' **worse**' * row.worse}"
        lines.append(f"| {row.model} | {row.benchmark} | {row.metric} | {row.against} | {figures} |")
    return "\n".join(lines)


def verdict(night: Night) -> str:
    """The night in a line."""
    if night.worse:
        return f"Worse than allowed, the champion stays: {'; '.join(map(str, night.worse))}"
    if night.promotes:
        return f"Version {night.promotes} becomes the champion"
    if not any(night.figures.values()):
        return "Nothing was measured"
    return "Nothing is worse than allowed; the champion stays"


def keep(night: Night) -> Path:
    """Writes the record, and the figures of each model as an MLflow run of `nightly`."""
    models = {role: asdict(model) | {"weights": str(model.weights)} for role, model in night.models.items()}
    record = asdict(night) | {"models": models, "verdict": verdict(night), "commit": tracking.git_commit()}
    path = night.folder.with_suffix(".json")
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
    for role, model in night.models.items():
        tags = {"role": role, "version": model.version or "", "sha256": model.digest}
        with tracking.start("nightly", f"{night.name}-{role}", night.settings, tags) as tracker:
            tracker.metrics({f"{b}/{m}": v for b, values in night.figures[role].items() for m, v in values.items()})
            tracker.artifact(path)
    return path


def _name(now: datetime) -> str:
    """The date; for a second night of one date, with the time."""
    date = f"{now:%Y-%m-%d}"
    return f"{now:%Y-%m-%d-%H%M%S}" if (REPORTS / date).exists() or (REPORTS / f"{date}.json").exists() else date


def _models(told: list[str]) -> dict[str, Model]:
    try:
        versions = {"champion": registry.champion(), "candidate": registry.newest()}
        models = {role: _registered(str(version.version)) for role, version in versions.items() if version is not None}
    except Exception as error:
        if not (isinstance(error, ValueError) or tracking.may_pass(error)):
            raise
        told.append(f"no registered model can be had, so the champion stays what it is: {error}")
        models = {}
    if not models and LOCAL.is_file():
        told.append(f"the registry has no model: the candidate is {LOCAL}")
        models = {"candidate": Model(str(LOCAL), None, sha256(LOCAL), LOCAL)}
    if not models:
        told.append(f"there is no model: neither in the registry nor {LOCAL}")
    if len(models) == 2 and models["champion"].digest == models["candidate"].digest:
        del models["candidate"]
    return models


def _registered(number: str) -> Model:
    source = f"models:/{registry.NAME}/{number}"
    weights = registry.weights_of(source)
    return Model(source, number, sha256(weights), weights)


def _figures(night: Night, role: str) -> dict[str, dict[str, float]]:
    """What the evaluations left; one that left nothing, or failed on a picture, is told."""
    figures = {}
    for benchmark in night.benchmarks:
        path = night.folder / f"{role}-{benchmark}.json"
        if not path.is_file():
            night.told.append(f"{role} on {benchmark}: the evaluation failed")
            continue
        result = json.loads(path.read_text())
        night.told += [f"{role} on {benchmark}, {lost['picture']}: {lost['reason']}" for lost in result["failed"]]
        night.told += [f"{name} is absent: {why}" for name, why in result["absent"].items()]
        figures[benchmark] = result["mean"]
    night.told = list(dict.fromkeys(night.told))
    return figures


def _last(night: Night, digest: str) -> tuple[str, Figures]:
    """The last night with these weights, and its figures on benchmarks that are the same as tonight's."""
    for path in sorted(REPORTS.glob("*.json"), key=lambda path: path.stem, reverse=True):
        record = json.loads(path.read_text())
        roles = [role for role, model in record["models"].items() if model["digest"] == digest]
        if roles and record["settings"] == night.settings:
            same = {name for name, pictures in record["benchmarks"].items() if night.benchmarks.get(name) == pictures}
            return record["name"], {b: values for b, values in record["figures"][roles[0]].items() if b in same}
    return "", {}


def _judged(figures: Figures, rules: Nightly) -> Iterator[tuple[str, str]]:
    return ((b, metric) for b, values in figures.items() for metric in rules.metrics if metric in values)


def _gain(old: float, new: float, metric: str, rules: Nightly) -> float:
    return new - old if rules.metrics[metric].better == "higher" else old - new


def _promote(night: Night, rules: Nightly) -> None:
    candidate, figures = night.models.get("candidate"), night.figures
    if night.worse or candidate is None or candidate.version is None or not figures["candidate"]:
        return
    if "champion" not in night.models or improves(figures["candidate"], figures["champion"], rules):
        night.promotes = candidate.version
