"""The state of a training on disk: the newest whole one, to which training it belongs, how many are kept."""

from pathlib import Path
from typing import Any

from upsr.checkpoint import CheckpointError, load_state, save_state

STATES_KEPT = 2


class TrainingError(ValueError):
    """A training that cannot start or go on, in one line that says what to do."""


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
