"""Stage `evaluate`: bicubic, ATD and UPSR on every benchmark, measured by one protocol; one MLflow run."""

import argparse
import json
import os
import resource
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch

from pipelines import registry, tracking
from pipelines.stage import run
from upsr.config import Params, load_params
from upsr.data.benchmarks import Benchmark, open_benchmarks
from upsr.evaluation.metrics import Row
from upsr.evaluation.runs import EvaluationRun, Outcome, evaluate
from upsr.evaluation.spread import all_devices
from upsr.evaluation.statistics import showcase, summary, table
from upsr.files import DataError, atomic, sha256
from upsr.images import read_rgb
from upsr.pretrained import FILE, load_pretrained

MODELS = {"bicubic": None, "atd": Path("models/atd"), "upsr": Path("models/unet")}
SAMPLE_STEPS = 10_000  # fewer steps than this make a demonstration, not a model
NOTE = (
    "Trained at sample scale, for minutes. These networks show that the chain works; "
    "their figures and pictures say nothing yet about the method."
)
SHEETS = 4  # pictures of a benchmark that MLflow keeps: the best and the worst
SHEET_SIDE = 512
PACKAGES = ("torch", "pyiqa", "numpy", "opencv-python-headless")


def identity(params: Params, benchmarks: list[Benchmark]) -> dict[str, Any]:
    """What the figures depend on, kept beside them."""
    trained = {"atd": params.train_atd.steps, "unet": params.train_unet.steps}
    models = {name: _describe(Path("models") / name) | {"steps": steps} for name, steps in trained.items()}
    facts = {
        "protocol": params.evaluate.protocol,
        "seed": params.seed,
        "tile": params.evaluate.tile,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "git_commit": tracking.git_commit(),
        "dvc_experiment": os.environ.get("DVC_EXP_NAME", ""),
        "params_sha256": sha256(Path("params.yaml")),
        "uncertainty": params.uncertainty.variant,
        "digests": {b.name: b.digest for b in benchmarks},
        "models": models,
        "packages": {name: version(name) for name in PACKAGES},
    }
    return facts | ({"note": NOTE} if min(trained.values()) < SAMPLE_STEPS else {})


def _describe(folder: Path) -> dict[str, Any]:
    """A network's facts; it is the part of its file that its folder is named after."""
    path = folder / FILE
    model = load_pretrained(path)
    parameters = sum(v.numel() for v in model.parts[folder.name].values() if v.is_floating_point())
    return {"dim": model.settings[folder.name]["dim"], "parameters": parameters, "sha256": sha256(path)}


def peak_memory_mb() -> int:
    """Of the largest process, in MB of main memory."""
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return round(max(peaks) / 1024)


def figures(statistics: list[Row]) -> dict[str, float]:
    """Names that line MLflow's runs up: `Set5/psnr` is UPSR's, `Set5/psnr_atd` and `Set5/psnr_bicubic` the others',
    `Set5/psnr_over_bicubic` UPSR's paired difference."""
    found = {}
    for row in statistics:
        name = f"{row['benchmark']}/{row['metric']}"
        found[name if row["model"] == "upsr" else f"{name}_{row['model']}"] = row["mean"]
        if row["model"] == "upsr" and row["difference"] is not None and row["metric"] != "seconds":
            found[f"{name}_over_bicubic"] = row["difference"]
    return found


