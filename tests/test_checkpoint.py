"""Weights and states: whole, safe, and clear when they are not."""

import pickle
from pathlib import Path

import pytest
import torch
from conftest import params

from upsr import checkpoint
from upsr.checkpoint import CheckpointError
from upsr.config import Atd


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path(self.path),)  # type: ignore[attr-defined]

    def __init__(self, path: Path) -> None:
        self.path = str(path)


def test_weights_carry_their_settings(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    checkpoint.save_weights(path, {"a": torch.ones(2)}, {"scale": 4, "atd": params().atd})
    weights, settings = checkpoint.load_weights(path)
    assert torch.equal(weights["a"], torch.ones(2))
    assert settings["scale"] == 4
    assert checkpoint.section(settings, "atd", Atd, path) == params().atd


def test_what_is_no_weights_file_is_named(tmp_path: Path):
    (tmp_path / "text.safetensors").write_text("hello, this is not a weights file at all")
    for name, message in (("text.safetensors", "not a weights file"), ("absent.safetensors", "no such weights")):
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load_weights(tmp_path / name)
    with pytest.raises(CheckpointError, match="`atd`"):
        checkpoint.section({"atd": {"dim": 48}}, "atd", Atd, "old.safetensors")


@pytest.mark.parametrize("read", [checkpoint.load_official, checkpoint.load_state])
def test_a_hostile_file_runs_nothing(tmp_path: Path, read):
    proof, path = tmp_path / "proof", tmp_path / "hostile.pth"
    path.write_bytes(pickle.dumps({"params_ema": Hostile(proof)}))
    with pytest.raises(CheckpointError, match=r"hostile\.pth"):
        read(path)
    torch.save({"params_ema": Hostile(proof)}, path)
    with pytest.raises(CheckpointError, match=r"hostile\.pth"):
        read(path)
    assert not proof.exists()


@pytest.mark.parametrize("key", ["params_ema", "params", None])
def test_published_weights_are_found_below_their_key(tmp_path: Path, key: str | None):
    state = {"module.a": torch.ones(2)}
    torch.save({key: state} if key else state, tmp_path / "a.pth")
    assert list(checkpoint.load_official(tmp_path / "a.pth")) == ["a"]


def test_a_torn_state_is_named(tmp_path: Path):
    path = tmp_path / "state.pt"
    checkpoint.save_state(path, {"step": 3, "x": torch.ones(1000)})
    assert checkpoint.load_state(path)["step"] == 3
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="whole training state"):
        checkpoint.load_state(path)
