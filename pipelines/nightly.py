"""The nightly evaluation: champion and newest candidate on every available benchmark.

This module collects the evidence of a night and keeps its record; gate.py judges it, flows.py runs it.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines import gate, registry, tracking
from pipelines.gate import Case, Evidence, Required, Values, Verdict
from upsr.config import Params
from upsr.data.benchmarks import locate, name_of, open_benchmarks
from upsr.evaluation.metrics import needs_reference
from upsr.evaluation.statistics import NAMES
from upsr.files import DataError, atomic, one_line, sha256
from upsr.locks import locked

REPORTS = Path("reports/nightly")


class Alarm(RuntimeError):
    """The champion's figures could not be reproduced."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(str(verdict))
        self.verdict = verdict


@dataclass(frozen=True)
class Model:
    """A model of a night: its number in the registry, the SHA-256 of its weights, and their file.

    `weights` is None for bicubic, and for a model whose weights cannot be used, which is then not measured.
    """

    version: str
    digest: str
    weights: Path | None


class Record(BaseModel):
    """What later nights read of a night's record, `NAME.json`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    settings: dict[str, Any]
    digests: dict[str, str]
    """Role (`champion`, `candidate`, `bicubic`) -> SHA-256 of the weights."""
    images: dict[str, str]
    """Benchmark -> digest of its images."""
    values: dict[str, dict[str, dict[str, dict[str, float | None]]]]
    """Role -> benchmark -> image -> metric -> value."""
    complete: list[str]
    """The roles that have every required value, of a night without alarm."""
    crowned: str | None
    """SHA-256 of the weights that became the champion."""
    accepted: bool
    """True if from this night on, the champion's figures are those of this night."""

    def evidence(self, digest: str) -> Evidence | None:
        """What these weights measured, in whatever role; None if they were not, or not completely."""
        role = next((role for role in self.complete if self.digests.get(role) == digest), None)
        return Evidence(self.name, digest, self.images, self.values[role]) if role else None


@dataclass
class NightlyRun:
    """A nightly run: what is there to be measured, and later what was."""

    name: str
    settings: dict[str, Any]
    """Figures are compared only between nights with equal settings."""
    history: Sequence[Record]
    """The readable records of earlier nights, in order."""
    accept: bool
    """Take the champion's figures of this night as those that later nights must reproduce."""
    images: dict[str, str] = field(default_factory=dict)
    """Benchmark -> digest of its images."""
    folders: dict[str, Path] = field(default_factory=dict)
    """Benchmark -> folder."""
    required: Required = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    """Role -> model."""
    values: dict[str, Values] = field(default_factory=dict)
    """Role -> figures."""
    crowned: str | None = None
    """SHA-256 of the weights that `promote` made the champion."""
    reference: str | None = None
    """The night that the champion's figures are held against, as the registry has it."""
    lost: list[str] = field(default_factory=list)
    """Why evidence is missing that should be there whatever the candidate is."""
    told: list[str] = field(default_factory=list)
    """Notes."""
    absent: dict[str, str] = field(default_factory=dict)
    """Absent benchmark -> why, and what to do."""

    @property
    def folder(self) -> Path:
        """The folder of the evaluations' results."""
        return REPORTS / self.name

    def evidence(self, role: str) -> Evidence | None:
        """What a model measured this night; None for a role that nobody has."""
        model = self.models.get(role)
        return Evidence(self.name, model.digest, self.images, self.values.get(role, {})) if model else None

    def measured(self) -> dict[str, Evidence]:
        """Role -> what its model measured this night."""
        return {role: own for role in self.models if (own := self.evidence(role))}


@contextmanager
def alone() -> Iterator[None]:
    """Keeps other nights out, which would be judged without this one's record. Raises `Locked` while another runs."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    with locked(REPORTS):
        yield


def begin(params: Params, accept: bool = False) -> NightlyRun:
    """Creates a run with the available models and benchmarks. `absent`, `told` and `lost` list what is missing."""
    evaluation = params.evaluate
    settings = {"protocol": evaluation.protocol, "seed": evaluation.seeds[0], "tile": evaluation.tile}
    notes: list[str] = []
    name = _name(datetime.now())
    run = NightlyRun(name, settings, _history(name, notes), accept, told=notes)
    run.folder.mkdir(parents=True)
    _add_benchmarks(run, params)
    _add_models(run)
    return run


def evaluations(run: NightlyRun, params: Params) -> dict[str, list[str]]:
    """Job name -> command, for every model on every benchmark. Each writes ROLE-BENCHMARK.json to the run's folder."""
    options = run.settings | {"scale": params.scale}
    shared = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "upsr", "evaluate", *shared, "--metrics", *params.evaluate.metrics]
    models = {role: str(model.weights.resolve()) for role, model in run.models.items() if model.weights}
    models |= {"bicubic": "bicubic"} if "bicubic" in run.models else {}
    return {
        f"{role}-{name}": [
            *[*command, "--model", model, "--benchmark", str(folder)],
            *["--json", str(run.folder / f"{role}-{name}.json")],
        ]
        for role, model in models.items()
        for name, folder in run.folders.items()
    }