def sheet(folder: Path) -> np.ndarray:
    """LR, what each model made of it, and HR in a row, each at most `SHEET_SIDE` a side: (H, W, 3) uint8."""
    paths = [folder / f"{name}.png" for name in ("lr", *MODELS, "hr")]
    columns = [read_rgb(path) for path in paths if path.is_file()]
    height, width = columns[-1].shape[:2]
    factor = min(1.0, SHEET_SIDE / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.concatenate([cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in columns], axis=1)


def _record(experiment: str, params: Params, facts: dict[str, Any], outcome: Outcome, out: Path, example: Path) -> None:
    """One MLflow run: figures, tables, the pictures with the greatest and the least gain and their maps; and the
    model, registered with a picture to try it with."""
    tags = {"uncertainty.variant": params.uncertainty.variant} | {f"data.{n}": d for n, d in facts["digests"].items()}
    name = f"{params.uncertainty.variant}-{facts['models']['unet']['dim']}"
    statistics = table(outcome.rows)
    with tracking.start(experiment, name, params.model_dump(mode="json"), tags) as tracker:
        tracker.metrics(figures(statistics))
        for_view = [{k: row[k] for k in ("benchmark", "model", "metric", "mean")} | row for row in statistics]
        tracker.table(named(for_view, "figure", "benchmark", "model", "metric"), "summary")
        tracker.table(named(outcome.rows, "picture", "benchmark", "picture", "model"), "per_image")
        tracker.artifact(out / "run.json")
        for benchmark in facts["digests"]:
            rows = [row for row in outcome.rows if row["benchmark"] == benchmark]
            for picture in showcase(rows, "upsr", SHEETS)[1]:
                folder = out / "pictures" / benchmark / picture
                tracker.picture(f"sheets/{benchmark}/{picture}.png", sheet(folder))
                tracker.grid(f"{benchmark}/{picture}", read_rgb(folder / "upsr.png"))
                for path in sorted(p for p in folder.glob("*.png") if p.stem not in ("lr", *MODELS, "hr")):
                    tracker.picture(f"maps/{benchmark}/{picture}/{path.name}", read_rgb(path))
        registry.register(tracker, Path("models/unet", FILE), example)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_table(path: Path, rows: list[Row]) -> None:
    with atomic(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def named(rows: list[Row], column: str, *names: str) -> list[Row]:
    """The rows with several of their names in one first column, as `Set5/baby`, which the table views of MLflow and
    the plots of DVC line runs up by."""
    return [
        {column: "/".join(row[n] for n in names)} | {k: v for k, v in row.items() if k not in names} for row in rows
    ]


def _write(out: Path, outcome: Outcome, facts: dict[str, Any], benchmarks: list[Benchmark]) -> None:
    _write_table(out / "per_image.csv", outcome.rows)
    _write_table(out / "summary.csv", table(outcome.rows))
    upsr = [{k: v for k, v in row.items() if k != "model"} for row in outcome.rows if row["model"] == "upsr"]
    _write_table(out / "upsr.csv", named(upsr, "picture", "benchmark", "picture"))
    _write_json(out / "metrics.json", summary(outcome.rows))
    _write_json(out / "manifests.json", {b.name: b.manifest for b in benchmarks})
    _write_json(out / "run.json", facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("reports/evaluate"), help="folder for figures and pictures")
    parser.add_argument("--experiment", default="evaluate", help="MLflow experiment")
    options = parser.parse_args()
    params = load_params()
    benchmarks, missing = open_benchmarks(params.evaluate.benchmarks, params.scale)
    for reason in missing.values():
        print(f"benchmark absent: {reason}", flush=True)
    evaluation = EvaluationRun(
        models=MODELS,
        scale=params.scale,
        protocol=params.evaluate.protocol,
        metrics=params.evaluate.metrics,
        weights=Path("data/metric_weights"),
        seed=params.seed,
        tile=params.evaluate.tile,
        images=options.out / "pictures",
    )
    outcome = evaluate(evaluation, benchmarks, params.evaluate.workers, all_devices())
    facts = identity(params, benchmarks) | {"peak_memory_mb": peak_memory_mb()}
    facts |= {"failed": outcome.failed, "absent": outcome.absent, "absent_benchmarks": missing}
    _write(options.out, outcome, facts, benchmarks)
    _record(options.experiment, params, facts, outcome, options.out, benchmarks[0].pairs[0].lr)
    _print(outcome)
    if outcome.lost:
        raise DataError(f"{len(outcome.lost)} failed, listed in {options.out / 'run.json'}: {outcome.lost[0]}")


def _print(outcome: Outcome) -> None:
    means = pd.DataFrame(outcome.rows).drop(columns="picture").groupby(["benchmark", "model"], sort=False).mean()
    print(means.round(4).to_string())
    for name, reason in outcome.absent.items():
        print(f"metric {name} is absent: {reason}")
    for row in outcome.failed:
        print(f"{row['benchmark']}/{row['picture']}, {row['model']}: {row['reason']}")


if __name__ == "__main__":
    run(main)
