"""Weights with their configuration in one safetensors file, and the state of a training. All writes are atomic."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from upsr.config import ConfigError, Section
from upsr.images import atomic

S = TypeVar("S", bound=Section)
STARTERS = Path(__file__).parents[1] / "models" / "starter"
STARTER = STARTERS / "atd-48"


class CheckpointError(ValueError):
    """A weights file or a training state that cannot be used, in one line that names it."""


def save_weights(path: str | Path, weights: dict[str, Tensor], settings: Mapping[str, Section | int]) -> None:
    """Writes weights and the settings needed to rebuild the network (name -> record or number) to one file."""
    plain = {name: s.model_dump(mode="json") if isinstance(s, Section) else s for name, s in settings.items()}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in weights.items()}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"upsr": json.dumps(plain, sort_keys=True)})
        flush(temporary)


def flush(path: Path) -> None:
    """Waits until a file is on the disk: one that is renamed before may be empty after a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def weights_file(place: str | Path) -> Path:
    """A weights file, the one in a model's folder, or for `starter` the one that comes with the project."""
    path = STARTER if place == "starter" else Path(place)
    return path / "weights.safetensors" if path.is_dir() or not path.suffix else path


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a file of `save_weights`: (weights, settings as plain values). Nothing in the file is executed."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file: run `dvc repro` or name another")
    try:
        with safe_open(path, framework="pt") as file:
            settings = json.loads((file.metadata() or {})["upsr"])
            return {k: file.get_tensor(k) for k in file.keys()}, settings  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, json.JSONDecodeError):
        raise CheckpointError(f"{path}: not a weights file of this project") from None


def section(settings: dict[str, Any], name: str, record: type[S], path: str | Path) -> S:
    """One record of a weights file's settings."""
    try:
        return record.model_validate(settings[name])
    except (KeyError, ValidationError, ConfigError):
        raise CheckpointError(f"{path}: its settings for `{name}` do not fit this version: train anew") from None


def load_official(path: str | Path) -> dict[str, Tensor]:
    """Reads a published `.pth` (weights below `params_ema`, `params` or at the top) without executing anything."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except Exception:  # torch raises a dozen kinds, for hostile and for broken files alike
        raise CheckpointError(f"{path}: not a plain file of weights: refused") from None
    for key in ("params_ema", "params"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: holds no network's weights")
    return {k.removeprefix("module."): v for k, v in state.items()}


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Writes a training state (nested plain values and tensors), whole or not at all."""
    with atomic(path) as temporary:
        torch.save(state, temporary)
        flush(temporary)


def load_state(path: str | Path) -> dict[str, Any]:
    """Reads a state of `save_state`. Raises `CheckpointError` for a truncated or foreign file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        raise CheckpointError(f"{path}: not a whole training state") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: not a training state")
    return state
