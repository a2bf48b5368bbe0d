"""The MLflow runs of an evaluation: a parent, and a child for each model, so that models and variants line up."""

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipelines import registry, tracking, views
from upsr.config import Params
from upsr.data.benchmarks import Benchmark
from upsr.evaluation.metrics import Row
from upsr.evaluation.runs import Outcome
from upsr.evaluation.statistics import HEADLINE, showcase, table
from upsr.images import read_rgb
from upsr.pretrained import FILE

UPSR = Path("models/unet")
MODELS = {"bicubic": None, "atd": Path("models/atd"), "upsr": UPSR}
SHEETS = 4  # images per benchmark recorded in MLflow: the best and the worst
COLUMNS, SIDE = 3, 256  # of a sheet; beside MLflow's assistant, the page of a model's version has 789 pixels of 1400
LABEL = 20  # height in pixels
FIGURES = {"PSNR": 70, "SSIM": 70, "LPIPS": 75}  # columns of MLflow's table, and their widths in pixels


def record(
    experiment: str, params: Params, facts: dict[str, Any], outcome: Outcome, out: Path, benchmarks: list[Benchmark]
) -> str:
    """Records an MLflow run with a child for each model, whose figures have the same names, and registers UPSR.

    Returns the address of the run, empty if MLflow could not be reached.
    """
    values, atd, unet = params.model_dump(mode="json"), facts["models"]["atd"], facts["models"]["unet"]
    columns = {
        "bicubic": {},
        "atd": {"width": atd["dim"], "steps": atd["steps"], "seed": values["seed"]},
        "upsr": {"width": unet["dim"], "steps": unet["steps"], "seed": values["seed"], "variant": facts["uncertainty"]},
    }
    name = f"{facts['uncertainty']}-{unet['dim']}"
    names = {"bicubic": "bicubic", "atd": f"atd-{atd['dim']}", "upsr": f"upsr-{name}"}
    digests = {f"data.{name}": digest for name, digest in facts["digests"].items()}
    statistics, pictures = table(outcome.rows), out / "pictures"
    shown = _shown(outcome.rows)
    pages: list[str] = []
    with tracking.start(experiment, name, values, _tags(columns["upsr"])) as parent:
        parent.view(views.VIEW, models_by_lpips([benchmark.name for benchmark in benchmarks]))
        parent.metrics(headline(figures(statistics, "upsr")))
        parent.artifact(out / "run.json")
        _record_datasets(parent, benchmarks)
        for model, own in columns.items():
            tags, settings = _tags({"model": model} | own) | digests, values if model == "upsr" else {}
            with tracking.start(experiment, names[model], settings, tags, parent=parent.run_id) as tracker:
                _record_datasets(tracker, benchmarks)
                own_figures = figures(statistics, model)
                tracker.metrics(headline(own_figures) | own_figures)
                _record_tables(tracker, _of(model, statistics), _of(model, outcome.rows))
                _record_grids(tracker, model, pictures, shown)
                if model == "upsr":
                    sheets = _record_sheets(tracker, pictures, shown)
                    example = benchmarks[0].pairs[0].lr
                    registry.register(tracker, UPSR / FILE, example, _card(statistics), sheets[:SHEETS])
        parent.send(lambda store, run: pages.append(_address(store.get_run(run).info.experiment_id, run)))
    return "".join(pages)


def models_by_lpips(benchmarks: list[str]) -> dict[str, Any]:
    """The view of the experiment: all models without their parents. Its charts begin with the headline metrics."""
    headlines = {name: [f"{name}/{metric}" for metric in HEADLINE] for name in benchmarks}
    order = {"searchFilter": "tags.model != ''", "orderByKey": "metrics.`LPIPS`", "orderByAsc": True}
    return order | views.table(FIGURES) | views.charts({"Headline": list(FIGURES)} | headlines)


def _address(experiment: str, run: str) -> str:
    """The run's page, without the name and password of a server; that of a local store answers while `make ui` runs."""
    store = re.sub(r"//[^/@]*@", "//", tracking.store_address()[0])
    server = store.rstrip("/") if store.startswith("http") else "http://127.0.0.1:5000"
    # MLflow opens `#/runs/ID`, and a page without the type, among its GenAI pages.
    return f"{server}/#/experiments/{experiment}/runs/{run}?workflowType=machine_learning"


def _tags(values: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}


def _of(model: str, rows: list[Row]) -> list[Row]:
    return [{k: v for k, v in row.items() if k != "model"} for row in rows if row["model"] == model]


