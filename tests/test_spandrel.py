"""Other programs: spandrel's loader takes our weights files, and ComfyUI our node."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import skimage.data
import spandrel
import torch
from conftest import ROOT, fixture_file, params, save_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from spandrel.architectures.ATD import ATD
from spandrel.architectures.Compact import Compact
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.HAT import HAT
from spandrel.architectures.SwinIR import SwinIR
from torch import Tensor

import upsr.spandrel
from upsr import images
from upsr.__main__ import main
from upsr.inference.upscaler import Upscaler
from upsr.official import read_atd
from upsr.pretrained import FILE, SETTINGS, CheckpointError, bundled, save_pretrained, weights_file

ROUNDING = 1 / 255 + 1e-6
NODE = ROOT / "contrib" / "comfyui-upsr"


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    upsr.spandrel.install()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained UPSR with settings that no tensor's shape shows: category size, chain, variant, order of images."""
    p = params(
        atd={"category_size": 16},
        unet={"window": 4, "skip": "condition", "condition": ["bicubic", "sr"]},
        diffusion={"steps": 3, "kappa": 1.0, "sampler_eta": 0.5},
        uncertainty={"variant": "isotropic"},
    )
    return save_model(tmp_path_factory.mktemp("tiny"), p) / FILE


def photo(height: int, width: int) -> Tensor:
    return images.round8(images.resize(images.to_tensor(skimage.data.chelsea()[:160, :240]), (height, width)))


