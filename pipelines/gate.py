"""The gate of the night: evidence in, verdict out. It reads no file, asks no server and looks at no clock.

Missing evidence is never a pass: the champion stays, and what is missing is a reason of the verdict.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Literal

from upsr.config import Nightly

CONFIDENCE = 0.95  # of "no harm" and of "a gain", each one-sided
ONE_IMAGE = 10  # tolerances by which a single image may differ where nothing drifted

Values = Mapping[str, Mapping[str, Mapping[str, float | None]]]
"""Benchmark -> image -> metric -> value."""
Required = Mapping[str, Mapping[str, frozenset[str]]]
"""Benchmark -> image -> the metrics that it must have."""


@dataclass(frozen=True)
class Evidence:
    """What a model measured in one night."""

    night: str
    """Name of the night."""
    digest: str
    """SHA-256 of the weights."""
    images: Mapping[str, str]
    """Benchmark -> digest of its images."""
    values: Values


@dataclass(frozen=True)
class Case:
    """All that the verdict may depend on."""

    required: Required
    champion: Evidence | None = None
    candidate: Evidence | None = None
    reference: Evidence | None = None
    """The champion's figures in the night when it was crowned, or in its first night."""
    predecessors: Sequence[Evidence] = ()
    """Earlier champions, as measured when they were crowned."""
    bicubic: Evidence | None = None
    """What a first champion must surpass."""
    lost: Sequence[str] = ()
    """Why there should be evidence, but is none, such as a store that does not answer."""


@dataclass(frozen=True)
class Comparison:
    """The gain of `model` over `against` in one metric: positive is better, in units of the metric.

    `gain` is the mean of the benchmarks' means, over the same images. `low` and `high` are its one-sided 95 % bounds,
    None where a benchmark has one image. `worst`: the benchmark that loses most, and its gain.
    """

    model: str
    against: str
    metric: str
    gain: float
    low: float | None
    high: float | None
    worst: tuple[str, float]
    benchmarks: Mapping[str, tuple[float, float]]
    """Benchmark -> mean of `against`, mean of `model`."""


@dataclass(frozen=True)
class Verdict:
    """What is done: only `promoted` changes the champion."""

    outcome: Literal["promoted", "rejected", "undecided", "no candidate"]
    reasons: Sequence[str]
    alarm: bool
    """The champion's figures could not be reproduced, or there is no telling who it is: the night fails."""
    comparisons: Sequence[Comparison] = ()

    def __str__(self) -> str:
        return f"{'ALARM, ' * self.alarm}{self.outcome}: {'; '.join(self.reasons)}"


def judge(case: Case, rules: Nightly) -> Verdict:
    """The verdict of a night.

    A candidate is promoted if on the same images no declared metric is harmed beyond its tolerance, with 95 %
    confidence over the images and in the mean of every benchmark, against the champion and against each earlier one,
    and the ruling metric gains: more than `rules.by`, and more than nothing with 95 % confidence.
    """
    # the champion
    alarms = list(case.lost)
    measured = {m for images in case.required.values() for metrics in images.values() for m in metrics}
    unruled = [f"no benchmark was measured by the ruling metric {rules.improves}"] * (rules.improves not in measured)
    comparisons: list[Comparison] = []
    if case.champion:
        alarms += unruled + gaps("champion", case.champion, case.required)
    if case.champion and case.reference and not alarms:
        alarms += _other_images(case.champion, case.reference)
        if not alarms:
            comparisons += compare("champion", case.champion, case.reference.night, case.reference, rules)
            alarms += drifts(case.champion, case.reference, rules)
    if alarms:
        return Verdict("undecided", alarms, True, comparisons)
    # the candidate's evidence
    if case.candidate is None:
        return Verdict("no candidate", ["no candidate that differs from the champion"], False, comparisons)
    if not case.required:
        return Verdict("undecided", ["no benchmark was measured"], False, comparisons)
    missing = gaps("candidate", case.candidate, case.required)
    floor = case.champion or case.bicubic
    if floor is None:
        missing.append("bicubic: nothing was measured, so a first champion has nothing to surpass")
    elif floor is case.bicubic:
        missing += gaps("bicubic", floor, case.required)
    missing += unruled
    if missing or floor is None:
        return Verdict("undecided", missing, False, comparisons)
    # its figures
    name = "champion" if case.champion else "bicubic"
    found = compare("candidate", case.candidate, name, floor, rules)
    comparisons += found
    ruling = next(c for c in found if c.metric == rules.improves)
    if not case.champion:
        if ruling.gain > 0:
            return Verdict("promoted", [f"the first champion: better than bicubic, {_words(ruling)}"], False, found)
        return Verdict("rejected", [f"not better than bicubic: {_words(ruling)}"], False, found)
    for earlier in case.predecessors:
        same = {b for b, digest in earlier.images.items() if case.candidate.images.get(b) == digest}
        comparisons += compare("candidate", case.candidate, earlier.night, earlier, rules, same)
    against = [c for c in comparisons if c.model == "candidate"]
    harmed = [c for c in against if _is_harmed(c, rules)]
    gains_nothing = ruling.gain <= rules.by or (ruling.high is not None and ruling.high <= 0)
    if harmed or gains_nothing:
        reasons = [f"worse: {_words(c)}" for c in harmed]
        reasons += [f"no gain above {rules.by:g}: {_words(ruling)}"] if gains_nothing else []
        return Verdict("rejected", reasons, False, comparisons)
    unclear = [f"harm is not excluded: {_words(c)}" for c in against if not _is_harmless(c, rules)]
    if ruling.low is None or ruling.low <= 0:
        unclear.append(f"the gain may be chance: {_words(ruling)}")
    if unclear:
        return Verdict("undecided", unclear, False, comparisons)
    return Verdict("promoted", [_words(ruling)], False, comparisons)


