"""Checkpoints of other projects: reads them, executing no code, and says what they seem to be."""

import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from upsr.config import short

WRAPPERS = ("params_ema", "params", "state_dict", "model_state_dict", "model", "net")
"""Keys below which other projects keep their weights."""
STATE = {"identity", "optimizer", "network"}
"""Keys of a training state of this project."""
ATD = {"layers.0.residual_group.td", "upsample.0.weight"}
UNET = {"input_blocks.0.0.weight", "time_embed.0.weight", "conv_last.weight"}


def read(path: Path, device: str = "cpu") -> Any:
    """The contents of a `.safetensors` or `.pth` file; executes no code. On `meta`, those of a `.pth` take no memory.

    Raises `FileNotFoundError`, and a dozen other types for malicious and broken files.
    """
    if path.suffix == ".safetensors":
        return load_file(path)
    with warnings.catch_warnings(action="ignore"):  # torch's, about pickles of other protocols
        return torch.load(path, map_location=device, weights_only=True)


def is_compressed(path: Path) -> bool:
    """Whether a zip unpacks to more than its size. torch compresses nothing, but reads what somebody else did."""
    try:
        with zipfile.ZipFile(path) as file:
            return sum(member.file_size for member in file.infolist()) > path.stat().st_size
    except (OSError, zipfile.BadZipFile):  # `read` says so
        return False


def described(path: Path) -> str:
    """What a file that is no weights file of this project seems to be, by the names of its weights, and what to do."""
    names = _names(path)
    if names >= STATE:
        return "a training state, not a model: give the weights.safetensors that its training writes beside it"
    if "atd.conv_first.weight" in names:
        return "a model of this project without readable settings: give the weights.safetensors that it comes from"
    if names >= ATD and "conv_before_upsample.0.weight" not in names:
        return "seems to be the authors' ATD: convert it: upsr import-official --atd FILE -o DIR"
    if names >= UNET:
        return "seems to be the authors' UNet: convert it: upsr import-official --atd ATD --unet FILE -o DIR"
    if names:
        return f"{_network(names)}: use a file that this project wrote"
    return "not a weights file of this project: use one that it wrote"


def _names(path: Path) -> set[str]:
    """The names of the weights in a file, or of a dict's other contents; empty for anything else."""
    try:
        contents = None if is_compressed(path) else read(path, "meta")
    except Exception:  # see `read`
        return set()
    for key in WRAPPERS:
        if isinstance(contents, dict) and isinstance(contents.get(key), dict):
            contents = contents[key]
            break
    names = contents if isinstance(contents, dict) else {}
    return {name.removeprefix("module.") for name in names if isinstance(name, str)}


def _network(names: Collection[str]) -> str:
    """Which network has weights of these names, as spandrel says where it is installed; the first names elsewhere."""
    first = ", ".join(f"`{short(name, 40)}`" for name in sorted(names)[:3])
    try:
        from spandrel import MAIN_REGISTRY
    except ModuleNotFoundError:
        return f"a checkpoint of another project, with {first} (the extra `spandrel` knows many)"
    for known in MAIN_REGISTRY.architectures("detection"):
        if known.detect(dict.fromkeys(names)):
            return f"seems to be {known.architecture.name}, which spandrel can load and this project cannot"
    return f"a checkpoint of another project, with {first}"
