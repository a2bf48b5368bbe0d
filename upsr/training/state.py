"""The state of a training on disk: the newest whole one, to which training it belongs, how many are kept."""

from pathlib import Path
from typing import Any

import torch

from upsr.files import atomic
from upsr.pretrained import CheckpointError

STATES_KEPT = 2


class TrainingError(ValueError):
    """A training that cannot start or go on, in one line that says what to do."""


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Writes a training state (nested plain values and tensors), whole or not at all."""
    with atomic(path, durable=True) as temporary:
        torch.save(state, temporary)


def load_state(path: str | Path) -> dict[str, Any]:
    """Reads a state of `save_state`, executing nothing. Raises `CheckpointError` for a truncated or foreign file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises a dozen kinds
        raise CheckpointError(f"{path}: not a whole training state") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: not a training state")
    return state


def write(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Writes the state after `step` steps; of the older ones, one stays."""
    save_state(folder / f"state-{step:08d}.pt", state)
    for old in sorted(folder.glob("state-*.pt"))[:-STATES_KEPT]:
        old.unlink()


def newest(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The newest whole state, a truncated one being passed over; None to start from nothing."""
    for path in sorted(folder.glob("state-*.pt"), reverse=True):
        try:
            state = load_state(path)
        except CheckpointError as error:
            print(f"{error}: passed over", flush=True)
            continue
        if wrong := differences(state["identity"], identity):
            raise TrainingError(
                f"{path}: belongs to another training ({'; '.join(wrong)}): "
                f"go back to those settings to finish it, or remove {folder}/state-*.pt, as --fresh does"
            )
        return state
    return None


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """`key: old -> new` for each leaf in which two nested settings differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}" if path else k)]
    return [] if old == new else [f"{path}: {old} -> {new}"]


def clear(folder: Path) -> None:
    """Removes the states of a training that has ended, or that is to start anew."""
    for path in [*folder.glob("state-*.pt"), *folder.glob(".state-*.pt")]:  # the latter from a kill while saving
        path.unlink(missing_ok=True)