def gaps(role: str, evidence: Evidence, required: Required) -> list[str]:
    """What a model should have measured and did not: a line per benchmark. NaN and infinity count as missing."""
    lines = []
    for benchmark, images in required.items():
        own = evidence.values.get(benchmark, {})
        missing = [
            f"{metric} of {image}"
            for image, metrics in images.items()
            for metric in sorted(metrics)
            if not _finite(own.get(image, {}).get(metric))
        ]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            lines.append(f"{role} on {benchmark}: no {', '.join(missing[:3])}{more}")
    return lines


def drifts(now: Evidence, before: Evidence, rules: Nightly) -> list[str]:
    """Where the same weights gave other figures for the same images: the mean absolute difference over a benchmark's
    images exceeds the tolerance, or that of one image exceeds ten times as much."""
    lines = []
    for benchmark, images in now.values.items():
        for metric, rule in rules.metrics.items():
            apart = [abs(a - b) for a, b in _pairs(images, before.values.get(benchmark, {}), metric)]
            if apart and (fmean(apart) > rule.tolerance or max(apart) > ONE_IMAGE * rule.tolerance):
                lines.append(
                    f"drift: the champion's {metric} on {benchmark} differs by {fmean(apart):.4f} from {before.night} "
                    f"(on one image by {max(apart):.4f}), with the same weights and images"
                )
    return lines


def compare(
    model: str, now: Evidence, against: str, before: Evidence, rules: Nightly, benchmarks: Iterable[str] | None = None
) -> list[Comparison]:
    """A comparison for each declared metric, over the images that have it in both (all, where `gaps` found none)."""
    names = [b for b in now.values if b in before.values and (benchmarks is None or b in benchmarks)]
    found = []
    for metric, rule in rules.metrics.items():
        pairs = {b: list(_pairs(now.values[b], before.values[b], metric)) for b in names}
        pairs = {b: own for b, own in pairs.items() if own}
        if pairs:
            sign = 1 if rule.better == "higher" else -1
            gains = {b: [sign * (new - old) for old, new in own] for b, own in pairs.items()}
            means = {b: fmean(own) for b, own in gains.items()}
            worst = min(means, key=lambda b: means[b])
            shown = {b: (fmean(old for old, _ in own), fmean(new for _, new in own)) for b, own in pairs.items()}
            low, high = _bounds(list(gains.values()))
            found.append(
                Comparison(model, against, metric, fmean(means.values()), low, high, (worst, means[worst]), shown)
            )
    return found


def _bounds(gains: Sequence[Sequence[float]]) -> tuple[float | None, float | None]:
    """One-sided bounds of the mean of the groups' means, by Welch and Satterthwaite's t."""
    if any(len(own) < 2 for own in gains):
        return None, None
    from scipy.stats import t

    mean = fmean(fmean(own) for own in gains)
    parts = [variance(own) / len(own) / len(gains) ** 2 for own in gains]
    total = sum(parts)
    if total == 0:
        return mean, mean
    freedom = total**2 / sum(part**2 / (len(own) - 1) for part, own in zip(parts, gains, strict=True))
    half = float(t.ppf(CONFIDENCE, freedom)) * math.sqrt(total)
    return mean - half, mean + half


def _pairs(
    now: Mapping[str, Mapping[str, float | None]], before: Mapping[str, Mapping[str, float | None]], metric: str
) -> Iterator[tuple[float, float]]:
    for image in now.keys() & before.keys():
        old, new = before[image].get(metric), now[image].get(metric)
        if old is not None and new is not None and _finite(old) and _finite(new):
            yield old, new


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _other_images(now: Evidence, reference: Evidence) -> list[str]:
    """The benchmarks on which the reference cannot be reproduced."""
    gone = [f"{b} is gone: the champion was measured on it on {reference.night}" for b in reference.images.keys()
            - now.images.keys()]  # fmt: skip
    other = [
        f"the images of {b} are not those of {reference.night}"
        for b, digest in reference.images.items()
        if now.images.get(b, digest) != digest
    ]
    return sorted(gone) + sorted(other)


def _is_harmed(c: Comparison, rules: Nightly) -> bool:
    """True if harm beyond the tolerance is shown, or a benchmark's mean loses more than it."""
    tolerance = rules.metrics[c.metric].tolerance
    return c.worst[1] < -tolerance or (c.high is not None and c.high < -tolerance)


def _is_harmless(c: Comparison, rules: Nightly) -> bool:
    return c.low is not None and c.low >= -rules.metrics[c.metric].tolerance


def _words(c: Comparison) -> str:
    reach = "one image shows no interval" if c.low is None else f"at least {c.low:+.4f} with 95 % confidence"
    worst = f"worst on {c.worst[0]}: {c.worst[1]:+.4f}"
    return f"{c.metric} gains {c.gain:+.4f} over {c.against} ({reach}; {worst})"
