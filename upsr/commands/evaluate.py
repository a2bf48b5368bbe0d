"""`upsr evaluate`: one model on one benchmark folder."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from upsr.commands import add_model_options, device, model_file, new, positive
from upsr.images import ImageError, atomic

if TYPE_CHECKING:
    from pipelines.contest import Outcome
    from upsr.commands import Commands
    from upsr.data.benchmarks import Benchmark


def add(commands: "Commands") -> None:
    ev = new(commands, "evaluate", run, "measure a model on a folder with HR/ and LRx4/, or with LR pictures alone")
    add_model_options(ev)
    ev.add_argument(
        "--model",
        default="starter",
        help="`bicubic`, `starter`, a weights file, the folder that holds it, or MLflow's models:/NAME@ALIAS",
    )
    ev.add_argument("--benchmark", required=True, help="the folder")
    ev.add_argument("--protocol", choices=["basicsr", "upsr"], default="basicsr", help="what PSNR and SSIM see")
    ev.add_argument("--metrics", nargs="*", default=["lpips"], help="names of pyiqa beside PSNR and SSIM")
    ev.add_argument("--weights", type=Path, default="data/metric_weights", help="where the metrics' weights are")
    ev.add_argument("--scale", type=int, default=4, help="for `bicubic`, which has none of its own")
    ev.add_argument("--workers", type=positive, default=1, help="processes, on the GPUs in turn; any gives the same")
    ev.add_argument("--json", type=Path, help="write statistics, rows and the benchmark's manifest to this file")


def run(options: argparse.Namespace) -> None:
    """One model on one benchmark folder. A picture that fails is named, the others go on, the exit code tells."""
    import torch

    from pipelines.contest import Contest, hold
    from upsr.checkpoint import load_weights
    from upsr.data.benchmarks import open_benchmark
    from upsr.evaluation.spread import devices

    path = None if options.model == "bicubic" else model_file(options.model)
    scale = load_weights(path)[1]["scale"] if path else options.scale
    benchmark = open_benchmark(options.benchmark, scale)
    contest = Contest(
        models={options.model: path},
        scale=scale,
        protocol=options.protocol,
        metrics=tuple(options.metrics),
        weights=options.weights,
        seed=options.seed,
        tile=options.tile,
        pictures=None,
        dtype=options.dtype,
    )
    places = [torch.device(device(options.device))] if options.device else devices()
    outcome = hold(contest, [benchmark], options.workers, places)
    report(options, benchmark, outcome)
    if outcome.lost:
        raise ImageError(f"{len(outcome.lost)} of {len(benchmark.pairs)} pictures failed")


def report(options: argparse.Namespace, benchmark: "Benchmark", outcome: "Outcome") -> None:
    """What was measured, to the terminal and to `--json`."""
    from upsr.evaluation.protocol import PROTOCOLS
    from upsr.evaluation.statistics import table

    statistics = {row["metric"]: row for row in table(outcome.rows)}
    print(f"{benchmark.name}  {len(outcome.rows)} of {len(benchmark.pairs)} pictures  {benchmark.lr}")
    for name, row in statistics.items():
        spread = f"  ± {row['std']:.4f}  [{row['low']:.4f}, {row['high']:.4f}]" if row["std"] is not None else ""
        print(f"{name:>10} {row['mean']:10.4f}{spread}")
    for name, reason in outcome.absent.items():
        print(f"{name} is absent: {reason}")
    for row in outcome.failed:
        print(f"{row['picture']}: {row['reason']}")
    if options.json:
        result = {
            "benchmark": benchmark.manifest,
            "model": options.model,
            "pictures": len(outcome.rows),
            "protocol": asdict(PROTOCOLS[options.protocol]),
            "seed": options.seed,
            "tile": options.tile,
            "dtype": options.dtype,
            "mean": {name: row["mean"] for name, row in statistics.items()},
            "statistics": statistics,
            "absent": outcome.absent,
            "failed": outcome.failed,
            "rows": outcome.rows,
        }
        with atomic(options.json) as temporary:
            temporary.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