def judge(run: NightlyRun, params: Params) -> Verdict:
    """Reads the figures of this night, and judges them against the champion's own and earlier champions'."""
    run.values = {role: _figures(run, role) for role in run.models}
    champion, candidate = run.evidence("champion"), run.evidence("candidate")
    crowned = {r.crowned: r for r in run.history if r.crowned and r.settings == run.settings}
    present = {own.digest for own in (champion, candidate) if own}
    reference = None if run.accept or not champion else _reference(run, champion.digest)
    if champion and run.reference and not (reference or run.accept):
        run.lost.append(
            f"{run.reference}, which the champion's figures are held against, has no record of these settings"
        )
    return gate.judge(
        Case(
            run.required,
            champion,
            candidate,
            reference,
            [own for digest, r in crowned.items() if digest not in present and (own := r.evidence(digest))],
            run.evidence("bicubic"),
            run.lost,
        ),
        params.nightly,
    )


def save(run: NightlyRun, verdict: Verdict) -> Path:
    """Writes the record; returns its path.

    Before and after `promote`: a champion whose night has no record would raise an alarm every night.
    """
    whole = [role for role, own in run.measured().items() if not gate.gaps(role, own, run.required)]
    complete = [] if verdict.alarm or not run.required else whole
    record = {
        "name": run.name,
        "settings": run.settings,
        "digests": {role: model.digest for role, model in run.models.items()},
        "versions": {role: model.version for role, model in run.models.items()},
        "images": run.images,
        "values": run.values,
        "complete": complete,
        "crowned": run.crowned,
        "accepted": run.accept and "champion" in complete,
        "verdict": asdict(verdict),
        "told": run.told,
        "absent": run.absent,
        "commit": tracking.git_commit(),
    }
    path = run.folder.with_suffix(".json")
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
    if record["accepted"] or ("champion" in complete and run.reference is None):
        registry.tag_night(run.models["champion"].version, run.name)
    return path


def publish(run: NightlyRun, verdict: Verdict, record: Path) -> None:
    """Logs one MLflow run per model in the experiment `nightly`, with its means and the record."""
    for role, own in run.measured().items():
        tags = {"role": role, "version": run.models[role].version, "sha256": own.digest}
        tags |= {"outcome": verdict.outcome}
        with tracking.start("nightly", f"{run.name}-{role}", run.settings, tags) as tracker:
            tracker.metrics(dict(means(own.values)))
            tracker.artifact(record)


def promote(run: NightlyRun, verdict: Verdict) -> Verdict:
    """Makes the candidate the champion, unless another night or a person changed the champion meanwhile."""
    before, candidate = run.models.get("champion"), run.models["candidate"]
    try:
        champion = registry.champion()
        if (champion and str(champion.version)) != (before and before.version):
            return replace(verdict, outcome="undecided", reasons=["the champion changed while this night was measured"])
        registry.tag_night(candidate.version, run.name)
        registry.promote(candidate.version)
        run.crowned = candidate.digest
    except Exception as error:  # whatever the store raises
        why = f"version {candidate.version} could not be promoted: {tracking.one_line(error)}"
        return replace(verdict, outcome="undecided", reasons=[why], alarm=True)
    return verdict


def means(values: Values) -> Iterator[tuple[str, float]]:
    """(BENCHMARK/METRIC, mean over the images) for each metric that every image of a benchmark has."""
    for benchmark, images in values.items():
        for metric in sorted({m for figures in images.values() for m in figures}):
            own = [figures.get(metric) for figures in images.values()]
            if all(value is not None for value in own):
                yield f"{benchmark}/{metric}", fmean(value for value in own if value is not None)


def failure(error: Exception) -> dict[str, Any]:
    """How a night failed, in plain values: its outcome and the reasons."""
    if isinstance(error, Alarm):
        return {"outcome": error.verdict.outcome, "reasons": list(error.verdict.reasons)}
    return {"outcome": "failed", "reasons": [one_line(error)]}


def _name(now: datetime) -> str:
    """The date, with the time if a run of this date exists."""
    names = [f"{now:{form}}" for form in ("%Y-%m-%d", "%Y-%m-%d-%H%M%S", "%Y-%m-%d-%H%M%S%f")]
    taken = {path.name.removesuffix(".json") for path in REPORTS.glob("*")}
    return next((name for name in names if name not in taken), names[-1])


def _history(name: str, notes: list[str]) -> list[Record]:
    """The records of nights before `name`. A damaged one is set aside and named once; one of the future is named."""
    records = []
    paths = [path for path in REPORTS.glob("[!.]*.json") if path.is_file()]  # not temporary files
    for path in sorted(paths, key=lambda path: path.stem):
        try:
            record = Record.model_validate_json(path.read_bytes())
        except ValidationError:
            aside = path.rename(path.with_suffix(".damaged"))
            notes.append(f"{path} is not a record of a night that this version can read: it is {aside.name} now")
            continue
        if record.name < name:
            records.append(record)
        else:
            notes.append(f"{path} is a record of the future, and is not read: remove it")
    return records


