"""Stage `report`: all results on one self-contained HTML page."""

import csv
import math
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.charts import Curve, Scatter, curve, scatter
from pipelines.report_images import ReportImages, read_images
from pipelines.report_tables import Numbers, Table, columns_of, figure, gains_table, means_table, values_table
from pipelines.stage import run
from pipelines.tracking import flatten
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
    "residual": "ψ: what ATD changed",
    "edge": "E: edges",
    "frequency": "H: high frequencies",
    "mix": "W: uncertainty",
    "weight": "w: noise weight",
    "weights": "w while sampling",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "dists": "DISTS",
    "niqe": "NIQE",
    "clipiqa": "CLIPIQA",
    "musiq": "MUSIQ",
}
SHOWN = 6  # images per benchmark: the best and the worst if it has more
BEATEN = 3  # images per benchmark where ATD beats UPSR


@dataclass(frozen=True)
class ImageResults:
    """The models' outputs and figures on one image. `beaten`: ATD's figure and UPSR's, if it is shown for ATD's."""

    name: str
    anchor: str
    beaten: str
    images: ReportImages
    table: Table


@dataclass(frozen=True)
class Results:
    """Results on one benchmark. `plane` is LPIPS against PSNR, None where one of them was not measured.

    The first `ranked` images have the largest and smallest gains in the metric `ranked_by`; `beaten` are the images
    where ATD beats UPSR most. `every` has the figures of all images.
    """

    name: str
    manifest: dict[str, Any]
    plane: Scatter | None
    ranked_by: str
    ranked: int
    images: list[ImageResults]
    beaten: list[ImageResults]
    every: Table


@dataclass(frozen=True)
class Training:
    """Curves by column: of the loss, of the checkpoints' figures on the validation images, and of all other logs."""

    loss: dict[str, Curve]
    validation: dict[str, Curve]
    others: dict[str, Curve]
    kept: int
    """Step of the checkpoint that became the model."""


