"""`upsr export`: writes the networks of a model in a format of other programs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from upsr.commands import model_file, new

if TYPE_CHECKING:
    from upsr.commands import Commands


def add(commands: "Commands") -> None:
    command = new(commands, "export", run, "write the networks of a model as ONNX files, which other programs can run")
    command.add_argument("--model", default="starter", help="as for `upsr upscale`")
    command.add_argument(
        "--onnx", type=Path, required=True, metavar="DIR", help="new folder for atd.onnx and, for UPSR, unet.onnx"
    )
    command.add_argument("--network", choices=["atd", "unet"], help="write this network alone (default: all)")


def run(options: argparse.Namespace) -> None:
    """Writes the files and prints how far each is from torch. Raises as `export_onnx` and `load_pretrained` do."""
    from upsr.onnx import export_onnx
    from upsr.pretrained import load_pretrained

    networks = [options.network] if options.network else []
    for path, difference in export_onnx(load_pretrained(model_file(options.model)), options.onnx, networks).items():
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, differs from torch by {difference:.1g} at most")
