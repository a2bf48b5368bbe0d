"""`upsr import-official`: converts the authors' checkpoints to a weights file of this project."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from upsr.commands import new

if TYPE_CHECKING:
    from upsr.commands import Commands


def add(commands: "Commands") -> None:
    command = new(
        commands, "import-official", run, "convert the authors' checkpoints to a model, executing no code in them"
    )
    command.add_argument("--atd", type=Path, required=True, help="path of the authors' `atd_real.pth`")
    command.add_argument("--unet", type=Path, help="path of the authors' `upsr.pth`; omit it to convert ATD alone")
    command.add_argument("-o", "--output", type=Path, required=True, help="model folder to write")
    command.add_argument(
        "--category-size", type=int, default=128, help="`category_size` of ATD, which its checkpoint does not contain"
    )


def run(options: argparse.Namespace) -> None:
    """Writes the weights file. Raises `CheckpointError` for a file that is not the authors'."""
    from upsr.official import convert
    from upsr.pretrained import FILE, save_pretrained

    parts, settings = convert(options.atd, options.unet, options.category_size)
    path = options.output / FILE
    save_pretrained(path, parts, settings)
    print(f"{path}: {' and '.join(name for name in ('atd', 'unet') if name in settings)}, x{settings['scale']}")
