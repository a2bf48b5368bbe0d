"""Stage `report`: all results on one self-contained HTML page."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipelines.charts import Curve, Scatter, curve, scatter
from pipelines.report_images import ReportImages, read_images
from pipelines.stage import run
from upsr.config import ConfigError, load_params
from upsr.evaluation.metrics import higher_is_better
from upsr.evaluation.statistics import showcase
from upsr.files import atomic, parse_json

LABELS = {
    "lr": "LR",
    "bicubic": "Bicubic",
    "atd": "ATD",
    "upsr": "UPSR",
    "unet": "UNet",
    "hr": "HR",
    "residual": "Uncertainty |ŷ − y↑|",
    "edge": "Edges E",
    "frequency": "High frequencies H",
    "mix": "Uncertainty W",
    "weight": "Noise weight w",
    "weights": "w while sampling",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "dists": "DISTS",
    "niqe": "NIQE",
    "clipiqa": "CLIPIQA",
    "musiq": "MUSIQ",
}
DECIMALS = {"psnr": 2, "ssim": 4, "lpips": 4, "dists": 4, "niqe": 2, "musiq": 2, "seconds": 2}
SHOWN = 6  # images per benchmark: the best and the worst if it has more

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
    """`head` is the heading of the row names; `columns` are (metric, arrow)."""

    head: str
    columns: list[tuple[str, str]]
    rows: dict[str, list[Cell]]


@dataclass(frozen=True)
class ImageResults:
    """The models' outputs and figures on one image."""

    name: str
    images: ReportImages
    table: Table


@dataclass(frozen=True)
class Results:
    """Results on one benchmark. `plane` is LPIPS against PSNR, None where one of them was not measured.

    `selected` are the images with the largest and smallest gains in the metric `ranked_by`; `every` has all images.
    """

    name: str
    manifest: dict[str, Any]
    table: Table
    gains: Table
    plane: Scatter | None
    ranked_by: str
    selected: list[ImageResults]
    every: Table


def main() -> None:
    page = render(Path("reports"), Path("models"), Path("params.yaml"))
    with atomic("reports/index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def render(reports: Path, models: Path, params: Path) -> str:
    """The HTML of the page, from the results in `reports`/evaluate and the logs `models`/NAME/log.csv.

    Raises `ConfigError` if a file is missing, and `DataError` if one is not valid JSON.
    """
    # results
    settings = load_params(params)
    folder = reports / "evaluate"
    statistics, per_image = _rows(folder / "summary.csv"), _rows(folder / "per_image.csv")
    results = [
        _results(manifest, _of(name, statistics), _of(name, per_image), folder / "pictures" / name)
        for name, manifest in _json(folder / "manifests.json").items()
        if _of(name, per_image)
    ]
    # page
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            scale=settings.scale,
            run=_json(folder / "run.json"),
            results=results,
            logs={path.parent.name: _curves(path) for path in sorted(models.glob("*/log.csv"))},
            params=params.read_text(),
        )
    )


