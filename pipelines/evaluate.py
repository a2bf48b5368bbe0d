"""Stage `evaluate`: bicubic, ATD and UPSR on every benchmark, measured by one protocol; one MLflow run."""

import argparse
import json
import resource
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pipelines import registry, tracking
from pipelines.stage import run
from upsr.checkpoint import load_weights
from upsr.config import Params, load_params
from upsr.data import DataError
from upsr.data.benchmarks import Benchmark, open_benchmark
from upsr.evaluation.benchmark import Row, bicubic, evaluate, summary
from upsr.evaluation.metrics import Metrics
from upsr.evaluation.protocol import PROTOCOLS
from upsr.images import ImageError, atomic, read_rgb, to_image, write
from upsr.inference import maps
from upsr.inference.upscaler import Upscaled, Upscaler

MODELS = {"bicubic": None, "atd": Path("models/atd"), "upsr": Path("models/unet")}
SAMPLE_STEPS = 10_000  # fewer steps than this make a demonstration, not a model
NOTE = (
    "Trained at sample scale, for minutes. These networks show that the chain works; "
    "their figures and pictures say nothing yet about the method."
)


class Contestant:
    """One of the models compared: upscales a picture and leaves what it made, and its maps, in a folder."""

    def __init__(self, name: str, folder: Path | None, params: Params, device: torch.device) -> None:
        self.name, self.params = name, params
        self.model = None if folder is None else Upscaler.from_pretrained(folder, device=str(device))
        self.latest: Upscaled | None = None

    def upscale(self, lr: Tensor, number: int) -> Tensor:
        if self.model is None:
            return bicubic(lr, self.params.scale)
        self.latest = self.model.upscale(lr, seed=self.params.seed + number, tile=self.params.evaluate.tile)
        return self.latest.picture

    def keep(self, folder: Path, lr: Tensor, sr: Tensor, hr: Tensor | None) -> None:
        pictures = {"lr": lr, self.name: sr, "hr": hr}
        for name, x in pictures.items():
            if x is not None:
                write(folder / f"{name}.png", to_image(x))
        if self.latest is not None and self.model is not None and self.model.diffuser is not None:
            for name, picture in maps.pictures(self.latest).items():
                write(folder / f"{name}.png", picture)


def open_benchmarks(names: tuple[str, ...], scale: int) -> tuple[list[Benchmark], dict[str, str]]:
    """The benchmarks at hand, and by name why others are absent. A plain name lies below data/benchmarks."""
    found, absent = [], {}
    for name in names:
        try:
            found.append(open_benchmark(Path(name) if "/" in name else Path("data/benchmarks") / name, scale))
        except (DataError, ImageError) as error:
            absent[name] = str(error)
            print(f"benchmark {name} is absent: {error}", flush=True)
    if not found:
        raise DataError(f"evaluate.benchmarks: none of {', '.join(names)} is at hand: {'; '.join(absent.values())}")
    return found, absent


def measure(
    contestants: list[Contestant], benchmarks: list[Benchmark], metrics: Metrics, pictures: Path
) -> tuple[list[Row], list[Row]]:
    """Every contestant on every benchmark: rows and failures, each with its `model`."""
    rows: list[Row] = []
    failed: list[Row] = []
    for benchmark in benchmarks:
        for contestant in contestants:

            def keep(name: str, lr: Tensor, sr: Tensor, hr: Tensor | None, c: Contestant = contestant) -> None:
                c.keep(pictures / benchmark.name / name, lr, sr, hr)  # noqa: B023 (called at once)

            done, lost = evaluate(contestant.upscale, benchmark, metrics, keep)
            rows += [{"benchmark": benchmark.name, "model": contestant.name} | row for row in done]
            failed += [row | {"model": contestant.name} for row in lost]
            print(f"{benchmark.name}: {contestant.name} on {len(done)} pictures, {len(lost)} failed", flush=True)
    return rows, failed


def identity(params: Params, metrics: Metrics, benchmarks: list[Benchmark], device: torch.device) -> dict[str, Any]:
    """What the figures depend on, kept beside them."""
    trained = {"atd": params.train_atd.steps, "unet": params.train_unet.steps}
    models = {name: _describe(Path("models") / name) | {"steps": steps} for name, steps in trained.items()}
    facts = {
        "protocol": params.evaluate.protocol,
        "seed": params.seed,
        "tile": params.evaluate.tile,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "git_commit": tracking.git_commit(),
        "uncertainty": params.uncertainty.variant,
        "digests": {b.name: b.digest for b in benchmarks},
        "absent": metrics.absent,
        "models": models,
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    return facts | ({"note": NOTE} if min(trained.values()) < SAMPLE_STEPS else {})


def _describe(folder: Path) -> dict[str, Any]:
    weights, settings = load_weights(folder / "weights.safetensors")
    own = [v for k, v in weights.items() if k.startswith(f"{folder.name}.") and v.is_floating_point()]
    return {"dim": settings[folder.name]["dim"], "parameters": sum(v.numel() for v in own)}


def figures(means: dict[str, dict[str, dict[str, float]]]) -> dict[str, float]:
    """Names that line MLflow's runs up: `Set5/psnr` is UPSR's, `Set5/psnr_atd` and `Set5/psnr_bicubic` the others'."""
    return {
        f"{benchmark}/{metric}" + ("" if model == "upsr" else f"_{model}"): value
        for benchmark, models in means.items()
        for model, values in models.items()
        for metric, value in values.items()
    }


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("reports/evaluate"), help="folder for figures and pictures")
    parser.add_argument("--experiment", default="evaluate", help="MLflow experiment")
    options = parser.parse_args()
    params = load_params()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    benchmarks, missing = open_benchmarks(params.evaluate.benchmarks, params.scale)
    protocol = PROTOCOLS[params.evaluate.protocol]
    metrics = Metrics(params.evaluate.metrics, Path("data/metric_weights"), protocol, params.scale, device)
    contestants = [Contestant(name, folder, params, device) for name, folder in MODELS.items()]

    rows, failed = measure(contestants, benchmarks, metrics, options.out / "pictures")
    if not rows:
        raise DataError(f"no picture could be evaluated; the first: {failed[0]}")
    means = summary(rows)
    facts = identity(params, metrics, benchmarks, device) | {"failed": failed, "absent_benchmarks": missing}
    table = pd.DataFrame(rows)
    with atomic(options.out / "per_image.csv") as temporary:
        table.to_csv(temporary, index=False)
    _write_json(options.out / "metrics.json", means)
    _write_json(options.out / "run.json", facts)

    tags = {"uncertainty.variant": params.uncertainty.variant} | {f"data.{n}": d for n, d in facts["digests"].items()}
    name = f"{params.uncertainty.variant}-{facts['models']['unet']['dim']}"
    with tracking.start(options.experiment, name, params.model_dump(mode="json"), tags) as tracker:
        tracker.metrics(figures(means))
        tracker.table(rows, "per_image")
        tracker.artifact(options.out / "run.json")
        for path in sorted((options.out / "pictures").glob("*/*/*.png")):
            tracker.picture(str(path.relative_to(options.out)), read_rgb(path))
        registry.register(tracker, Path("models/unet/weights.safetensors"), benchmarks[0].pairs[0].lr)
    print(table.drop(columns="picture").groupby(["benchmark", "model"], sort=False).mean().round(4).to_string())
    if failed:
        raise DataError(f"{len(failed)} measurements failed, listed in {options.out / 'run.json'}: {failed[0]}")


if __name__ == "__main__":
    run(main)
