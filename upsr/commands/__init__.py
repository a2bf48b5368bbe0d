"""The commands of `upsr`, one file each: `add` defines the options, `run` executes the command.

Heavy imports stay inside functions, so that `--help` and wrong options are answered at once.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows every default but None and False, which say nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def new(
    commands: "Commands", name: str, run: Callable[[argparse.Namespace], None], about: str
) -> argparse.ArgumentParser:
    """Adds a command whose help text is `about`."""
    command = commands.add_parser(
        name, help=about, description=f"{about[0].upper()}{about[1:]}.", formatter_class=Formatter
    )
    command.set_defaults(run=run)
    return command


def add_model_options(command: argparse.ArgumentParser, *, baselines: str = "") -> None:
    """Adds the options of every command that runs a model; `baselines` are models that only this command knows."""
    known = f"{baselines}bundled weights (starter, light, atd-48, atd-48-light, upsr-48, upsr-48-light)"
    about = f"{known}, a weights file, a model folder, or an MLflow model models:/NAME@ALIAS"
    command.add_argument("--model", default="starter", help=about)
    command.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if available, else cpu)")
    command.add_argument(
        "--dtype",
        choices=["auto", "fp32", "bf16", "fp16"],
        default="auto",
        help="precision of the networks; auto: fp32, but bf16 for the UNet where the hardware has it",
    )
    command.add_argument(
        "--seed", type=natural, default=0, help="seed of the noise; the same seed gives the same image"
    )
    command.add_argument(
        "--tile", type=tile, default="auto", help="side of a tile in LR pixels, 16 or more; auto: as memory allows"
    )


def extension(name: str) -> Callable[..., Any]:
    """Loads a function of the training pipeline: an entry point of the group `upsr.extensions` (pyproject.toml).

    Only this function lets the library call the training pipeline. Raises `ValueError` where no checkout is installed.
    """
    from importlib.metadata import entry_points

    for entry in entry_points(group="upsr.extensions", name=name):
        try:
            return entry.load()
        except ModuleNotFoundError as error:
            if error.name != entry.module.partition(".")[0]:
                raise
        except AttributeError:  # another project's package of the same name
            pass
    raise ValueError(
        f"`{name}` is part of the training pipeline: use a checkout of the project with the extra `pipeline`: "
        "pip install -e '.[pipeline]'"
    )


def missing(error: ModuleNotFoundError) -> str:
    """The error line for a package that is not installed; names the extra that contains it."""
    from importlib.metadata import PackageNotFoundError, requires

    module = str(error.name).partition(".")[0]
    try:
        lines = requires("upsr") or []
    except PackageNotFoundError:  # the source lies on the path, not installed
        lines = []
    for line in lines:
        found = re.fullmatch(r"([\w.-]+).*extra == ['\"](\w+)['\"]", line)
        if found and found[1].replace("-", "_").partition(".")[0] == module:
            return f"package {found[1]} is missing: install the extra `{found[2]}`: pip install 'upsr[{found[2]}]'"
    return f"package {module} is missing: install it: pip install {module}"


def model_file(model: str) -> Path:
    """The weights file of a model. Raises `ValueError` for a model that MLflow cannot provide."""
    if model.startswith(("models:/", "runs:/")):
        return extension("weights_of")(model)
    from upsr.pretrained import weights_file

    return weights_file(model)


def open_device(name: str | None) -> str:
    """Checks the named device, by default a GPU if available, and prepares this process to run networks on it.

    Raises `ValueError` for a device that cannot be used.
    """
    import torch

    from upsr.allocator import keep_freed_memory

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        raise ValueError(f"--device {name}: not available on this machine: try cpu") from None
    if torch.device(name).type == "cpu":
        keep_freed_memory()
    return name


def positive(text: str) -> int:
    """An integer above 0; an argparse type."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def tile(text: str) -> int | None:
    """A tile's side, or None for `auto`; an argparse type."""
    if text == "auto":
        return None
    side = int(text)
    if side < 16:
        raise argparse.ArgumentTypeError(f"{text} is too small: give 16 or more, or auto")
    return side


def natural(text: str) -> int:
    """An integer of 0 or more; an argparse type."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return number
