"""Stage `report`: everything the chain found out, on one page that needs nothing beside itself."""

import base64
import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipelines.charts import Curve, Scatter, curve, scatter
from pipelines.stage import run
from upsr.config import ConfigError, load_params
from upsr.evaluation.metrics import higher_is_better
from upsr.images import atomic, read_rgb

LABELS = {
    "lr": "LR",
    "bicubic": "Bicubic",
    "atd": "ATD",
    "upsr": "UPSR",
    "unet": "UNet",
    "hr": "HR",
    "residual": "Uncertainty |ŷ − y↑|",
    "weight": "Noise weight w",
}
ORDER = list(LABELS)
MAPS = ("residual", "weight")
DECIMALS = {"psnr": 2, "ssim": 4, "lpips": 4, "seconds": 2}
EMBEDDED_AS_IT_IS = 48_000  # bytes; a larger picture becomes a JPEG, in full colour resolution


@dataclass(frozen=True)
class Cell:
    value: float | None
    text: str
    best: bool


@dataclass(frozen=True)
class Table:
    """Metrics across, models down. `columns`: (name, arrow)."""

    columns: list[tuple[str, str]]
    rows: dict[str, list[Cell]]


@dataclass(frozen=True)
class Layer:
    """One picture of several that show the same: a result, the reference, or a map."""

    name: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Picture:
    """`focus`: the place with most detail, in percent of the width and the height."""

    name: str
    focus: tuple[float, float]
    layers: list[Layer]
    maps: list[Layer]
    table: Table


@dataclass(frozen=True)
class Results:
    """What was found on one benchmark. `plane`: perception against distortion, where both were measured."""

    name: str
    table: Table
    plane: Scatter | None
    pictures: list[Picture]


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
    per_image = _rows(folder / "per_image.csv")
    found = [_results(name, means, per_image, folder) for name, means in _json(folder / "metrics.json").items()]
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


def _results(name: str, means: dict[str, dict[str, float]], per_image: list[dict[str, str]], folder: Path) -> Results:
    plane = {model: (m["psnr"], m["lpips"]) for model, m in means.items() if {"psnr", "lpips"} <= m.keys()}
    pictures = [
        _picture(path, [row for row in per_image if (row["benchmark"], row["picture"]) == (name, path.name)])
        for path in sorted((folder / "pictures" / name).glob("*/"))
    ]
    return Results(name, _table(means), scatter(plane) if plane else None, pictures)


def _picture(folder: Path, rows: list[dict[str, str]]) -> Picture:
    paths = sorted(folder.glob("*.png"), key=_order)
    layers = [_layer(path) for path in paths]
    figures = {row["model"]: _numbers(row) for row in rows}
    return Picture(
        name=folder.name,
        focus=_focus(next(path for path in reversed(paths) if path.stem not in MAPS)),
        layers=[layer for layer in layers if layer.name not in MAPS],
        maps=[layer for layer in layers if layer.name in MAPS],
        table=_table(figures),
    )


def _order(path: Path) -> tuple[int, str]:
    """LR, bicubic, networks, HR, maps; a model that the page has never heard of stands before UPSR."""
    return ORDER.index(path.stem if path.stem in ORDER else "atd"), path.stem


def _focus(path: Path) -> tuple[float, float]:
    gray = cv2.cvtColor(read_rgb(path), cv2.COLOR_RGB2GRAY)
    detail = cv2.GaussianBlur(np.abs(cv2.Laplacian(gray, cv2.CV_32F)), (0, 0), sigmaX=max(gray.shape) / 16)
    y, x = np.unravel_index(detail.argmax(), gray.shape)
    return round(100 * x / gray.shape[1], 1), round(100 * y / gray.shape[0], 1)


def _layer(path: Path) -> Layer:
    image = read_rgb(path)
    kind, data = "png", path.read_bytes()
    if len(data) > EMBEDDED_AS_IT_IS:
        options = [cv2.IMWRITE_JPEG_QUALITY, 92, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
        kind, data = "jpeg", cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Layer(path.stem, uri, width=image.shape[1], height=image.shape[0])


def _table(models: Mapping[str, Mapping[str, float]]) -> Table:
    names = dict.fromkeys(name for figures in models.values() for name in figures)
    best = {name: _best(name, [f[name] for f in models.values() if name in f]) for name in names}
    rows = {model: [_cell(name, figures.get(name), best[name]) for name in names] for model, figures in models.items()}
    return Table([(name, "↑" if higher_is_better(name) else "↓") for name in names], rows)


def _best(name: str, values: list[float]) -> float | None:
    """The best of a column, to be set in bold. Not of the times: that the baseline is fast is no achievement."""
    return None if name == "seconds" else (max if higher_is_better(name) else min)(values)


def _cell(name: str, value: float | None, best: float | None) -> Cell:
    if value is None:
        return Cell(None, "–", best=False)
    return Cell(value, f"{value:.{DECIMALS.get(name, 3)}f}", best=value == best)


def _curves(path: Path) -> dict[str, Curve]:
    """A curve for each column of a training's log that changes."""
    rows = [_numbers(row) for row in _rows(path)]
    curves = {}
    for name in dict.fromkeys(key for row in rows for key in row if key != "step"):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if drawn := curve([x for x, _ in points], [y for _, y in points]):
            curves[name] = drawn
    return curves


def _numbers(row: dict[str, str]) -> dict[str, float]:
    """The cells that hold a finite number: a metric or a loss without value leaves its cell empty or NaN."""
    numbers = {}
    for name, text in row.items():
        try:
            value = float(text)
        except ValueError:
            continue
        if math.isfinite(value) and name != "picture":  # a picture may be called 0001
            numbers[name] = value
    return numbers


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(_text(path).splitlines()))


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file: run `dvc repro` first") from None


if __name__ == "__main__":
    run(main)