def distance(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def load(path: Path) -> spandrel.ImageModelDescriptor:
    model = spandrel.ModelLoader().load_from_file(path)
    assert isinstance(model, spandrel.ImageModelDescriptor)
    return model


# spandrel


@pytest.mark.parametrize(
    ("name", "architecture", "tiling"),
    [("atd-48", "ATDReal", "SUPPORTED"), ("atd-48-light", "ATDReal", "SUPPORTED"), ("upsr-48", "UPSR", "INTERNAL")],
)
def test_spandrel_loads_the_bundled_weights_and_makes_our_image(name: str, architecture: str, tiling: str):
    model, lr = load(weights_file(name)), photo(21, 34)
    assert (model.architecture.id, model.purpose, model.scale) == (architecture, "SR", 4)
    assert (model.input_channels, model.output_channels, model.tiling.name) == (3, 3, tiling)
    assert model.size_requirements.none
    assert distance(model(lr), Upscaler.from_pretrained(name).upscale(lr).image) < ROUNDING


def test_the_seed_and_the_tiles_are_inside_of_the_module(tiny: Path):
    model, lr = load(tiny), photo(24, 40)
    first = model(lr)
    model.model.seed, model.model.tile = 3, 16
    expected = Upscaler.from_pretrained(tiny).upscale(lr, seed=3, tile=16).image
    assert distance(model(lr), expected) < ROUNDING < distance(model(lr), first)
    batch = model.model(torch.cat([lr, lr.flip(3)]))
    assert batch.shape == (2, 3, 96, 160)
    assert torch.equal(batch[:1], model(lr)) and torch.equal(batch[1:], model(lr.flip(3)))


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (17, 5)])
def test_any_size_needs_no_padding(tiny: Path, size: tuple[int, int]):
    for path in (tiny, weights_file("atd-48")):
        assert load(path)(photo(*size)).shape == (1, 3, 4 * size[0], 4 * size[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_as_upsr_cannot_run_in_it(tiny: Path, dtype: torch.dtype):
    upsr = load(tiny)
    for model in (upsr, load(weights_file("atd-48"))):
        with pytest.raises(spandrel.UnsupportedDtypeError):
            model.to(dtype)
    with pytest.raises(RuntimeError, match="type"):  # once this raises no more, the descriptor can say so
        upsr.model.to(dtype)(photo(8, 8).to(dtype))


def test_a_model_of_ones_own_is_loaded_with_its_own_settings(tiny: Path, tmp_path: Path):
    lr = photo(12, 20)
    torch.save(load_file(tiny), tmp_path / "tiny.pth")
    for path in (tiny, tmp_path / "tiny.pth"):
        model = load(path)
        assert {"3 steps", "isotropic"} <= set(model.tags)
        assert distance(model(lr), Upscaler.from_pretrained(tiny).upscale(lr).image) < ROUNDING


def test_a_file_without_the_settings_tensor_is_loaded_once_it_is_written_again(tiny: Path, tmp_path: Path):
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    with safe_open(tiny, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if name != SETTINGS}  # noqa: SIM118
        save_file(tensors, old, metadata=file.metadata())
    with pytest.raises(CheckpointError, match=r"docs/operations\.md"):
        load(old)
    (command,) = re.findall(r"python -c '(.*save_pretrained.*)'", (ROOT / "docs/operations.md").read_text())
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True)
    assert load(new).tags == load(tiny).tags


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings.json": None}, "has no tensor `settings.json`: write its file again"),
        ({"settings.json": torch.ones(3)}, "its tensor `settings.json` is no JSON"),
        ({"settings.json": torch.tensor([123, 125], dtype=torch.uint8)}, "its settings have no scale"),
        ({"atd.norm.bias": torch.full((16,), torch.nan)}, "`norm.bias` has values that no training gives"),
        ({"unet.conv_last.bias": None}, "1 weights are missing"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(tiny: Path, tmp_path: Path, change: dict, message: str):
    state = load_file(tiny) | change
    save_file({k: v for k, v in state.items() if v is not None}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError) as error:
        load(tmp_path / "other.safetensors")
    assert str(error.value).startswith(f"the state dict: {message}") and "\n" not in str(error.value)


def test_the_authors_atd_is_loaded_from_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config, state, tensors = fixture_file("atd_real")
    torch.save({"params_ema": state}, tmp_path / "atd_real.pth")
    monkeypatch.setattr(upsr.spandrel, "CATEGORY_SIZE", config["category_size"])  # a small one, not the paper's
    model = load(tmp_path / "atd_real.pth")
    assert model.architecture.id == "ATDReal"
    assert distance(model(tensors["in.lr_odd"]), tensors["out.sr_odd"].clamp(0, 1)) < 1e-4
    # the same through a weights file of ours
    cfg, scale = read_atd(state, config["category_size"])
    save_pretrained(tmp_path / FILE, {"atd": state}, {"scale": scale, "atd": cfg})
    assert torch.equal(load(tmp_path / FILE)(tensors["in.lr_odd"]), model(tensors["in.lr_odd"]))


OTHERS = {
    "RealESRGAN Compact": Compact(),
    "ESRGAN": ESRGAN(num_blocks=1),
    "SwinIR": SwinIR(window_size=8, depths=(2,), num_heads=(2,), embed_dim=16),
    "HAT": HAT(window_size=8, depths=(2,), num_heads=(2,), embed_dim=16),
    "ATD": ATD(upsampler="pixelshuffle", depths=(2,), num_heads=(2,), embed_dim=16, window_size=8),
}
"""Networks of other projects; the last is the classical ATD."""


def refused(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The line in which `upsr upscale --model` ends."""
    images.write(path.parent / "small.png", images.to_image(photo(8, 8)))
    with pytest.raises(SystemExit) as end:
        main(["upscale", str(path.parent / "small.png"), "-o", str(path.parent / "large.png"), "--model", str(path)])
    assert end.value.code == 2 and not (path.parent / "large.png").exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix(f"error: {path}: ")


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_of_another_project_is_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    state = OTHERS[name].state_dict()
    save_file({key: value.clone() for key, value in state.items()}, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"params_ema": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "below.pth")
    torch.save({"params": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for file in ("a.safetensors", "plain.pth", "below.pth", "old.pth"):
        known = f"seems to be {name}, which spandrel can load and this project cannot"
        assert refused(tmp_path / file, capsys) == f"{known}: use a file that this project wrote"


def test_without_spandrel_the_first_names_are_given(tmp_path: Path):
    torch.save(OTHERS["ESRGAN"].state_dict(), tmp_path / "a.pth")
    code = f"""
import sys
sys.modules["spandrel"] = None
from upsr.foreign import described
from pathlib import Path
print(described(Path({str(tmp_path / "a.pth")!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == (
        "a checkpoint of another project, with `model.0.bias`, `model.0.weight`, `model.1.sub.0.RDB1.conv1.0.bias` "
        "(the extra `spandrel` knows many): use a file that this project wrote\n"
    )


def test_weights_that_nobody_knows_are_refused_by_their_first_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save({"b": torch.ones(2), "a" * 1000: torch.ones(2), 3: torch.ones(1)}, tmp_path / "a.pth")
    line = refused(tmp_path / "a.pth", capsys)
    assert line == f"a checkpoint of another project, with `{'a' * 37}...`, `b`: use a file that this project wrote"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_authors_weights_are_refused_with_the_command_that_converts_them(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    files = {}
    for name in ("atd_real", "unet"):
        files[name] = tmp_path / f"{name}{suffix}"
        state = fixture_file(name)[1]
        save_file(state, files[name]) if suffix == ".safetensors" else torch.save({"params_ema": state}, files[name])
    line = refused(files["atd_real"], capsys)
    assert line == "seems to be the authors' ATD: convert it: upsr import-official --atd FILE -o DIR"
    line = refused(files["unet"], capsys)
    command = "import-official --atd ATD --unet FILE -o DIR"
    assert line == f"seems to be the authors' UNet: convert it: upsr {command}"
    paths = {"ATD": str(files["atd_real"]), "FILE": str(files["unet"]), "DIR": str(tmp_path / "model")}
    main([*(paths.get(word, word) for word in command.split()), "--category-size", "32"])
    assert Upscaler.from_pretrained(tmp_path / "model").scale == 4


def test_our_weights_without_their_settings_are_named(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save(load_file(tiny), tmp_path / "tiny.pth")
    save_file(load_file(tiny), tmp_path / "tiny.safetensors")
    for path in (tmp_path / "tiny.pth", tmp_path / "tiny.safetensors"):
        assert refused(path, capsys).startswith("a model of this project without readable settings: give the weights")


def test_other_weights_go_to_their_own_architectures():
    others = {"ATD": ATD(), "ESRGAN": ESRGAN(num_blocks=1), "SwinIR": SwinIR(window_size=8)}
    for name, network in others.items():
        assert spandrel.ModelLoader().load_from_state_dict(network.state_dict()).architecture.id == name


def test_installing_twice_changes_nothing():
    before = spandrel.MAIN_REGISTRY.architectures("detection")
    upsr.spandrel.install()
    assert spandrel.MAIN_REGISTRY.architectures("detection") == before


# ComfyUI


def load_as_comfyui(folder: Path) -> ModuleType:
    """As ComfyUI imports a folder of `custom_nodes`: under a name made of its path."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def node(tmp_path: Path) -> type:
    link = tmp_path / "ComfyUI" / "custom_nodes" / "comfyui-upsr"
    link.parent.mkdir(parents=True)
    (line,) = re.findall(r"`(ln -s .*comfyui-upsr.*?)`", (ROOT / "docs/operations.md").read_text())
    subprocess.run(["bash", "-c", line.replace("COMFYUI", str(tmp_path / "ComfyUI"))], cwd=ROOT, check=True)
    module = load_as_comfyui(link)
    assert module.NODE_CLASS_MAPPINGS.keys() == module.NODE_DISPLAY_NAME_MAPPINGS.keys() == {"UpsrUpscaleImage"}
    return module.NODE_CLASS_MAPPINGS["UpsrUpscaleImage"]


def test_the_comfyui_node_upscales_a_batch(node: type):
    lr = torch.cat([photo(20, 28), photo(20, 28).flip(2)])
    inputs = node.INPUT_TYPES()["required"]
    arguments = {name: about[1]["default"] for name, about in inputs.items() if name in ("seed", "steps", "tile")}
    assert [*inputs] == ["image", "model", *arguments] and inputs["model"][0] == bundled()
    assert node.RETURN_TYPES == ("IMAGE",)
    (large,) = getattr(node(), node.FUNCTION)(image=lr.movedim(1, -1), model="atd-48", **arguments)
    assert (large.shape, large.dtype, large.device.type) == ((2, 80, 112, 3), torch.float32, "cpu")
    expected = Upscaler.from_pretrained("atd-48").upscale(lr[1:]).image
    assert distance(large[1].movedim(-1, 0), expected[0]) < ROUNDING


def test_the_comfyui_node_has_a_seed_and_steps(node: type, tiny: Path):
    rgba = torch.cat([photo(9, 12), torch.ones(1, 1, 9, 12)], dim=1).movedim(1, -1)
    (large,) = node().upscale(rgba, tiny, seed=2**64 - 1, steps=2, tile=16)
    expected = Upscaler.from_pretrained(tiny, steps=2).upscale(photo(9, 12), seed=2**64 - 1, tile=16).image
    assert distance(large.movedim(-1, 1), expected) < ROUNDING
    with pytest.raises(ValueError, match="1 to 3"):
        node().upscale(rgba, tiny, seed=0, steps=4, tile=16)


def test_the_comfyui_folder_lets_the_node_of_comfyui_load_our_files():
    """`Load Upscale Model` gives spandrel a state dict. Here the folder alone installs the architectures."""
    code = f"""
from pathlib import Path
from test_spandrel import load_as_comfyui
load_as_comfyui(Path({str(NODE)!r}))
from safetensors.torch import load_file
from spandrel import ModelLoader
print(ModelLoader().load_from_state_dict(load_file({str(weights_file("atd-48"))!r})).eval().architecture.name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True)
    assert done.stdout == "ATD real\n", done.stderr
