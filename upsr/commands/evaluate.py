"""`upsr evaluate`: one model on one benchmark folder."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from upsr.commands import MODEL, add_model_options, device, new
from upsr.images import ImageError, atomic

if TYPE_CHECKING:
    from upsr.commands import Commands


def add(commands: "Commands") -> None:
    ev = new(commands, "evaluate", run, "measure a model on a folder with HR/ and LRx4/")
    add_model_options(ev)
    ev.add_argument("--model", default=MODEL, help="`bicubic`, a weights file or the folder that holds it")
    ev.add_argument("--benchmark", required=True, help="the folder")
    ev.add_argument("--protocol", choices=["basicsr", "upsr"], default="basicsr", help="what PSNR and SSIM see")
    ev.add_argument("--metrics", nargs="*", default=["lpips"], help="names of pyiqa beside PSNR and SSIM")
    ev.add_argument("--weights", default="data/metric_weights", help="where the metrics' weights are")
    ev.add_argument("--scale", type=int, default=4, help="for `bicubic`, which has none of its own")
    ev.add_argument("--json", type=Path, help="write means and rows to this file")


def run(options: argparse.Namespace) -> None:
    """One model on one benchmark folder."""
    import torch

    from upsr.data.benchmarks import open_benchmark
    from upsr.evaluation.benchmark import bicubic, summary
    from upsr.evaluation.benchmark import evaluate as measure
    from upsr.evaluation.metrics import Metrics
    from upsr.evaluation.protocol import PROTOCOLS
    from upsr.inference.upscaler import Upscaler

    place = torch.device(device(options.device))
    protocol = PROTOCOLS[options.protocol]
    if options.model == "bicubic":
        benchmark = open_benchmark(options.benchmark, options.scale)
        enlarge = lambda lr, _: bicubic(lr, options.scale)  # noqa: E731
    else:
        model = Upscaler.from_pretrained(options.model, device=str(place))
        benchmark = open_benchmark(options.benchmark, model.scale)
        enlarge = lambda lr, n: model.upscale(lr, seed=options.seed + n, tile=options.tile).picture  # noqa: E731
    metrics = Metrics(options.metrics, Path(options.weights), protocol, benchmark.scale, place)
    rows, failed = measure(enlarge, benchmark, metrics)
    means = summary({"model": options.model} | row for row in rows).get(benchmark.name, {}).get(options.model, {})
    result = {
        "benchmark": benchmark.name,
        "model": options.model,
        "pictures": len(rows),
        "mean": means,
        "protocol": asdict(protocol),
        "seed": options.seed,
        "tile": options.tile,
        "digest": benchmark.digest,
        "absent": metrics.absent,
        "failed": failed,
        "rows": rows,
    }
    print(f"{benchmark.name}  {len(rows)} pictures  " + "  ".join(f"{k} {v:.4f}" for k, v in means.items()))
    for name, reason in metrics.absent.items():
        print(f"{name} is absent: {reason}")
    if options.json:
        with atomic(options.json) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")
    if failed:
        raise ImageError(f"{len(failed)} measurements failed: {failed[0]['picture']}: {failed[0]['reason']}")