def templates() -> Environment:
    """The templates of pages. Their filter `label` gives the heading of a model or metric."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["label"] = lambda name: LABELS.get(name, name)
    return environment


def _of(name: str, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [row for row in rows if row["benchmark"] == name]


def _results(
    manifest: dict[str, Any], statistics: list[dict[str, str]], per_image: list[dict[str, str]], folder: Path
) -> Results:
    # figures by model, and by image and model
    means: dict[str, dict[str, Numbers]] = {}
    for row in statistics:
        means.setdefault(row["model"], {})[row["metric"]] = _numbers(row)
    values: dict[str, dict[str, Numbers]] = {}
    for row in per_image:
        values.setdefault(row["picture"], {})[row["model"]] = _numbers(row)
    plane = {
        model: (m["psnr"]["mean"], m["lpips"]["mean"]) for model, m in means.items() if {"psnr", "lpips"} <= m.keys()
    }
    # images to show
    rows = [{k: row[k] for k in ("benchmark", "model", "picture")} | _numbers(row) for row in per_image]
    ranked_by, selected = showcase(rows, "upsr", SHOWN)
    return Results(
        name=manifest["name"],
        manifest=manifest,
        table=_means(means),
        gains=_gains(means),
        plane=scatter(plane) if plane else None,
        ranked_by=ranked_by,
        selected=[
            ImageResults(name, read_images(folder / name, set(means)), _values("Model", values[name]))
            for name in selected
        ],
        every=_values("Image", {name: m["upsr"] for name, m in values.items() if "upsr" in m}, best=False),
    )


def _means(models: dict[str, dict[str, Numbers]]) -> Table:
    """Means with confidence intervals, one row per model."""

    def cell(name: str, row: Numbers | None, best: float | None) -> Cell:
        if row is None:
            return Cell(None, "–")
        note = f"{_text(name, row['low'])} – {_text(name, row['high'])}" if "low" in row and name != "seconds" else ""
        return Cell(row["mean"], _text(name, row["mean"]), note, "best" if row["mean"] == best else "")

    columns = _columns(models)
    best = {name: _best(name, [m[name]["mean"] for m in models.values() if name in m]) for name in columns}
    rows = {model: [cell(name, m.get(name), best[name]) for name in columns] for model, m in models.items()}
    return Table("Model", _with_arrows(columns), rows)


def _gains(models: dict[str, dict[str, Numbers]]) -> Table:
    """Paired differences from bicubic; `better` or `worse` if the confidence interval excludes 0."""

    def cell(name: str, row: Numbers | None) -> Cell:
        if row is None or "difference" not in row:
            return Cell(None, "–")
        value, low, high = row["difference"], row.get("difference_low"), row.get("difference_high")
        text = _text(name, value, sign="+")
        if low is None or high is None:
            return Cell(value, text)
        tone = ("better" if (value > 0) == higher_is_better(name) else "worse") if low > 0 or high < 0 else ""
        return Cell(value, text, f"{_text(name, low, '+')} … {_text(name, high, '+')}", tone)

    columns = [name for name in _columns(models) if name != "seconds"]
    rows = {model: [cell(name, m.get(name)) for name in columns] for model, m in models.items() if model != "bicubic"}
    return Table("Model", _with_arrows(columns), rows)


def _values(head: str, figures: dict[str, Numbers], best: bool = True) -> Table:
    """Figures without intervals; with `best`, the best of each column is marked."""
    columns = _columns(figures)
    top = {name: _best(name, [f[name] for f in figures.values() if name in f]) if best else None for name in columns}

    def cell(name: str, value: float | None) -> Cell:
        return Cell(None, "–") if value is None else Cell(value, _text(name, value), "", "best" * (value == top[name]))

    rows = {row: [cell(name, f.get(name)) for name in columns] for row, f in figures.items()}
    return Table(head, _with_arrows(columns), rows)


def _columns(rows: dict[str, dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows.values() for name in row))


def _with_arrows(names: list[str]) -> list[tuple[str, str]]:
    return [(name, "↑" if higher_is_better(name) else "↓") for name in names]


def _best(name: str, values: list[float]) -> float | None:
    """The best value of a column; None for times, where the fastest is always the baseline."""
    return None if name == "seconds" else (max if higher_is_better(name) else min)(values)


def _text(name: str, value: float, sign: str = "") -> str:
    return f"{value:{sign}.{DECIMALS.get(name, 3)}f}".replace("-", "−")


def _curves(path: Path) -> dict[str, Curve]:
    """A curve for each column of a training log whose values vary."""
    rows = [_numbers(row) for row in _rows(path)]
    curves = {}
    for name in dict.fromkeys(key for row in rows for key in row if key != "step"):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if drawn := curve([x for x, _ in points], [y for _, y in points]):
            curves[name] = drawn
    return curves


def _numbers(row: dict[str, str]) -> Numbers:
    """The cells with a finite number; a missing metric or loss is empty or NaN."""
    numbers = {}
    for name, text in row.items():
        try:
            value = float(text)
        except ValueError:
            continue
        if math.isfinite(value) and name not in ("benchmark", "picture"):  # a name may be 0001
            numbers[name] = value
    return numbers


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(_file(path).splitlines()))


def _json(path: Path) -> dict[str, Any]:
    return parse_json(_file(path), path)


def _file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file: run `dvc repro` first") from None


if __name__ == "__main__":
    run(main)
