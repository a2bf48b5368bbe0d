"""`upsr bench`: how fast this machine prepares and reads training data."""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from upsr.commands import new, open_device, positive

if TYPE_CHECKING:
    from upsr.commands import Commands


def add(commands: "Commands") -> None:
    command = new(commands, "bench", run, "measure how fast training data is prepared and read")
    command.add_argument(
        "what", choices=["data", "degrade"], help="data: crop, pack and read images; degrade: make LR batches"
    )
    command.add_argument(
        "--pictures", type=positive, default=20, help="data: number of 2K images, made from the sample photographs"
    )
    command.add_argument("--batch", type=positive, default=16, help="degrade: images of 256x256 per batch")
    command.add_argument("--steps", type=positive, default=20, help="degrade: number of batches")
    command.add_argument("--device", help="degrade: cpu, cuda, ... (default: a GPU if available, else cpu)")


def run(options: argparse.Namespace) -> None:
    """Prints the figures; leaves no files."""
    if options.what == "degrade":
        from upsr.bench.degrade import bench_degrade

        bench_degrade(options.batch, options.steps, open_device(options.device))
        return
    from upsr.bench.data import bench_data

    with tempfile.TemporaryDirectory(prefix="upsr-bench-") as folder:
        bench_data(Path(folder), options.pictures)
