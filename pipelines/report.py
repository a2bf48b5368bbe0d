"""Stage `report`: everything the chain found out, on one page that needs nothing beside itself."""

import csv
import json
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
from upsr.files import atomic

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
SHOWN = 6  # pictures of a benchmark: the best and the worst where there are more

Numbers = dict[str, float]


@dataclass(frozen=True)
class Cell:
    """`note` stands below the value; `tone` is `best`, `better`, `worse` or empty."""

    value: float | None
    text: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """`head` names the rows; `columns`: (name, arrow)."""

    head: str
    columns: list[tuple[str, str]]
    rows: dict[str, list[Cell]]


@dataclass(frozen=True)
class Picture:
    name: str
    images: ReportImages
    table: Table


@dataclass(frozen=True)
class Results:
    """What was found on one benchmark. `plane`: perception against distortion, where both were measured.

    `pictures` are those with the greatest and the least gain in `ranked_by`; `every` is the table of all.
    """

    name: str
    manifest: dict[str, Any]
    table: Table
    gains: Table
    plane: Scatter | None
    ranked_by: str
    pictures: list[Picture]
    every: Table


def main() -> None:
    page = render(Path("reports"), Path("models"), Path("params.yaml"))
    with atomic("reports/index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def render(reports: Path, models: Path, params: Path) -> str:
    """The page, from what `evaluate` left below `reports`/evaluate and the logs below `models`/NAME/log.csv.

    Raises `ConfigError` where one of the files is missing or broken.
    """
    settings = load_params(params)
    folder = reports / "evaluate"
    statistics, per_image = _rows(folder / "summary.csv"), _rows(folder / "per_image.csv")
    found = [
        _results(manifest, _of(name, statistics), _of(name, per_image), folder / "pictures" / name)
        for name, manifest in _json(folder / "manifests.json").items()
        if _of(name, per_image)
    ]
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["label"] = lambda name: LABELS.get(name, name)
    return templates.get_template("report.html.j2").render(
        scale=settings.scale,
        run=_json(folder / "run.json"),
        results=found,
        logs={path.parent.name: _curves(path) for path in sorted(models.glob("*/log.csv"))},
        params=params.read_text(),
    )


def _of(name: str, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [row for row in rows if row["benchmark"] == name]


def _results(
    manifest: dict[str, Any], statistics: list[dict[str, str]], per_image: list[dict[str, str]], folder: Path
) -> Results:
    means: dict[str, dict[str, Numbers]] = {}
    for row in statistics:
        means.setdefault(row["model"], {})[row["metric"]] = _numbers(row)
    values: dict[str, dict[str, Numbers]] = {}
    for row in per_image:
        values.setdefault(row["picture"], {})[row["model"]] = _numbers(row)
    plane = {
        model: (m["psnr"]["mean"], m["lpips"]["mean"]) for model, m in means.items() if {"psnr", "lpips"} <= m.keys()
    }
    named = [{k: row[k] for k in ("benchmark", "model", "picture")} | _numbers(row) for row in per_image]
    ranked_by, chosen = showcase(named, "upsr", SHOWN)
    return Results(
        name=manifest["name"],
        manifest=manifest,
        table=_means(means),
        gains=_gains(means),
        plane=scatter(plane) if plane else None,
        ranked_by=ranked_by,
        pictures=[Picture(p, read_images(folder / p, set(means)), _values("Model", values[p])) for p in chosen],
        every=_values("Picture", {p: models["upsr"] for p, models in values.items() if "upsr" in models}, best=False),
    )


def _means(models: dict[str, dict[str, Numbers]]) -> Table:
    """Means with their confidence intervals, models down."""

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
    """Differences from bicubic on the same pictures; told to be better or worse where the interval leaves 0 out."""

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
    """Plain figures; with `best`, the best of each column is marked."""
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
    """The best of a column, to be set in bold. Not of the times: that the baseline is fast is no achievement."""
    return None if name == "seconds" else (max if higher_is_better(name) else min)(values)


def _text(name: str, value: float, sign: str = "") -> str:
    return f"{value:{sign}.{DECIMALS.get(name, 3)}f}".replace("-", "−")


def _curves(path: Path) -> dict[str, Curve]:
    """A curve for each column of a training's log that changes."""
    rows = [_numbers(row) for row in _rows(path)]
    curves = {}
    for name in dict.fromkeys(key for row in rows for key in row if key != "step"):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if drawn := curve([x for x, _ in points], [y for _, y in points]):
            curves[name] = drawn
    return curves


def _numbers(row: dict[str, str]) -> Numbers:
    """The cells that hold a finite number: a metric or a loss without value leaves its cell empty or NaN."""
    numbers = {}
    for name, text in row.items():
        try:
            value = float(text)
        except ValueError:
            continue
        if math.isfinite(value) and name not in ("benchmark", "picture"):  # which may be called 0001
            numbers[name] = value
    return numbers


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(_file(path).splitlines()))


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(_file(path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None


def _file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file: run `dvc repro` first") from None


if __name__ == "__main__":
    run(main)
