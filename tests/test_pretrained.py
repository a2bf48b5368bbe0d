"""Weights and states: whole, safe, and clear when they are not."""

import json
import os
import pickle
import resource
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import merged, params, save_model
from safetensors.torch import load_file, save_file

from upsr.config import Atd, Uncertainty, Unet
from upsr.inference.upscaler import Upscaler
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
    assert bundled() == ["atd-48", "atd-48-light", "upsr-48", "upsr-48-light"]
    assert weights_file("starter") == weights_file("upsr-48")
    assert weights_file("light") == weights_file("upsr-48-light")
    assert all(weights_file(name).is_file() for name in bundled())
    assert weights_file("models/unet") == Path("models/unet/weights.safetensors")
    assert weights_file(tmp_path) == tmp_path / "weights.safetensors"
    assert weights_file("a.safetensors") == Path("a.safetensors")


LAYER = "atd.layers.0.residual_group.layers.0"
DEEP = "[" * 100_000 + "]" * 100_000
SETTINGS: list[Any] = [  # changed settings of a weights file, or other text in their place
    "",
    "no JSON",
    DEEP,
    '{"scale": ' + "9" * 5000 + "}",
    "[]",
    "null",
    {"scale": None},
    {"scale": "4"},
    {"scale": 3},
    {"scale": 10**30},
    {"keeps_colours": "lr"},
    {"atd": None},
    {"atd": [1]},
    {"atd": {"dim": 200_000}},
    {"atd": {"dim": 0}},
    {"atd": {"dim": "wide"}},
    {"atd": {"dim": 10**400}},
    {"atd": {"dim": 32}},
    {"atd": {"groups": 100_000}},
    {"atd": {"groups": 50, "layers": 50}},
    {"atd": {"layers": 99}},
    {"atd": {"window": 10**6}},
    {"atd": {"window": 32}},
    {"atd": {"mlp_ratio": 1e9}},
    {"atd": {"mlp_ratio": float("nan")}},
    {"atd": {"mlp_ratio": 1e-9}},
    {"atd": {"ffn_kernel": 4}},
    {"atd": {"category_size": 10**9}},
    {"atd": {"tokens": 10**9}},
    {"atd": {"unknown": 1}},
    {"atd": {"unknown\n" * 10_000: 1}},
    {"atd": {"flavour": "a" * 10**6}},
    {"unet": {"channel_mult": [1] * 100}},
    {"unet": {"channel_mult": [16] * 6, "res_blocks": 8, "swin_depth": 8}},
    {"unet": {"head_dim": 1, "swin_dim": 4096}},
    {"unet": {"skip": "edm"}, "diffusion": {"predict": "epsilon"}},
    {"unet": None},
    {"diffusion": None},
    {"diffusion": {"steps": 10**9}},
    {"diffusion": {"kappa": float("inf")}},
    {"uncertainty": {"percentile": 1000}},
    {"uncertainty": {"energy": float("nan")}},
    {"other": {}},
]
TENSORS: dict[str, torch.Tensor | None] = {  # changed tensors
    "atd.conv_first.weight": None,
    f"{LAYER}.norm1.weight": torch.ones(3),
    f"{LAYER}.norm2.weight": torch.ones(()),
    f"{LAYER}.norm1.bias": torch.ones(16, dtype=torch.int32),
    f"{LAYER}.norm2.bias": torch.ones(16, dtype=torch.complex64),
    f"{LAYER}.wqkv.bias": torch.full((48,), float("nan")),
    "atd.relative_position_index_SA": torch.full((64, 64), 10**6),
    "atd.unknown": torch.ones(1),
    "unet.conv_last.weight": torch.ones(0, 0),
    "uncertainty.unknown": torch.ones(1),
    "unknown": torch.ones(1),
    "other.weight": torch.ones(1),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), params()) / "weights.safetensors"


def rewrite(model: Path, path: Path, settings: Any, tensors: dict[str, torch.Tensor | None]) -> None:
    """Writes the weights file of `model` again, with some settings and tensors changed."""
    state = {k: v for k, v in (load_file(model) | tensors).items() if v is not None}
    text = settings
    if isinstance(settings, dict):
        file = load_pretrained(model)
        whole = {k: {} if k == "other" else file.settings.get(k) for k in file.settings.keys() | settings.keys()}
        text = json.dumps({k: v for k, v in merged(whole, settings).items() if v is not None})
    save_file(state, path, metadata={"upsr": text})


def refused(path: Path) -> None:
    """The file ends in one line that names it, soon, and without much memory."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as error:
        Upscaler.from_pretrained(path)
    line = str(error.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and len(line) < 1000
    assert time.monotonic() - start < 10  # on a busy machine; alone, it is one second
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_a_file_with_hostile_settings_is_one_line(model: Path, tmp_path: Path, number: int):
    rewrite(model, tmp_path / "hostile.safetensors", SETTINGS[number], {})
    refused(tmp_path / "hostile.safetensors")


@pytest.mark.parametrize("name", TENSORS)
def test_a_file_with_hostile_tensors_is_one_line(model: Path, tmp_path: Path, name: str):
    rewrite(model, tmp_path / "hostile.safetensors", {}, {name: TENSORS[name]})
    refused(tmp_path / "hostile.safetensors")


@pytest.mark.parametrize("part", ["atd", "unet"])
def test_a_file_without_the_weights_of_its_settings_is_one_line(model: Path, tmp_path: Path, part: str):
    rewrite(model, tmp_path / "hostile.safetensors", {}, {k: None for k in load_file(model) if k.startswith(part)})
    refused(tmp_path / "hostile.safetensors")


def test_a_changed_file_that_still_fits_upscales(model: Path, tmp_path: Path):
    """The tests above would also pass if every rewritten file were refused."""
    rewrite(model, tmp_path / "fine.safetensors", {"diffusion": {"steps": 3}}, {"atd.norm.bias": torch.ones(16)})
    assert Upscaler.from_pretrained(tmp_path / "fine.safetensors").scale == 4


def test_a_pipe_is_no_weights_file(tmp_path: Path):
    os.mkfifo(tmp_path / "weights.safetensors")
    refused(tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    "value",
    [torch.zeros(1).expand(4096, 100_000), torch.eye(3).to_sparse(), "text", {}],
)
def test_official_weights_that_are_larger_than_their_file_are_named(tmp_path: Path, value: object):
    torch.save({"params_ema": {"conv_first.weight": value}}, tmp_path / "large.pth")
    with pytest.raises(CheckpointError, match=r"large\.pth: "):
        load_official(tmp_path / "large.pth")


def test_a_pth_that_somebody_compressed_is_refused_before_it_is_unpacked(tmp_path: Path):
    torch.save({"conv_first.weight": torch.zeros(1_000_000)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for member in plain.namelist():
            bomb.writestr(member, plain.read(member))
    assert load_official(tmp_path / "plain.pth")
    assert (tmp_path / "bomb.pth").stat().st_size < 100_000
    with pytest.raises(CheckpointError, match=r"bomb\.pth: its weights are larger than the file"):
        load_official(tmp_path / "bomb.pth")


@pytest.mark.parametrize("read", [load_official, load_state, load_pretrained])
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
