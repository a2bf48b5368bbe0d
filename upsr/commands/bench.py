"""`upsr bench`: speed of upscaling, of training and of its data, and whether a denoiser uses what it is given."""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from upsr.commands import model_file, new, open_device, positive

if TYPE_CHECKING:
    from upsr.commands import Commands
    from upsr.config import Params


def add(commands: "Commands") -> None:
    command = new(
        commands,
        "bench",
        run,
        "measure how fast a model upscales or trains, how fast training data is prepared, or how a model denoises",
    )
    command.add_argument(
        "what",
        choices=["inference", "sample", "train", "data", "degrade", "chain"],
        help="inference: upscale in each precision; sample: untrained networks of params.yaml, in batches; train: "
        "steps of both trainings by params.yaml and by other settings; data: crop, pack and read images; "
        "degrade: make LR batches; chain: quality of x̂0 at every timestep",
    )
    command.add_argument(
        "--pictures",
        type=positive,
        default=20,
        help="data: number of 2K images, made from the sample photographs; chain: number of images",
    )
    command.add_argument("--batch", type=positive, default=16, help="degrade: images of 256x256 per batch")
    command.add_argument("--steps", type=positive, default=20, help="degrade: number of batches")
    command.add_argument(
        "--scale", help="sample, train: name of a file in scales/ whose settings are used, such as df2k"
    )
    command.add_argument("--params", type=Path, default=Path("params.yaml"), help="sample, train: settings file")
    command.add_argument(
        "--compile", action="store_true", help="sample, train: also torch.compile, which takes minutes"
    )
    command.add_argument("--model", default="starter", help="inference, chain: as for `upsr upscale`")
    command.add_argument("--benchmark", default="data/benchmarks/holdout", help="chain: benchmark folder with HR")
    command.add_argument(
        "--side",
        type=positive,
        default=64,
        help="inference, sample, chain: side of the image, or of its centre, in LR pixels",
    )
    command.add_argument("--seed", type=int, default=0, help="chain: seed of the noise")
    command.add_argument("--weights", type=Path, default="data/metric_weights", help="chain: folder of LPIPS's weights")
    command.add_argument("-o", "--output", type=Path, help="chain: write a plot to this PNG file")
    command.add_argument(
        "--device",
        help="inference, sample, train, degrade, chain: cpu, cuda, ... (default: a GPU if available, else cpu)",
    )


def run(options: argparse.Namespace) -> None:
    """Prints the figures; leaves no files but the plot of `chain`."""
    what = {
        "inference": _inference,
        "sample": _sample,
        "train": _train,
        "data": _data,
        "degrade": _degrade,
        "chain": _chain,
    }
    what[options.what](options)


def _inference(options: argparse.Namespace) -> None:
    from upsr.bench.inference import bench_inference

    bench_inference(model_file(options.model), options.side, open_device(options.device))


def _params(options: argparse.Namespace) -> "Params":
    from upsr.commands.scale import load_at
    from upsr.config import load_params

    return load_at(options.scale, options.params) if options.scale else load_params(options.params)


def _sample(options: argparse.Namespace) -> None:
    from upsr.bench.sample import bench_sample

    bench_sample(_params(options), options.side, open_device(options.device), options.compile)


def _train(options: argparse.Namespace) -> None:
    from upsr.bench.train import bench_train

    params = _params(options)
    with tempfile.TemporaryDirectory(prefix="upsr-bench-") as folder:
        bench_train(params, open_device(options.device), Path(folder), options.compile)


def _data(options: argparse.Namespace) -> None:
    from upsr.bench.data import bench_data

    with tempfile.TemporaryDirectory(prefix="upsr-bench-") as folder:
        bench_data(Path(folder), options.pictures)


def _degrade(options: argparse.Namespace) -> None:
    from upsr.bench.degrade import bench_degrade

    bench_degrade(options.batch, options.steps, open_device(options.device))


def _chain(options: argparse.Namespace) -> None:
    import torch

    from upsr.bench.chain import measure_chain, plot, report
    from upsr.config import Diffusion
    from upsr.data.benchmarks import open_benchmark
    from upsr.evaluation.metrics import Metrics
    from upsr.evaluation.protocol import PROTOCOLS
    from upsr.inference.upscaler import Upscaler
    from upsr.pretrained import load_pretrained

    device = open_device(options.device)
    file = load_pretrained(model_file(options.model))
    steps = file.section("diffusion", Diffusion).steps if "unet" in file.parts else 0  # all, however many it samples in
    upscaler = Upscaler.from_pretrained(file, device=device, steps=steps)
    metrics = Metrics(["lpips"], options.weights, PROTOCOLS["basicsr"], upscaler.scale, torch.device(device))
    if metrics.absent:
        raise ValueError(f"bench chain: lpips is absent: {metrics.absent['lpips']}")
    pairs = open_benchmark(options.benchmark, upscaler.scale).pairs[: options.pictures]
    chain = measure_chain(upscaler, pairs, metrics, side=options.side, seed=options.seed)
    print(report(chain))
    if options.output:
        plot(chain, options.output)
