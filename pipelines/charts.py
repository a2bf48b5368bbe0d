"""Curves and point clouds as plain numbers for an SVG: the template draws, this decides where."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 300, 130  # of the plot itself, in SVG units; labels stand outside
MOST_POINTS = 500  # more than a curve of this width can show
LABEL_HEIGHT = 15

Ticks = list[tuple[float, str]]


@dataclass(frozen=True)
class Axis:
    """Values `low`..`high` laid over 0..`length`, evenly or by their logarithm."""

    low: float
    high: float
    length: float
    log: bool = False

    def at(self, value: float) -> float:
        scaled = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        low, high, here = scaled
        return round((here - low) / (high - low) * self.length, 1)

    def ticks(self) -> Ticks:
        """Three to seven round values with their places."""
        values = self._decades() if self.log else []
        return [(self.at(v), f"{v:g}") for v in (values if len(values) > 2 else self._even())]

    def _decades(self) -> list[float]:
        tens = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        fine = [m * 10.0**k for k in tens for m in (1, 2, 5)]
        inside = [v for v in fine if self.low <= v <= self.high]
        return inside if len(inside) < 8 else [10.0**k for k in tens if self.low <= 10.0**k <= self.high]

    def _even(self) -> list[float]:
        raw = (self.high - self.low) / 4
        unit = 10.0 ** math.floor(math.log10(raw))
        step = unit * min((1, 2, 5, 10), key=lambda m: abs(m - raw / unit))
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [round(i * step, 12) for i in range(first, last + 1)]


@dataclass(frozen=True)
class Curve:
    """`raw` and its running `mean`: the `points` of two SVG polylines."""

    x_ticks: Ticks
    y_ticks: Ticks
    raw: str
    mean: str


def curve(x: Sequence[float], y: Sequence[float]) -> Curve | None:
    """Values over growing `x`, with their running mean; logarithmic where they span more than a factor of five.

    None where there is nothing to see: less than two values, or all the same.
    """
    if len(y) < 2 or min(y) == max(y):
        return None
    across = Axis(x[0], x[-1], WIDTH)
    down = Axis(max(y), min(y), HEIGHT, log=min(y) > 0 and max(y) / min(y) > 5)
    upward = Axis(min(y), max(y), HEIGHT, down.log)
    thin = slice(None, None, math.ceil(len(y) / MOST_POINTS))
    raw, mean = (
        " ".join(f"{across.at(a)},{down.at(b)}" for a, b in zip(x[thin], values[thin], strict=True))
        for values in (list(y), _running_mean(y))
    )
    return Curve(across.ticks(), [(HEIGHT - place, text) for place, text in upward.ticks()], raw, mean)


def _running_mean(y: Sequence[float]) -> list[float]:
    """The mean over the nearest tenth of all values, fewer at the ends; centred, so that nothing lags."""
    reach = len(y) // 20
    total = np.concatenate([[0.0], np.cumsum(y, dtype=np.float64)])
    i = np.arange(len(y))
    first, last = np.maximum(i - reach, 0), np.minimum(i + reach + 1, len(y))
    return ((total[last] - total[first]) / (last - first)).tolist()


@dataclass(frozen=True)
class Point:
    name: str
    x: float
    y: float
    label_y: float


@dataclass(frozen=True)
class Scatter:
    x_ticks: Ticks
    y_ticks: Ticks
    points: list[Point]


def scatter(values: dict[str, tuple[float, float]]) -> Scatter:
    """Named (x, y), y growing downwards: where less of it is better, the best stands at the top right."""
    across = _roomy([x for x, _ in values.values()], WIDTH)
    down = _roomy([y for _, y in values.values()], HEIGHT)
    points, above = [], -math.inf
    for name, (x, y) in sorted(values.items(), key=lambda item: item[1][1]):
        above = max(down.at(y), above + LABEL_HEIGHT)  # labels of near points move apart
        points.append(Point(name, across.at(x), down.at(y), above))
    return Scatter(across.ticks(), down.ticks(), points)


def _roomy(values: Sequence[float], length: float) -> Axis:
    margin = 0.2 * (max(values) - min(values)) or 0.1 * abs(values[0]) or 1.0
    return Axis(min(values) - margin, max(values) + margin, length)
