"""`upsr import-official`: the authors' checkpoints as one weights file of ours."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from upsr.commands import new

if TYPE_CHECKING:
    from upsr.commands import Commands


def add(commands: "Commands") -> None:
    im = new(commands, "import-official", run, "make a model of the authors' checkpoints; nothing in them is run")
    im.add_argument("--atd", type=Path, required=True, help="their `atd_real.pth`")
    im.add_argument("--unet", type=Path, help="their `upsr.pth` (without it: a model of ATD alone)")
    im.add_argument("-o", "--output", type=Path, required=True, help="the model's folder")
    im.add_argument("--category-size", type=int, default=128, help="ATD's, which its file does not tell")


def run(options: argparse.Namespace) -> None:
    """The authors' checkpoints as one weights file of ours."""
    from upsr.official import convert
    from upsr.pretrained import FILE, save_pretrained

    parts, settings = convert(options.atd, options.unet, options.category_size)
    path = options.output / FILE
    save_pretrained(path, parts, settings)
    print(f"{path}: {' and '.join(name for name in ('atd', 'unet') if name in settings)}, x{settings['scale']}")
