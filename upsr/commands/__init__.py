"""The commands of `upsr`, one file each: `add` names the options, `run` does the work.

Their files import nothing heavy at the top, so that help and wrong options are answered at once.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def new(
    commands: "Commands", name: str, run: Callable[[argparse.Namespace], None], about: str
) -> argparse.ArgumentParser:
    """A command whose help is `about`, and shows every default."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    added = commands.add_parser(name, help=about, description=about, formatter_class=formatter)
    added.set_defaults(run=run)
    return added


def add_model_options(added: argparse.ArgumentParser, *, bicubic: bool = False) -> None:
    """The options of every command that runs a model."""
    known = ("`bicubic`, " if bicubic else "") + "bundled weights (starter, atd-48, atd-96, upsr-48)"
    about = f"{known}, a weights file, the folder that holds it, or MLflow's models:/NAME@ALIAS"
    added.add_argument("--model", default="starter", help=about)
    added.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    added.add_argument("--dtype", choices=["fp32", "bf16", "fp16"], default="fp32", help="precision of the networks")
    added.add_argument("--seed", type=int, default=0, help="same seed, same image")
    added.add_argument("--tile", type=positive, default=128, help="side of a tile in LR pixels; bounds the memory")


def extension(name: str) -> Callable[..., Any]:
    """What the training pipeline adds to the library: an entry point of the group `upsr.extensions` (pyproject.toml).

    It is the library's only door upwards. Raises `ValueError` where no checkout of the project is installed.
    """
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="upsr.extensions", name=name)
    try:
        return entry.load()
    except ModuleNotFoundError as error:
        if error.name != entry.module.partition(".")[0]:
            raise
        raise ValueError(
            f"`{name}` is part of the training pipeline: run it in a checkout of the project, with the extra "
            "`pipeline`: pip install -e '.[pipeline]'"
        ) from None


def missing(error: ModuleNotFoundError) -> str:
    """One line for a package that is not installed: the extra that brings it."""
    from importlib.metadata import requires

    module = str(error.name).partition(".")[0]
    for line in requires("upsr") or []:
        found = re.fullmatch(r"([\w.-]+).*extra == ['\"](\w+)['\"]", line)
        if found and found[1].replace("-", "_").partition(".")[0] == module:
            return f"this needs the package {found[1]}: install the extra `{found[2]}`: pip install 'upsr[{found[2]}]'"
    return f"this needs the package {module}: pip install {module}"


def model_file(model: str) -> Path:
    """The weights file of a model. Raises `ValueError` for an address of MLflow's that it does not know."""
    if model.startswith(("models:/", "runs:/")):
        return extension("weights_of")(model)
    from upsr.pretrained import weights_file

    return weights_file(model)


def open_device(name: str | None) -> str:
    """The device asked for, or the best there is, and this process made ready to run networks on it.

    Raises `ValueError` where it cannot be used.
    """
    import torch

    from upsr.allocator import keep_freed_memory

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        raise ValueError(f"--device {name}: cannot be used here: try cpu") from None
    if name == "cpu":
        keep_freed_memory()
    return name


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number
