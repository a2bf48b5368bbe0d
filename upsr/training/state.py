"""The training state on disk, from which a run resumes."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from upsr.files import atomic, remove_temporary
from upsr.locks import locked
from upsr.pretrained import CheckpointError

STATES_KEPT = 2


class TrainingError(ValueError):
    """Training cannot start or continue; the message is one line that says what to do."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other trainings of this machine out of `folder`, and removes what a killed one left half-written.

    Of a distributed training, the main process holds the lock. Raises `Locked` where another training does.
    """
    if not is_main():
        yield
        return
    with ExitStack() as lock:
        try:
            lock.enter_context(locked(folder))
        except OSError as error:  # some cluster file systems have no locks
            print(f"{error}: start no second training in this folder", flush=True)
        remove_temporary(folder)
        yield


def is_main() -> bool:
    """True in the main process of a distributed training, as torchrun says, and in any other process."""
    return os.environ.get("RANK", "0") == "0"


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Writes a training state (nested plain values and tensors) atomically."""
    with atomic(path, durable=True) as temporary:
        torch.save(state, temporary)


def load_state(path: str | Path) -> dict[str, Any]:
    """Reads a file of `save_state`, executing nothing. Raises `CheckpointError` for a truncated or foreign file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises a dozen exception types
        raise CheckpointError(f"{path}: not a complete training state") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: not a training state")
    return state


def write(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Writes the state after `step` steps and keeps the newest `STATES_KEPT`."""
    save_state(folder / f"state-{step:08d}.pt", state)
    for old in sorted(folder.glob("state-*.pt"))[:-STATES_KEPT]:
        old.unlink()


def newest(folder: Path, identity: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """The newest complete state and its file; truncated ones are skipped. None if there is none.

    Raises `TrainingError` where the state belongs to another run.
    """
    for path in sorted(folder.glob("state-*.pt"), reverse=True):
        try:
            state = load_state(path)
        except CheckpointError as error:
            print(f"{error}: skipped", flush=True)
            continue
        if not isinstance(state.get("identity"), dict):
            print(f"{path}: a training state of no training: skipped", flush=True)
            continue
        if wrong := differences(state["identity"], identity):
            raise TrainingError(
                f"{path}: belongs to another training run ({'; '.join(wrong)}): "
                f"restore those settings to finish it, or remove {folder}/state-*.pt (--fresh does)"
            )
        return path, state
    return None


@contextmanager
def damage_in_one_line(path: Path) -> Iterator[None]:
    """Within the block, restoring a state that was changed since it was written raises `TrainingError`."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "loading state_dict" not in str(error):
            raise  # such as a device without memory
        raise TrainingError(
            f"{path}: a damaged training state ({' '.join(str(error).split())[:200]}): "
            "remove it, or all of them to start again (--fresh does)"
        ) from error


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """`key: old -> new` for each value that differs between two nested settings."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}" if path else k)]
    return [] if old == new else [f"{path}: {old} -> {new}"]


def clear(folder: Path) -> None:
    """Removes the states of a run that has ended or will start from scratch."""
    for path in folder.glob("state-*.pt"):
        path.unlink(missing_ok=True)
