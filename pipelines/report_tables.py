"""The tables of the report: means, differences from bicubic, and the figures of images."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from upsr.evaluation.metrics import higher_is_better

DECIMALS = {"psnr": 2, "ssim": 4, "lpips": 4, "dists": 4, "niqe": 2, "musiq": 2, "seconds": 2}

Numbers = dict[str, float]


@dataclass(frozen=True)
class Cell:
    """`note` is shown below the value; `tone` is `best`, `better`, `worse` or empty."""

    value: float | None
    text: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """`head` is the heading of the row names; `columns` are (metric, arrow). A group's name is a row above its rows."""

    head: str
    columns: list[tuple[str, str]]
    groups: dict[str, dict[str, list[Cell]]]


def means_table(benchmarks: dict[str, dict[str, dict[str, Numbers]]]) -> Table:
    """Means with confidence intervals, one group per benchmark and one row per model."""

    def cell(name: str, row: Numbers | None, best: float | None) -> Cell:
        if row is None:
            return Cell(None, "–")
        note = f"{figure(name, row['low'])} – {figure(name, row['high'])}" if "low" in row and name != "seconds" else ""
        return Cell(row["mean"], figure(name, row["mean"]), note, "best" if row["mean"] == best else "")

    columns = columns_of(row for models in benchmarks.values() for row in models.values())
    groups = {}
    for benchmark, models in benchmarks.items():
        best = {name: _best(name, [m[name]["mean"] for m in models.values() if name in m]) for name in columns}
        groups[benchmark] = {
            model: [cell(name, m.get(name), best[name]) for name in columns] for model, m in models.items()
        }
    return Table("Model", _with_arrows(columns), groups)


def gains_table(benchmarks: dict[str, dict[str, dict[str, Numbers]]]) -> Table:
    """Paired differences from bicubic; `better` or `worse` if the confidence interval excludes 0."""

    def cell(name: str, row: Numbers | None) -> Cell:
        if row is None or "difference" not in row:
            return Cell(None, "–")
        value, low, high = row["difference"], row.get("difference_low"), row.get("difference_high")
        text = figure(name, value, sign="+")
        if low is None or high is None:
            return Cell(value, text)
        tone = ("better" if (value > 0) == higher_is_better(name) else "worse") if low > 0 or high < 0 else ""
        return Cell(value, text, f"{figure(name, low, '+')} … {figure(name, high, '+')}", tone)

    rows = (row for models in benchmarks.values() for row in models.values())
    columns = [name for name in columns_of(rows) if name != "seconds"]
    groups = {
        benchmark: {
            model: [cell(name, m.get(name)) for name in columns] for model, m in models.items() if model != "bicubic"
        }
        for benchmark, models in benchmarks.items()
    }
    return Table("Model", _with_arrows(columns), groups)


def values_table(head: str, figures: dict[str, Numbers], best: bool = True) -> Table:
    """Figures without intervals; with `best`, the best of each column is marked."""
    columns = columns_of(figures.values())
    top = {name: _best(name, [f[name] for f in figures.values() if name in f]) if best else None for name in columns}

    def cell(name: str, value: float | None) -> Cell:
        return Cell(None, "–") if value is None else Cell(value, figure(name, value), "", "best" * (value == top[name]))

    rows = {row: [cell(name, f.get(name)) for name in columns] for row, f in figures.items()}
    return Table(head, _with_arrows(columns), {"": rows})


def columns_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The keys of all rows, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _with_arrows(names: list[str]) -> list[tuple[str, str]]:
    return [(name, "↑" if higher_is_better(name) else "↓") for name in names]


def _best(name: str, values: list[float]) -> float | None:
    """The best value of a column; None for an empty one and for times, where the fastest is always the baseline."""
    return None if name == "seconds" else (max if higher_is_better(name) else min)(values, default=None)


def figure(name: str, value: float, sign: str = "") -> str:
    """A metric's value with its usual decimals; `sign` "+" shows the sign of any value. No time is shown as 0.00."""
    if name == "seconds" and value < 0.005:  # bicubic
        return "–"
    return f"{value:{sign}.{DECIMALS.get(name, 3)}f}".replace("-", "−")
