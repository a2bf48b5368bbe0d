"""Coordinates of curves and scatter plots for the report's SVGs; the template draws them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 300, 130  # of the plot area, in SVG units; labels are outside it
MOST_POINTS = 500  # more than a curve of this width can resolve
LABEL_HEIGHT = 15

Ticks = list[tuple[float, str]]


@dataclass(frozen=True)
class Axis:
    """Maps `low`..`high` to 0..`length`, linearly or logarithmically."""

    low: float
    high: float
    length: float
    log: bool = False

    def at(self, value: float) -> float:
        """The position of a value."""
        low, high, x = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return round((x - low) / (high - low) * self.length, 1)

    def ticks(self) -> Ticks:
        """Three to seven round values: (position, label)."""
        values = self._decades() if self.log else []
        return [
            (self.at(v), f"{v / 1000:g}k" if v >= 10_000 else f"{v:g}")
            for v in (values if len(values) > 2 else self._even())
        ]

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
    """A curve `raw` and its running `mean`, each as points (x, y)."""

    x_ticks: Ticks
    y_ticks: Ticks
    raw: list[tuple[float, float]]
    mean: list[tuple[float, float]]


def curve(x: Sequence[float], y: Sequence[float], end: float) -> Curve | None:
    """`y` over `x` on an axis from 0 to `end`, with its running mean; y is logarithmic if it spans a factor of five.

    None if there are fewer than two values or all are equal.
    """
    if len(y) < 2 or min(y) == max(y):
        return None
    across = Axis(0, end, WIDTH)
    down = Axis(max(y), min(y), HEIGHT, log=min(y) > 0 and max(y) / min(y) > 5)
    upward = Axis(min(y), max(y), HEIGHT, down.log)
    thin = slice(None, None, math.ceil(len(y) / MOST_POINTS))
    raw, mean = (
        [(across.at(a), down.at(b)) for a, b in zip(x[thin], values[thin], strict=True)]
        for values in (list(y), _running_mean(y))
    )
    return Curve(across.ticks(), [(HEIGHT - position, label) for position, label in upward.ticks()], raw, mean)


def _running_mean(y: Sequence[float]) -> list[float]:
    """Centred mean over a tenth of all values, five at least, fewer at the ends."""
    radius = max(2, len(y) // 20)
    total = np.concatenate([[0.0], np.cumsum(y, dtype=np.float64)])
    i = np.arange(len(y))
    first, last = np.maximum(i - radius, 0), np.minimum(i + radius + 1, len(y))
    return ((total[last] - total[first]) / (last - first)).tolist()


@dataclass(frozen=True)
class Point:
    """A labelled point, in the coordinates of the SVG."""

    name: str
    x: float
    y: float
    label_y: float


@dataclass(frozen=True)
class Scatter:
    """What the template draws: the ticks of both axes, and the points."""

    x_ticks: Ticks
    y_ticks: Ticks
    points: list[Point]


def scatter(values: dict[str, tuple[float, float]]) -> Scatter:
    """Named points (x, y). The y axis points down: the best is at the top right if a lower y is better."""
    across = _padded_axis([x for x, _ in values.values()], WIDTH)
    down = _padded_axis([y for _, y in values.values()], HEIGHT)
    points, label_y = [], -math.inf
    for name, (x, y) in sorted(values.items(), key=lambda item: item[1][1]):
        label_y = max(down.at(y), label_y + LABEL_HEIGHT)  # keeps labels of close points from overlapping
        points.append(Point(name, across.at(x), down.at(y), label_y))
    return Scatter(across.ticks(), down.ticks(), points)


def _padded_axis(values: Sequence[float], length: float) -> Axis:
    margin = 0.2 * (max(values) - min(values)) or 0.1 * abs(values[0]) or 1.0
    return Axis(min(values) - margin, max(values) + margin, length)
