"""How nights are shown: one as markdown in Prefect, all of them on the page reports/nightly/index.html."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from pipelines.charts import HEIGHT, WIDTH, Axis, Ticks
from pipelines.gate import Verdict
from pipelines.nightly import REPORTS, NightlyRun, Record, means
from pipelines.report import LABELS, templates
from upsr.evaluation.metrics import higher_is_better
from upsr.files import atomic

PAGE = "index.html"
ROLES = ("bicubic", "candidate", "champion")  # the last is drawn on top
SHOWN = 90  # nights on the page
X_LABELS = 4
LEAST_SPAN = 0.004  # of an axis, as a part of the value: smaller differences look like a flat line


class Outcome(BaseModel):
    """What the page shows of a verdict."""

    outcome: str
    reasons: list[str]
    alarm: bool

    @property
    def drifts(self) -> list[str]:
        """The reasons that the page folds into one: a line for each metric and benchmark. Empty for a single one."""
        lines = [reason for reason in self.reasons if reason.startswith("drift: ")]
        return lines if len(lines) > 1 else []

    @property
    def others(self) -> list[str]:
        """All other reasons."""
        return [reason for reason in self.reasons if reason not in self.drifts]


class Night(Record):
    """What the page reads of a night's record."""

    versions: dict[str, str]
    """Role -> number in the registry."""
    verdict: Outcome
    told: list[str]
    absent: dict[str, str] = Field(default_factory=dict)  # records before this key list it in `told`

    @property
    def kind(self) -> str:
        """`alarm`, or the verdict's outcome."""
        return "alarm" if self.verdict.alarm else self.verdict.outcome

    @property
    def holder(self) -> str:
        """The role of the model that is the champion after this night."""
        return "candidate" if self.crowned else "champion"

    @cached_property
    def means(self) -> dict[str, dict[str, float]]:
        """Role -> BENCHMARK/METRIC -> mean."""
        return {role: _finite(dict(means(values))) for role, values in self.values.items()}

    def drifted(self, benchmark: str, metric: str) -> bool:
        """True if the champion's mean of this metric is named as drift."""
        return any(f"champion's {metric} on {benchmark} differs" in reason for reason in self.verdict.reasons)


@dataclass(frozen=True)
class Mark:
    """A promotion, an alarm, or figures that were accepted anew: what happened in a night, in all its charts."""

    x: float
    kind: str
    title: str


@dataclass(frozen=True)
class Dot:
    """A mean of one model in one night."""

    role: str
    x: float
    y: float
    title: str
    drifted: bool


@dataclass(frozen=True)
class Chart:
    """One metric on one benchmark over the nights. `segments` are (role, points of a polyline), between two nights."""

    metric: str
    arrow: str
    x_ticks: Ticks
    y_ticks: Ticks
    segments: list[tuple[str, str]]
    dots: list[Dot]


def markdown(run: NightlyRun, verdict: Verdict, fold: bool = False) -> str:
    """The verdict, its reasons, the notes, all means of the night, and a table of the comparisons.

    `fold` adds why benchmarks are absent, as HTML that a browser opens on a click.
    """
    lines = [f"**{'ALARM, ' * verdict.alarm}{verdict.outcome}**", "", *[f"- {text}" for text in verdict.reasons]]
    lines += [f"- note: {text}" for text in run.told]
    if run.absent:
        summary = f"absent benchmarks: {', '.join(run.absent)}"
        why = "<br>".join(escape(f"{name}: {' '.join(why.split())}") for name, why in run.absent.items())
        folded = f"<details><summary>{escape(summary)}</summary>{why}</details>"
        lines += ["", folded] if fold else [f"- note: {summary}: `upsr doctor` says what to do"]
    lines += ["", *_figures(run)]
    if verdict.comparisons:
        lines += ["", "| model | against | metric | benchmark | before | tonight | change |"]
        lines += ["|---|---|---|---|--:|--:|--:|"]
    for c in verdict.comparisons:
        for benchmark, (before, now) in c.benchmarks.items():
            figures = f"{before:.4f} | {now:.4f} | {now - before:+.4f}"
            lines.append(f"| {c.model} | {c.against} | {c.metric} | {benchmark} | {figures} |")
    return "\n".join(lines)


def _figures(run: NightlyRun) -> list[str]:
    """A table of the means of this night, empty where nothing was measured."""
    found = {role: dict(means(own.values)) for role, own in run.measured().items()}
    metrics = sorted({key.rpartition("/")[2] for own in found.values() for key in own})
    rows = []
    for role, own in found.items():
        for benchmark in run.images:
            cells = [f"{own[key]:.4f}" if (key := f"{benchmark}/{m}") in own else "–" for m in metrics]
            rows.append(f"| {role} | {benchmark} | {' | '.join(cells)} |")
    head = [f"| model | benchmark | {' | '.join(metrics)} |", f"|---|---|{'--:|' * len(metrics)}"]
    return [*head, *rows] if metrics else []


def write(folder: Path = REPORTS) -> Path:
    """Writes the page of the nights recorded in `folder`; returns its path. Records that cannot be read are named."""
    nights, damaged = _nights(folder)
    page = folder / PAGE
    with atomic(page) as temporary:
        temporary.write_text(_render(nights, damaged), encoding="utf-8")
    return page


