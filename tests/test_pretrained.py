"""Weights and states: whole, safe, and clear when they are not."""

import pickle
from pathlib import Path

import pytest
import torch
from conftest import params

from upsr.config import Atd, Uncertainty, Unet
from upsr.official import load_official
from upsr.pretrained import CheckpointError, Pretrained, bundled, load_pretrained, save_pretrained, weights_file
from upsr.training.state import load_state, save_state


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path(self.path),)  # type: ignore[attr-defined]

    def __init__(self, path: Path) -> None:
        self.path = str(path)


def test_weights_carry_their_settings(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    save_pretrained(path, {"atd": {"a.b": torch.ones(2)}, "unet": {}}, {"scale": 4, "atd": params().atd})
    model = load_pretrained(path)
    assert model.parts.keys() == {"atd"} and torch.equal(model.parts["atd"]["a.b"], torch.ones(2))
    assert model.scale == 4
    assert model.section("atd", Atd) == params().atd


@pytest.mark.parametrize(("before", "skip"), [(True, "condition"), (False, "none")])
def test_a_file_written_before_a_key_existed_has_its_value_of_then(tmp_path: Path, before: bool, skip: str):
    settings = {"scale": 4, "unet": params().unet.model_dump(mode="json") | {"global_skip": before}}
    for key in ("skip", "sigma_data", "hr_inputs", "placebo"):
        del settings["unet"][key]
    settings["uncertainty"] = params().uncertainty.model_dump(mode="json")
    for key in ("invert", "energy", "lr_scale", "unit"):
        del settings["uncertainty"][key]
    save_pretrained(tmp_path / "old.safetensors", {"unet": {"a": torch.zeros(1)}}, settings)
    file = load_pretrained(tmp_path / "old.safetensors")
    assert (file.section("unet", Unet).skip, file.section("unet", Unet).hr_inputs) == (skip, False)
    uncertainty = file.section("uncertainty", Uncertainty)
    assert (uncertainty.energy, uncertainty.unit, uncertainty.invert) == (0.3, "image", False)


def test_what_is_no_weights_file_is_named(tmp_path: Path):
    (tmp_path / "text.safetensors").write_text("hello, this is not a weights file at all")
    for name, message in (("text.safetensors", "not a weights file"), ("absent.safetensors", "no such weights")):
        with pytest.raises(CheckpointError, match=message):
            load_pretrained(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"old\.safetensors: its settings for `atd`"):
        Pretrained(Path("old.safetensors"), {}, {"atd": {"dim": 48}}).section("atd", Atd)


def test_a_model_is_named_by_a_file_its_folder_or_the_name_of_bundled_weights(tmp_path: Path):
    assert bundled() == ["atd-48", "atd-96", "upsr-48"]
    assert weights_file("starter") == weights_file("atd-48")
    assert all(weights_file(name).is_file() for name in bundled())
    assert weights_file("models/unet") == Path("models/unet/weights.safetensors")
    assert weights_file(tmp_path) == tmp_path / "weights.safetensors"
    assert weights_file("a.safetensors") == Path("a.safetensors")


@pytest.mark.parametrize("read", [load_official, load_state])
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
    assert list(load_official(tmp_path / "a.pth")) == ["a"]


def test_a_torn_state_is_named(tmp_path: Path):
    path = tmp_path / "state.pt"
    save_state(path, {"step": 3, "x": torch.ones(1000)})
    assert load_state(path)["step"] == 3
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="complete training state"):
        load_state(path)
