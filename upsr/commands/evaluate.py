"""`upsr evaluate`: one model on one benchmark folder."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from upsr.commands import add_model_options, model_file, new, open_device, positive

if TYPE_CHECKING:
    from upsr.commands import Commands
    from upsr.data.benchmarks import Benchmark
    from upsr.evaluation.measure import Precomputed
    from upsr.evaluation.runs import Outcome

TILE = 128  # for `auto`: figures may not depend on the memory of the machine
FOLDER = "folder:"  # start of a `--model` that is a folder of images


def add(commands: "Commands") -> None:
    command = new(
        commands, "evaluate", run, "measure a model on a benchmark: a folder with HR/ and LRx4/, or with LR images only"
    )
    add_model_options(command, baselines=f"`bicubic`, {FOLDER}DIR (images that another program made), ")
    command.set_defaults(dtype="fp32")  # figures may not depend on the machine
    command.add_argument("--benchmark", required=True, help="benchmark folder")
    command.add_argument(
        "--protocol",
        choices=["basicsr", "upsr"],
        default="basicsr",
        help="convention of PSNR and SSIM: border of `scale` pixels left out (basicsr), or none (upsr)",
    )
    command.add_argument("--metrics", nargs="*", default=["lpips"], help="pyiqa metrics besides PSNR and SSIM")
    command.add_argument("--weights", type=Path, default="data/metric_weights", help="folder of the metric weights")
    command.add_argument(
        "--scale", type=int, default=4, help=f"scale of `bicubic` and {FOLDER}DIR; other models define theirs"
    )
    command.add_argument("--steps", type=positive, help="number of sampling steps (default: all)")
    command.add_argument(
        "--workers",
        type=positive,
        default=1,
        help="number of processes, spread over the GPUs; does not change the figures",
    )
    command.add_argument("--json", type=Path, help="write statistics, rows and the benchmark manifest to this file")


def run(options: argparse.Namespace) -> None:
    """Measures every image; one that fails is named and skipped.

    Raises `ImageError` at the end if any failed, and `ValueError` for `--steps` that the model does not have.
    """
    import torch

    from upsr.data.benchmarks import open_benchmark
    from upsr.evaluation.runs import EvaluationRun, evaluate
    from upsr.evaluation.spread import all_devices
    from upsr.evaluation.statistics import table
    from upsr.images import ImageError
    from upsr.pretrained import load_pretrained

    # model and benchmark
    model = _model(options.model)
    if options.steps and not isinstance(model, Path):
        raise ValueError(f"sampling steps: {options.steps}, but {options.model} does not sample: leave them out")
    scale = load_pretrained(model).scale if isinstance(model, Path) else options.scale
    benchmark = open_benchmark(options.benchmark, scale)
    evaluation = EvaluationRun(
        models={_name(options): model},
        scale=scale,
        protocol=options.protocol,
        metrics=tuple(options.metrics),
        weights=options.weights,
        seeds=(options.seed,),
        tile=options.tile or TILE,
        images=None,
        dtype=options.dtype,
        steps=options.steps or 0,
    )
    # figures
    first = open_device(options.device)
    outcome = evaluate(
        evaluation, [benchmark], options.workers, [torch.device(first)] if options.device else all_devices()
    )
    report(options, benchmark, outcome, {row["metric"]: row for row in table(outcome.rows)})
    if outcome.lost:
        raise ImageError(f"{len(outcome.lost)} of {len(benchmark.pairs)} images failed")


def _model(name: str) -> "Path | Precomputed | None":
    """A weights file, the images in a folder, or None for bicubic. Raises `DataError` where two have one name."""
    from upsr import images
    from upsr.evaluation.measure import Precomputed
    from upsr.files import by_stem

    if name == "bicubic":
        return None
    if name.startswith(FOLDER):
        folder = Path(name.removeprefix(FOLDER))
        return Precomputed(folder, by_stem(images.find(folder)))
    return model_file(name)


def _name(options: argparse.Namespace) -> str:
    """The model's name in the results. A chain that was shortened is another model."""
    return f"{options.model} --steps {options.steps}" if options.steps else options.model


def report(
    options: argparse.Namespace, benchmark: "Benchmark", outcome: "Outcome", statistics: dict[str, dict]
) -> None:
    """Prints the figures, and writes them to `--json`."""
    from upsr.evaluation.protocol import PROTOCOLS
    from upsr.files import atomic

    # terminal
    print(f"{benchmark.name}  {len(outcome.rows)} of {len(benchmark.pairs)} images  {benchmark.lr}")
    for name, row in statistics.items():
        spread = f"  ± {row['std']:.4f}  [{row['low']:.4f}, {row['high']:.4f}]" if row["std"] is not None else ""
        print(f"{name:>10} {row['mean']:10.4f}{spread}")
    for name, reason in outcome.absent.items():
        print(f"{name} is absent: {reason}")
    for row in outcome.failed:
        print(f"{row['picture']}: {row['reason']}")
    # file
    if options.json:
        result = {
            "benchmark": benchmark.manifest,
            "model": _name(options),
            "pictures": len(outcome.rows),
            "protocol": asdict(PROTOCOLS[options.protocol]),
            "steps": options.steps,
            "seed": options.seed,
            "tile": options.tile or TILE,
            "dtype": options.dtype,
            "mean": {name: row["mean"] for name, row in statistics.items()},
            "statistics": statistics,
            "absent": outcome.absent,
            "failed": outcome.failed,
            "rows": outcome.rows,
        }
        with atomic(options.json) as temporary:
            temporary.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