def main() -> None:
    page = render(Path("reports"), Path("models"), Path("params.yaml"))
    with atomic("reports/index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def render(reports: Path, models: Path, params: Path) -> str:
    """The HTML of the page, from the results in `reports`/evaluate and the tables `models`/NAME/*.csv.

    Raises `ConfigError` if a file is missing, and `DataError` if one is not valid JSON.
    """
    # results
    settings = load_params(params)
    folder = reports / "evaluate"
    statistics, per_image = _rows(folder / "summary.csv"), _rows(folder / "per_image.csv")
    facts = _json(folder / "run.json")
    measured = {name: m for name, m in _json(folder / "manifests.json").items() if _of(name, per_image)}
    means = {name: _by_model(_of(name, statistics)) for name in measured}
    # page
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            scale=settings.scale,
            diffusion=settings.diffusion,
            uncertainty=settings.uncertainty,
            unet=settings.unet,
            run=facts,
            results=[
                _results(number, manifest, means[name], _of(name, per_image), folder / "pictures" / name)
                for number, (name, manifest) in enumerate(measured.items(), start=1)
            ],
            means=means_table(means),
            gains=gains_table(means),
            trainings={log.parent.name: _training(log.parent) for log in sorted(models.glob("*/log.csv"))},
            best=_best_variant(reports / "variants.md"),
            changes=_changes(params, facts["git_commit"].removesuffix("-dirty")),
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


def _by_model(statistics: list[dict[str, str]]) -> dict[str, dict[str, Numbers]]:
    """Model -> metric -> the numbers of its row."""
    means: dict[str, dict[str, Numbers]] = {}
    for row in statistics:
        means.setdefault(row["model"], {})[row["metric"]] = _numbers(row)
    return means


def _results(
    number: int,
    manifest: dict[str, Any],
    means: dict[str, dict[str, Numbers]],
    per_image: list[dict[str, str]],
    folder: Path,
) -> Results:
    # figures by image and model
    values: dict[str, dict[str, Numbers]] = {}
    for row in per_image:
        values.setdefault(row["picture"], {})[row["model"]] = _numbers(row)
    plane = {
        model: (m["psnr"]["mean"], m["lpips"]["mean"]) for model, m in means.items() if {"psnr", "lpips"} <= m.keys()
    }
    # images to show
    rows = [{k: row[k] for k in ("benchmark", "model", "picture")} | _numbers(row) for row in per_image]
    ranked_by, selected = showcase(rows, "upsr", SHOWN)
    beaten = _beaten(rows, values)
    images = {
        name: ImageResults(
            name,
            f"p{number}-{i}",
            beaten.get(name, ""),
            read_images(folder / name, set(means)),
            values_table("Model", values[name]),
        )
        for i, name in enumerate(dict.fromkeys([*selected, *beaten]), start=1)
    }
    return Results(
        name=manifest["name"],
        manifest=manifest,
        plane=scatter(plane) if plane else None,
        ranked_by=ranked_by,
        ranked=len(selected),
        images=list(images.values()),
        beaten=[images[name] for name in beaten],
        every=values_table("Image", {name: m["upsr"] for name, m in values.items() if "upsr" in m}, best=False),
    )


def _beaten(rows: list[dict[str, Any]], values: dict[str, dict[str, Numbers]]) -> dict[str, str]:
    """The images where ATD beats UPSR most, and both figures of the metric that says so."""
    metric, ranked = showcase(rows, "atd", len(values), baseline="upsr")
    figures = {name: (values[name]["atd"][metric], values[name]["upsr"][metric]) for name in ranked if metric}
    worse = [name for name, (atd, upsr) in figures.items() if atd != upsr and (atd > upsr) == higher_is_better(metric)]
    return {
        name: f"{LABELS[metric]} {' against '.join(figure(metric, value) for value in figures[name])}"
        for name in worse[:BEATEN]
    }


def _training(folder: Path) -> Training:
    log, checkpoints = ([_numbers(row) for row in _rows(folder / name)] for name in ("log.csv", "checkpoints.csv"))
    end = max(row["step"] for row in log + checkpoints)
    logged, validated = _curves(log, end), _curves(checkpoints, end)
    best = max(checkpoints, key=lambda row: row.get("score", -math.inf))  # the first, as the training chose it
    return Training(
        loss={name: drawn for name, drawn in logged.items() if name == "loss"},
        validation={name: drawn for name, drawn in validated.items() if name != "score"},
        others={name: drawn for name, drawn in logged.items() if name != "loss"},
        kept=int(best["step"]),
    )


def _curves(rows: list[Numbers], end: float) -> dict[str, Curve]:
    """A curve up to the step `end` for each column whose values vary."""
    curves = {}
    for name in columns_of(rows):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if name != "step" and (drawn := curve([x for x, _ in points], [y for _, y in points], end)):
            curves[name] = drawn
    return curves


def _best_variant(comparison: Path) -> str:
    """The sentence in bold with which the page of `upsr compare` begins; empty without such a page."""
    page = comparison.read_text(encoding="utf-8") if comparison.is_file() else ""
    answer = re.search(r"\*\*(.+?)\*\*", page)
    return answer[1] if answer else ""


def _changes(params: Path, commit: str) -> dict[str, tuple[Any, Any]]:
    """Key -> (value, value in the commit), where they differ; empty for a commit that git does not have."""
    command = ["git", "show", f"{commit or 'none'}:./{params.name}"]
    try:
        committed = subprocess.run(command, cwd=params.parent, capture_output=True, text=True, check=True).stdout
        own, base = (flatten(YAML(typ="safe", pure=True).load(text) or {}) for text in (params.read_text(), committed))
    except (OSError, ValueError, subprocess.CalledProcessError, YAMLError):
        return {}
    return {key: (own.get(key), base.get(key)) for key in base | own if own.get(key) != base.get(key)}


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