def _shown(rows: list[Row]) -> list[str]:
    """The images that MLflow gets, as BENCHMARK/IMAGE."""
    benchmarks = dict.fromkeys(row["benchmark"] for row in rows)
    return [
        f"{benchmark}/{name}"
        for benchmark in benchmarks
        for name in showcase([row for row in rows if row["benchmark"] == benchmark], "upsr", SHEETS)[1]
    ]


def _record_datasets(tracker: tracking.Tracker, benchmarks: list[Benchmark]) -> None:
    for benchmark in benchmarks:
        tracker.dataset(benchmark.name, benchmark.digest, benchmark.pairs[0].lr.parent, "evaluation")


def _record_tables(tracker: tracking.Tracker, statistics: list[Row], rows: list[Row]) -> None:
    labels = ("benchmark", "metric")
    for_view = [{k: row[k] for k in (*labels, "mean")} | row for row in statistics]
    tracker.table(named(for_view, "figure", *labels), "summary")
    tracker.table(named(rows, "picture", "benchmark", "picture"), "per_image")


def _record_grids(tracker: tracking.Tracker, model: str, pictures: Path, shown: list[str]) -> None:
    """Logs a model's results by the same keys as other models', so that MLflow shows them side by side."""
    for key in shown:
        if (path := pictures / key / f"{model}.png").is_file():
            tracker.grid(key, read_rgb(path))


def _record_sheets(tracker: tracking.Tracker, pictures: Path, shown: list[str]) -> list[str]:
    """Logs the models side by side, and UPSR's maps; returns the addresses of the former in the run."""
    for key in shown:
        tracker.image(f"sheets/{key}.png", sheet(pictures / key))
        for path in sorted(p for p in (pictures / key).glob("*.png") if p.stem not in ("lr", *MODELS, "hr")):
            tracker.image(f"maps/{key}/{path.name}", read_rgb(path))
    return [f"sheets/{key}.png" for key in shown]


def _card(statistics: list[Row]) -> str:
    """Each model's headline figures as a table in markdown."""
    means = {(row["benchmark"], row["model"], row["metric"]): row["mean"] for row in statistics}
    lines = [f"| benchmark | model | {' | '.join(m.upper() for m in HEADLINE)} |", "|---" * 5 + "|"]
    for benchmark, model in dict.fromkeys(key[:2] for key in means):
        found = [means.get((benchmark, model, m)) for m in HEADLINE]
        lines.append(f"| {benchmark} | {model} | {' | '.join('–' if v is None else f'{v:.4f}' for v in found)} |")
    return "\n".join(lines)


def headline(figures: dict[str, float]) -> dict[str, float]:
    """PSNR, SSIM and LPIPS on the first benchmark that has a PSNR, by these names, which MLflow lists first.

    They have 4 decimals: MLflow shows all digits of a number, and its table would cut them.
    """
    benchmark = next((name for name in figures if name.endswith("/psnr")), "").partition("/")[0]
    return {m.upper(): round(figures[f"{benchmark}/{m}"], 4) for m in HEADLINE if f"{benchmark}/{m}" in figures}


def figures(statistics: list[Row], model: str) -> dict[str, float]:
    """A model's MLflow metrics: `Set5/psnr` is its mean, `Set5/psnr_minus_bicubic` its paired difference."""
    values = {}
    for row in statistics:
        if row["model"] == model:
            name = f"{row['benchmark']}/{row['metric']}"
            values[name] = row["mean"]
            if row["difference"] is not None and row["metric"] != "seconds":
                values[f"{name}_minus_bicubic"] = row["difference"]
    return values


def sheet(folder: Path) -> np.ndarray:
    """LR, each model's result and HR under their names, each at most `SIDE` per side: (H, W, 3) uint8."""
    paths = [folder / f"{name}.png" for name in ("lr", *MODELS, "hr")]
    images = {path.stem: read_rgb(path) for path in paths if path.is_file()}
    height, width = list(images.values())[-1].shape[:2]
    factor = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    cells = [_labelled(cv2.resize(x, size, interpolation=cv2.INTER_AREA), name) for name, x in images.items()]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % COLUMNS)
    rows = [np.concatenate(cells[i : i + COLUMNS], axis=1) for i in range(0, len(cells), COLUMNS)]
    return np.concatenate(rows)


def _labelled(image: np.ndarray, label: str) -> np.ndarray:
    strip = np.full((LABEL, image.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, label, (2, LABEL - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([strip, image])


def named(rows: list[Row], column: str, *names: str) -> list[Row]:
    """The rows with the columns `names` joined into a first column, such as `Set5/baby`.

    MLflow's table view and DVC's plots match the rows of different runs by it.
    """
    return [
        {column: "/".join(row[n] for n in names)} | {k: v for k, v in row.items() if k not in names} for row in rows
    ]