def _nights(folder: Path) -> tuple[list[Night], list[str]]:
    """The nights in order, and the names of the files that are not records of nights."""
    nights, damaged = [], [path.name for path in folder.glob("*.damaged")]
    for path in sorted(folder.glob("[!.]*.json"), key=lambda path: path.stem)[-SHOWN:]:
        try:
            nights.append(Night.model_validate_json(path.read_bytes()))
        except (ValidationError, OSError):
            damaged.append(path.name)
    return nights, sorted(damaged)


def _render(nights: Sequence[Night], damaged: Sequence[str]) -> str:
    across = Axis(0, max(len(nights) - 1, 1), WIDTH)
    benchmarks = dict.fromkeys(b for night in reversed(nights) for b in night.images)
    panels = {b: charts for b in benchmarks if (charts := list(_charts(nights, b, across)))}
    dots = [dot for charts in panels.values() for chart in charts for dot in chart.dots]
    return (
        templates()
        .get_template("nightly.html.j2")
        .render(
            nights=nights,
            champion=_champion(nights),
            marks=list(_marks(nights, across)),
            panels=panels,
            drawn={dot.role for dot in dots} | ({"drift"} if any(dot.drifted for dot in dots) else set()),
            damaged=damaged,
            most=SHOWN,
        )
    )


def _champion(nights: Sequence[Night]) -> tuple[str, str | None] | None:
    """The version that is the champion after the last night, and the night that crowned it, where it is known."""
    if not nights:
        return None
    last = nights[-1]
    digest = last.digests.get(last.holder)
    crowned = (night.name for night in reversed(nights) if night.crowned and night.crowned == digest)
    return (last.versions[last.holder], next(crowned, None)) if last.holder in last.versions else None


def _marks(nights: Sequence[Night], across: Axis) -> Iterator[Mark]:
    for i, night in enumerate(nights):
        kinds = {"promoted": night.crowned, "alarm": night.verdict.alarm, "accepted": night.accepted}
        for kind in (kind for kind, happened in kinds.items() if happened):
            yield Mark(across.at(i), kind, f"{night.name}: {kind}: {'; '.join(night.verdict.reasons)}")


def _charts(nights: Sequence[Night], benchmark: str, across: Axis) -> Iterator[Chart]:
    """A chart for each metric that was measured on a benchmark."""
    keys = {key for night in nights for own in night.means.values() for key in own}
    found = {key.rpartition("/")[2] for key in keys if key.rpartition("/")[0] == benchmark} - {"seconds"}
    for metric in [m for m in LABELS if m in found] + sorted(found - LABELS.keys()):
        yield _chart(nights, benchmark, metric, across)


def _chart(nights: Sequence[Night], benchmark: str, metric: str, across: Axis) -> Chart:
    key = f"{benchmark}/{metric}"
    found = [
        (i, role, night.means[role][key])
        for role in ROLES
        for i, night in enumerate(nights)
        if key in night.means.get(role, {})
    ]
    values = [value for *_, value in found]
    margin = max(0.1 * (max(values) - min(values)), LEAST_SPAN / 2 * max(map(abs, values)), 1e-6)
    upward = Axis(min(values) - margin, max(values) + margin, HEIGHT)
    dots = [
        Dot(
            role,
            across.at(i),
            HEIGHT - upward.at(value),
            f"{nights[i].name}: {role} {nights[i].versions.get(role, '')}: {value:.4f}",
            role == "champion" and nights[i].drifted(benchmark, metric),
        )
        for i, role, value in found
    ]
    placed = {(i, role): dot for (i, role, _), dot in zip(found, dots, strict=True)}
    segments = [
        (role, f"{before.x},{before.y} {dot.x},{dot.y}")
        for (i, role), dot in placed.items()
        if (before := placed.get((i - 1, nights[i - 1].holder if role == "champion" else role)))
        and _joined(nights[i - 1], nights[i], role, benchmark)
    ]
    labelled = sorted({round(k * (len(nights) - 1) / (X_LABELS - 1)) for k in range(X_LABELS)})
    return Chart(
        metric,
        _arrow(metric),
        [(across.at(i), _short(nights[i].name)) for i in labelled],
        [(HEIGHT - position, label) for position, label in upward.ticks()],
        segments,
        dots,
    )


def _joined(before: Night, after: Night, role: str, benchmark: str) -> bool:
    """True if a line may join the means of two nights: measured alike, and of one model, or of the champions."""
    same_model = role == "champion" or before.digests.get(role) == after.digests.get(role)
    same_images = before.images.get(benchmark) == after.images.get(benchmark)
    return same_model and same_images and before.settings == after.settings


def _short(name: str) -> str:
    """`01-02` for the first night of a date, `01-02 03:04` for another one."""
    return name[5:10] + (f" {name[11:13]}:{name[13:15]}" if name[10:] else "")


def _arrow(metric: str) -> str:
    """The direction in which a metric improves, where pyiqa knows it."""
    try:
        return "↑" if higher_is_better(metric) else "↓"
    except KeyError:
        return ""


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}