def _add_benchmarks(run: NightlyRun, params: Params) -> None:
    judged = params.nightly.metrics.keys()
    unmeasured = sorted(judged - {"psnr", "ssim", *params.evaluate.metrics})
    run.told += [f"{m} is in nightly.metrics, but not in evaluate.metrics: add it there" for m in unmeasured]
    try:
        compared = {m for m in judged if needs_reference(m)}
        found, absent = open_benchmarks(params.evaluate.benchmarks, params.scale)
    except KeyError as error:
        run.lost.append(f"nightly.metrics: {error} is not a metric of pyiqa: choose one that `pyiqa -ls` lists")
        return
    except DataError as error:
        run.lost.append(str(error))
        return
    folders = {name_of(locate(name)): locate(name) for name in params.evaluate.benchmarks if name not in absent}
    run.absent = absent
    run.images = {benchmark.name: benchmark.digest for benchmark in found}
    run.folders = {name: folders[name] for name in run.images}
    run.required = {
        benchmark.name: {
            pair.name: frozenset(judged if pair.hr is not None else judged - compared) for pair in benchmark.pairs
        }
        for benchmark in found
    }


def _add_models(run: NightlyRun) -> None:
    """The champion, the newest version where it has other weights, and bicubic where there is no champion."""
    try:
        champion, newest = registry.champion(), registry.newest()
    except Exception as error:  # whatever the store raises: there is no telling who the champion is
        run.lost.append(f"the champion is unknown, since MLflow does not answer: {tracking.one_line(error)}")
        return
    if champion:
        run.reference = champion.tags.get(registry.NIGHT)
        run.models["champion"] = _registered(str(champion.version), champion.tags, run.lost)
    elif before := [(r.name, r.digests["champion"]) for r in run.history if "champion" in r.digests] + [
        (r.name, r.crowned) for r in run.history if r.crowned
    ]:
        night, digest = max(before)
        run.lost.append(
            f"no version has the alias `{registry.CHAMPION}`, but there was a champion on {night}, with SHA-256 "
            f"{digest}: set the alias (docs/operations.md)"
        )
    if newest is None:
        run.told.append("the registry has no model: `dvc repro` registers the one that it measures")
        return
    candidate = _registered(str(newest.version), newest.tags, run.told)
    if champion is None or candidate.digest != run.models["champion"].digest:
        run.models["candidate"] = candidate
    if not champion:
        run.models["bicubic"] = Model("", "bicubic", None)


def _registered(number: str, tags: Mapping[str, str], problems: list[str]) -> Model:
    """A version and its weights, which must be those that were registered; otherwise `problems` says why not."""
    digest = tags.get("sha256", "")
    try:
        if not digest:
            raise ValueError("its tag `sha256` is gone: register its weights again")
        return Model(number, digest, registry.weights_of(f"models:/{registry.NAME}/{number}"))
    except (ValueError, OSError) as error:
        problems.append(f"version {number} cannot be measured: {error}")
        return Model(number, digest, None)


def _figures(run: NightlyRun, role: str) -> Values:
    """Benchmark -> image -> metric -> value, from the evaluations' JSON files. `told` lists what failed.

    Figures of other images or weights than those found at the start are not evidence.
    """
    figures: dict[str, dict[str, dict[str, float | None]]] = {}
    model = run.models[role]
    if model.weights and sha256(model.weights) != model.digest:
        run.told.append(f"{role}: {model.weights} changed while the night ran")
        return figures
    for benchmark in run.images:
        path = run.folder / f"{role}-{benchmark}.json"
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            if result["benchmark"]["sha256"] != run.images[benchmark]:
                run.told.append(f"{role} on {benchmark}: the images changed while the night ran")
                continue
            run.told += [f"{role} on {benchmark}, {lost['picture']}: {lost['reason']}" for lost in result["failed"]]
            run.told += [f"{name} is absent: {why}" for name, why in result["absent"].items()]
            figures[benchmark] = {
                row["picture"]: {m: v if math.isfinite(v) else None for m, v in row.items() if m not in NAMES}
                for row in result["rows"]
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            run.told.append(f"{role} on {benchmark}: not measured: {path}: {error}")
    run.told = list(dict.fromkeys(run.told))
    return figures


def _reference(run: NightlyRun, digest: str) -> Evidence | None:
    """The champion's figures that this night must reproduce, of each benchmark and metric the oldest.

    They count from the last night that was accepted, else from the one that crowned it, else from its first.
    """
    accepted = max((i for i, r in enumerate(run.history) if r.accepted), default=0)
    own = [r for r in run.history[accepted:] if r.settings == run.settings and r.evidence(digest)]
    crowned = next((i for i, r in enumerate(own) if r.crowned == digest), 0)
    nights = [evidence for r in own[crowned:] if (evidence := r.evidence(digest))]
    if not nights:
        return None
    images: dict[str, str] = {}
    values: dict[str, dict[str, dict[str, float | None]]] = {}
    for night in reversed(nights):  # older ones replace newer ones
        images |= night.images
        for benchmark, figures in night.values.items():
            for image, row in figures.items():
                values.setdefault(benchmark, {}).setdefault(image, {}).update(row)
    return Evidence(nights[0].night, digest, images, values)
