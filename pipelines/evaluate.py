"""Stage `evaluate`: measures bicubic, ATD and UPSR on every benchmark with one protocol, and records one MLflow run."""

import argparse
import json
import os
import resource
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pipelines import tracking
from pipelines.evaluate_runs import MODELS, named, record
from pipelines.stage import run
from upsr.allocator import keep_freed_memory
from upsr.config import Params, load_params
from upsr.data.benchmarks import Benchmark, open_benchmarks
from upsr.evaluation.metrics import Row
from upsr.evaluation.runs import EvaluationRun, Outcome, evaluate
from upsr.evaluation.spread import all_devices
from upsr.evaluation.statistics import headline, table
from upsr.files import DataError, atomic, remove_temporary, sha256
from upsr.pretrained import FILE, load_pretrained

SAMPLE_STEPS = 10_000  # below this a training is a demonstration, and the report says so
NOTE = (
    "Trained at sample scale, for minutes. These networks show that the training pipeline works; "
    "their figures and images say nothing about the method."
)
PACKAGES = ("torch", "pyiqa", "numpy", "opencv-python-headless")


def identity(params: Params, benchmarks: list[Benchmark]) -> dict[str, Any]:
    """The contents of run.json: everything that the figures depend on."""
    trained = {"atd": params.train_atd.steps, "unet": params.train_unet.steps}
    models = {name: _describe(Path("models") / name) | {"steps": steps} for name, steps in trained.items()}
    facts = {
        "date": datetime.now().astimezone().isoformat(" ", "minutes"),
        "protocol": params.evaluate.protocol,
        "seeds": list(params.evaluate.seeds),
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
    """Width, parameter count and digest of the network in models/NAME, stored as the part NAME of its weights file."""
    path = folder / FILE
    model = load_pretrained(path)
    parameters = sum(v.numel() for v in model.parts[folder.name].values() if v.is_floating_point())
    return {"dim": model.settings[folder.name]["dim"], "parameters": parameters, "sha256": sha256(path)}


def peak_memory_mb() -> int:
    """Peak resident memory of the largest process, in MB."""
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return round(max(peaks) / 1024)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_table(path: Path, rows: list[Row]) -> None:
    with atomic(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def _write(out: Path, outcome: Outcome, facts: dict[str, Any], benchmarks: list[Benchmark]) -> None:
    _write_table(out / "per_image.csv", outcome.rows)
    _write_table(out / "summary.csv", table(outcome.rows))
    upsr = [{k: v for k, v in row.items() if k != "model"} for row in outcome.rows if row["model"] == "upsr"]
    _write_table(out / "upsr.csv", named(upsr, "picture", "benchmark", "picture"))
    _write_json(out / "metrics.json", headline(outcome.rows, "upsr"))  # DVC makes a column of each
    _write_json(out / "manifests.json", {b.name: b.manifest for b in benchmarks})
    _write_json(out / "run.json", facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("reports/evaluate"), help="folder for figures and images")
    parser.add_argument("--experiment", default="evaluate", help="MLflow experiment")
    options = parser.parse_args()
    params = load_params()
    remove_temporary(options.out)
    # benchmarks
    benchmarks, missing = open_benchmarks(params.evaluate.benchmarks, params.scale)
    for reason in missing.values():
        print(f"benchmark skipped: {reason}", flush=True)
    # evaluation
    evaluation = EvaluationRun(
        models=MODELS,
        scale=params.scale,
        protocol=params.evaluate.protocol,
        metrics=params.evaluate.metrics,
        weights=Path("data/metric_weights"),
        seeds=params.evaluate.seeds,
        tile=params.evaluate.tile,
        images=options.out / "pictures",
    )
    devices = all_devices()
    if devices[0].type == "cpu":
        keep_freed_memory()
    outcome = evaluate(evaluation, benchmarks, params.evaluate.workers, devices)
    # results
    facts = identity(params, benchmarks) | {"peak_memory_mb": peak_memory_mb()}
    facts |= {"failed": outcome.failed, "absent": outcome.absent, "absent_benchmarks": missing}
    _write(options.out, outcome, facts, benchmarks)
    address = record(options.experiment, params, facts, outcome, options.out, benchmarks)
    _write_json(options.out / "run.json", facts | {"mlflow_run": address})
    _print(outcome)
    if outcome.lost:
        raise DataError(
            f"{_failure(outcome.lost[0])} ({len(outcome.lost)} failed, listed in {options.out / 'run.json'})"
        )


def _print(outcome: Outcome) -> None:
    means = pd.DataFrame(outcome.rows).drop(columns="picture").groupby(["benchmark", "model"], sort=False).mean()
    print(means.round(4).to_string())
    for name, reason in outcome.absent.items():
        print(f"metric {name} was not measured: {reason}")
    for row in outcome.failed:
        print(_failure(row))


def _failure(row: Row) -> str:
    return f"{row['benchmark']}/{row['picture']}, {row['model']}: {row['reason']}"


if __name__ == "__main__":
    run(main)
