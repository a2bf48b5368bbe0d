"""Declared comparisons between arms: one table over benchmarks and metrics, and its forest plot."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from upsr.evaluation.contrasts import MARGINS, Contrast, contrast, holm, sentence, verdict
from upsr.evaluation.metrics import Row, higher_is_better
from upsr.files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEYS = ("arm", "seed", "benchmark", "picture")
NUMBERS = ("difference", "low", "high", "p", "p_holm")
COLUMNS = ("contrast", "benchmark", "metric", *NUMBERS, "verdict", "sentence", "seeds", "images")
REACH = 2  # times the largest difference, or the margin: an interval of two seeds can be a hundred times as wide
COLOURS = {"better": "tab:green", "worse": "tab:red", "equal": "tab:blue", "undecided": "tab:gray"}
LABEL_INCHES, PANEL_INCHES, LINE_INCHES, PANELS_A_ROW = 3.0, 3.2, 0.3, 4


class Declared(NamedTuple):
    """A comparison declared before its result is seen: arm `a` minus arm `b`."""

    name: str
    a: str
    b: str


def contrast_table(values: pd.DataFrame, declared: Sequence[Declared], primary: Collection[str]) -> pd.DataFrame:
    """A row per contrast, benchmark and metric: {contrast, benchmark, metric, difference, low, high, p, p_holm, ...}.

    `values` has the columns `KEYS` and one per metric, a row per arm, seed, benchmark and image. A contrast uses the
    seeds that both arms have. Holm's family is all rows of the metrics in `primary`; the other metrics are a second.
    The verdict is `not measured` where a value is missing. Raises `ValueError` for two rows of one image.
    """
    double = values[values.duplicated(list(KEYS))]
    if not double.empty:
        raise ValueError(f"{_name(double.iloc[0])}: more than one row: average over sampling seeds first")
    metrics = [str(column) for column in values if column not in KEYS]
    cells = [(d, str(b), m) for d in declared for b in values["benchmark"].unique() for m in metrics]
    found = [_contrast(values[values["benchmark"] == benchmark], metric, d) for d, benchmark, metric in cells]
    p = [result.p if isinstance(result, Contrast) else None for result in found]
    adjusted: list[float | None] = [None] * len(cells)
    for is_primary in (True, False):
        family = [i for i, (_, _, metric) in enumerate(cells) if (metric in primary) == is_primary]
        for i, own in zip(family, holm([p[i] for i in family]), strict=True):
            adjusted[i] = own
    rows = [
        {"contrast": d.name, "benchmark": benchmark, "metric": metric}
        | _results(result, benchmark, metric, d, corrected)
        for (d, benchmark, metric), result, corrected in zip(cells, found, adjusted, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict.fromkeys(NUMBERS, float))


def _results(found: Contrast | str, benchmark: str, metric: str, d: Declared, p: float | None) -> Row:
    """The columns of a contrast with `p` after Holm's correction, or of the reason why there is none."""
    if isinstance(found, str):
        reason = f"{benchmark}: not measured: {found}"
        return {"verdict": "not measured", "sentence": reason, "seeds": 0, "images": 0}
    low, high = found.interval()
    row: Row = {"difference": found.difference, "low": low, "high": high, "p": found.p, "p_holm": p}
    row |= {"verdict": verdict(found, metric, p), "sentence": f"{benchmark}: {sentence(found, metric, d.a, d.b, p)}"}
    return row | {"seeds": found.seeds, "images": found.images}


def _contrast(values: pd.DataFrame, metric: str, declared: Declared) -> Contrast | str:
    """The contrast on one benchmark, or the reason why there is none."""
    a, b = (
        values[values["arm"] == arm].pivot(index="seed", columns="picture", values=metric)
        for arm in (declared.a, declared.b)
    )
    seeds, images = a.index.intersection(b.index), a.columns.union(b.columns)
    if seeds.empty:
        own, other = a.index.tolist(), b.index.tolist()
        return f"{declared.a} and {declared.b} have no seed in common: {own} and {other}: train both with one seed"
    a, b = (cells.reindex(index=seeds, columns=images).astype(float) for cells in (a, b))
    for arm, cells in ((declared.a, a), (declared.b, b)):
        gaps = [(seed, image) for seed in seeds for image in images if not math.isfinite(cells.loc[seed, image])]
        if gaps:
            seed, image = gaps[0]
            more = f" and {len(gaps) - 1} more" if len(gaps) > 1 else ""
            return f"{metric} of {arm} is missing for {image}, seed {seed}{more}: evaluate it again"
    return contrast(a.to_numpy(), b.to_numpy())


def _name(row: pd.Series) -> str:
    return "/".join(str(row[key]) for key in KEYS)


def forest(table: pd.DataFrame, path: Path) -> None:
    """The plot of a contrast table, as PNG: a panel per metric, a line per contrast and benchmark.

    Bars are 95 % intervals, the band is the margin of equality. A hollow point has no interval, and an arrow means that
    the interval goes on.
    """
    from matplotlib.figure import Figure

    metrics = list(table["metric"].unique())
    lines = table[["contrast", "benchmark"]].drop_duplicates()
    labels = [f"{contrast}, {benchmark}" for contrast, benchmark in lines.itertuples(index=False)]
    rows = math.ceil(len(metrics) / PANELS_A_ROW)
    columns = math.ceil(len(metrics) / rows)
    size = (LABEL_INCHES + PANEL_INCHES * columns, rows * (1.4 + LINE_INCHES * len(labels)))
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for axes, metric in zip(panels, metrics, strict=False):
        _panel(axes, table[table["metric"] == metric], metric)
        axes.set_yticks(range(len(labels)), labels)
    for axes in panels[len(metrics) :]:
        axes.set_axis_off()
    colours = "Green: better, red: worse, blue: equal within the band, grey: undecided"
    figure.suptitle(f"Difference with its 95 % interval (arrow: it goes on). {colours}", fontsize="medium")
    panels[0].set_ylim(len(labels) - 0.5, -0.5)  # the first line at the top
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _panel(axes: "Axes", rows: pd.DataFrame, metric: str) -> None:
    margin = MARGINS.get(metric, 0.0)
    reach = REACH * max(rows["difference"].abs().max(), margin)
    axes.axvspan(-margin, margin, color="tab:blue", alpha=0.12, lw=0)
    axes.axvline(0, color="black", lw=0.8)
    for y, row in enumerate(rows.to_dict("records")):
        colour = COLOURS.get(row["verdict"], "tab:gray")
        ends = max(row["low"], -reach), min(row["high"], reach)
        axes.plot(ends, [y, y], color=colour)  # nothing where they are NaN
        for end, true_end, arrow in zip(ends, (row["low"], row["high"]), "<>", strict=True):
            if abs(true_end) > abs(end):
                axes.plot(end, y, arrow, color=colour)
        axes.plot(row["difference"], y, "o", color=colour, fillstyle="none" if pd.isna(row["low"]) else "full")
        if row["verdict"] == "not measured":
            axes.text(0, y, "not measured", ha="center", va="center", fontsize="small")
    axes.set_title(metric.upper())
    axes.set_xlabel("better →" if higher_is_better(metric) else "← better")
    axes.locator_params(axis="x", nbins=4)
    axes.grid(axis="x", alpha=0.3)
