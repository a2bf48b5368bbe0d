"""The commands of `upsr`, one file each: `add` names the options, `run` does the work."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def new(
    commands: "Commands", name: str, run: Callable[[argparse.Namespace], None], about: str
) -> argparse.ArgumentParser:
    """A command whose help is `about`, and tells every default."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    added = commands.add_parser(name, help=about, description=about, formatter_class=formatter)
    added.set_defaults(run=run)
    return added


def add_model_options(added: argparse.ArgumentParser) -> None:
    """What every command that runs a model asks."""
    added.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    added.add_argument("--dtype", choices=["fp32", "bf16", "fp16"], default="fp32", help="precision of the networks")
    added.add_argument("--seed", type=int, default=0, help="same seed, same picture")
    added.add_argument("--tile", type=positive, default=128, help="side of a tile in LR pixels; bounds the memory")


def model_file(model: str) -> Path:
    """The weights file of a place, or of MLflow's URI. Raises `ValueError` where MLflow has none."""
    if model.startswith(("models:/", "runs:/")):
        from pipelines.tracking import weights_of

        return weights_of(model)
    from upsr.checkpoint import weights_file

    return weights_file(model)


def device(name: str | None) -> str:
    """The device asked for, or the best there is. Raises `ValueError` where it cannot be used."""
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        raise ValueError(f"--device {name}: cannot be used here: try cpu") from None
    return name


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number
