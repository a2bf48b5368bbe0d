"""Is one arm better than another? Differences paired by training seed and image, and what they allow to say.

An arm is one setting of a study, trained with several seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from upsr.evaluation.metrics import higher_is_better

CONFIDENCE = 0.95
EQUIVALENCE_CONFIDENCE = 0.9  # two one-sided tests at 5 %
MARGINS = {
    # At most a twentieth of the gain over bicubic on Set14 (docs/benchmarks.md): of ATD in PSNR and SSIM, of UPSR in
    # the others.
    "psnr": 0.05,
    "ssim": 0.002,
    "lpips": 0.005,
    "dists": 0.002,
    "niqe": 0.1,
    "lpips-vgg": 0.005,  # as lpips, whose scale it shares
    "clipiqa": 0.01,  # a hundredth of its range, 0 to 1
    "musiq": 0.5,  # a two-hundredth of its range, 0 to 100
}
"""Metric -> the difference below which two arms count as equal. Without a margin they are never called equal."""

Verdict = Literal["better", "worse", "equal", "undecided", "no interval", "not measured"]


@dataclass(frozen=True)
class Contrast:
    """The mean difference between two arms over (seed, image), and its uncertainty over both.

    `standard_error` and `degrees_of_freedom` are None for a single seed or image: one shows no variation.
    """

    difference: float
    standard_error: float | None
    degrees_of_freedom: float | None
    seeds: int
    images: int

    @property
    def p(self) -> float | None:
        """The p value of "no difference", by a two-sided t test; None where there is no standard error."""
        if self.standard_error is None:
            return None
        if self.standard_error == 0:
            return float(self.difference == 0)
        from scipy.stats import t

        return float(2 * t.sf(abs(self.difference) / self.standard_error, self.degrees_of_freedom))

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float | None, float | None]:
        """The t interval of the difference; (None, None) where there is no standard error."""
        if self.standard_error is None:
            return None, None
        from scipy.stats import t

        half = float(t.ppf((1 + confidence) / 2, self.degrees_of_freedom)) * self.standard_error
        return self.difference - half, self.difference + half

    def is_within(self, margin: float) -> bool:
        """True if two one-sided tests at 5 % show a difference below `margin`: the 90 % interval lies inside it.

        Not corrected for the number of comparisons.
        """
        low, high = self.interval(EQUIVALENCE_CONFIDENCE)
        return low is not None and high is not None and -margin < low and high < margin


def contrast(a: np.ndarray, b: np.ndarray) -> Contrast:
    """The contrast a - b of two arms' values of one metric, each (seeds, images), in the same order.

    d = mean + seed + image + error, seeds and images random: the variance from a two-way ANOVA without replication,
    Satterthwaite's degrees of freedom. In simulation, 95 % intervals cover at least 92.5 % with three seeds, 94.5 %
    with six, but down to 88 % with two that differ much. Raises `ValueError` for unequal shapes and missing values.
    """
    _check(a, b)
    d = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    s, n = d.shape
    mean = d.mean()
    if min(s, n) < 2:
        return Contrast(float(mean), None, None, s, n)
    # mean squares
    by_seed, by_image = d.mean(axis=1, keepdims=True), d.mean(axis=0, keepdims=True)
    seeds, images = n * by_seed.var(ddof=1), s * by_image.var(ddof=1)
    error = np.square(d - by_seed - by_image + mean).sum() / ((s - 1) * (n - 1))
    # E[seeds] = n σ_seed² + σ², E[images] = s σ_image² + σ²: the sum counts σ² twice. The estimate is never below one
    # of its parts, which chance alone would allow.
    total = max(seeds + images - error, seeds, images)
    uncertainty = seeds**2 / (s - 1) + images**2 / (n - 1) + error**2 / ((s - 1) * (n - 1))
    # The subtraction may leave fewer degrees of freedom than any part has; near none, an interval has no end.
    freedom = max(total**2 / uncertainty if uncertainty else 0, min(s, n) - 1)
    return Contrast(float(mean), math.sqrt(total / (s * n)), float(freedom), s, n)


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if np.ndim(a) != 2 or np.shape(a) != np.shape(b) or not np.size(a):
        raise ValueError(f"contrast: shapes {np.shape(a)} and {np.shape(b)}: give both the same (seeds, images)")
    for name, values in (("a", a), ("b", b)):
        gaps = np.argwhere(~np.isfinite(values)).tolist()
        if gaps:
            cells = ", ".join(f"(seed {s}, image {i})" for s, i in gaps[:3]) + (", ..." if len(gaps) > 3 else "")
            raise ValueError(f"contrast: {name} has no value at {cells}: measure {len(gaps)} missing values")


def holm(p: Sequence[float | None]) -> list[float | None]:
    """p values of one family, adjusted by Holm's step-down method (1979).

    A comparison without a p value stays None and counts in the family's size, as if it were 1.
    """
    order = sorted(range(len(p)), key=lambda i: 1.0 if (own := p[i]) is None else own)
    adjusted: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, i in enumerate(order):
        own = p[i]
        if own is not None:
            largest = max(largest, min(1.0, (len(p) - rank) * own))
            adjusted[i] = largest
    return adjusted


def verdict(found: Contrast, metric: str, p: float | None) -> Verdict:
    """What a contrast shows about its first arm, with `p` after Holm's correction.

    A difference that is certain but within the margin is still `better` or `worse`; the sentence names the margin.
    """
    if p is None:
        return "no interval"
    if p < 1 - CONFIDENCE:
        return "better" if (found.difference > 0) == higher_is_better(metric) else "worse"
    return "equal" if found.is_within(MARGINS.get(metric, 0.0)) else "undecided"


def sentence(found: Contrast, metric: str, a: str, b: str, p: float | None) -> str:
    """The verdict in words, with `p` after Holm's correction. `a` and `b` are the names of the arms."""
    margin = MARGINS.get(metric, 0.0)
    digits = 1 - math.floor(math.log10(margin)) if margin else 4  # one more than the margin has
    result = verdict(found, metric, p)
    low, high = found.interval()
    size = f"{_count(found.seeds, 'seed')}, {_count(found.images, 'image')}"
    if p is None or low is None or high is None:
        needed = "seeds" if found.seeds < 2 else "images"
        of = f"{metric.upper()} of {a} minus that of {b} is {found.difference:.{digits}f} ({size})"
        return f"{of}: no interval can be given: it needs at least two {needed}"
    evidence = f"{size}, {'p < 0.001' if p < 0.001 else f'p = {p:.3f}'} after Holm"
    if result in ("better", "worse"):
        near, far = sorted(abs(end) for end in (low, high))
        reach = f"{near:.{digits}f} to {far:.{digits}f}"
        note = f", less than the margin of {margin:g}" if found.is_within(margin) else ""
        by = f"{abs(found.difference):.{digits}f} ({reach}, {evidence})"
        return f"{metric.upper()} of {a} is {result} than that of {b} by {by}{note}"
    if result == "equal":
        inner = " to ".join(f"{end:.{digits}f}" for end in found.interval(EQUIVALENCE_CONFIDENCE))
        return f"{metric.upper()} of {a} is equal to that of {b} within {margin:g} (90 % interval {inner}, {size})"
    side = "higher" if higher_is_better(metric) else "lower"
    reach = f"from {low:.{digits}f} to {high:.{digits}f}, {side} is better"
    return f"{metric.upper()} of {a} against that of {b} is undecided: the interval reaches {reach} ({evidence})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
