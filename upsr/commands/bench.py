"""`upsr bench`: how fast this machine cuts, packs, reads and degrades."""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from upsr.commands import new, open_device, positive

if TYPE_CHECKING:
    from upsr.commands import Commands


def add(commands: "Commands") -> None:
    be = new(commands, "bench", run, "measure how fast training data are made and read")
    be.add_argument("what", choices=["data", "degrade"], help="crop, pack and read; or degrade")
    be.add_argument("--pictures", type=positive, default=20, help="data: images of 2K, made from the samples")
    be.add_argument("--batch", type=positive, default=16, help="degrade: images of 256x256 at once")
    be.add_argument("--steps", type=positive, default=20, help="degrade: batches")
    be.add_argument("--device", help="degrade: cpu, cuda, ... (default: a GPU if there is one)")


def run(options: argparse.Namespace) -> None:
    """Prints figures; keeps nothing."""
    if options.what == "degrade":
        from upsr.bench.degrade import bench_degrade

        bench_degrade(options.batch, options.steps, open_device(options.device))
        return
    from upsr.bench.data import bench_data

    with tempfile.TemporaryDirectory(prefix="upsr-bench-") as folder:
        bench_data(Path(folder), options.pictures)
