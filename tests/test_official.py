"""The authors' checkpoints become a model of ours, and no other file does."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import fixture_file
from test_pretrained import Hostile

from upsr import images
from upsr.__main__ import main
from upsr.inference.upscaler import Upscaler
from upsr.models.atd import ATD
from upsr.models.unet import UNet
from upsr.official import DIFFUSION, read_atd, read_unet


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder with the released networks' state dicts as the authors publish theirs."""
    for name in ("atd_real", "unet"):
        _, state, _ = fixture_file(name)
        torch.save({"params_ema": state}, tmp_path / f"{name}.pth")
    return tmp_path


def run(folder: Path, *arguments: str) -> Path:
    """Imports the small ATD, whose categories have 32 pixels, and what `arguments` say; returns the model's folder."""
    model = folder / "models" / "official"
    atd = str(folder / "atd_real.pth")
    main(["import-official", "--category-size", "32", "-o", str(model), "--atd", atd, *arguments])
    return model


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line in which an import ends that writes nothing."""
    with pytest.raises(SystemExit) as end:
        run(folder, *arguments)
    assert end.value.code == 2
    assert not (folder / "models").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {folder}")
    return line


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


@torch.inference_mode()
def test_the_imported_model_gives_the_released_numbers(published: Path):
    model = Upscaler.from_pretrained(run(published, "--unet", str(published / "unet.pth")))
    tensors = fixture_file("atd_real")[2]
    assert distance(model.atd(tensors["in.lr"]), tensors["out.sr"]) < 1e-4
    assert distance(model.atd(tensors["in.lr_odd"]), tensors["out.sr_odd"]) < 1e-4
    tensors = fixture_file("unet")[2]
    assert model.diffuser is not None
    x0 = model.diffuser.denoiser.network(tensors["in.x"], tensors["in.t"], tensors["in.lq"])
    assert distance(x0, tensors["out.x0"]) < 1e-4
    assert model.diffuser.denoiser.process.steps == DIFFUSION.steps == 5


@pytest.mark.parametrize("with_unet", [False, True])
def test_the_command_upscales_with_it(published: Path, with_unet: bool):
    model = run(published, *(["--unet", str(published / "unet.pth")] if with_unet else []))
    images.write(published / "small.png", np.full((9, 12, 3), 99, np.uint8))
    main(["upscale", str(published / "small.png"), "-o", str(published / "large.png"), "--model", str(model)])
    assert images.read(published / "large.png").shape == (36, 48, 3)


def test_the_settings_are_read_from_the_shapes():
    config, state, _ = fixture_file("atd_real")
    atd, scale = read_atd(state, 32)
    assert (atd.dim, atd.groups, atd.layers, atd.heads) == (24, 2, 2, 2)
    assert (atd.window, atd.tokens, atd.reduced_dim, atd.ffn_kernel, atd.mlp_ratio) == (8, 16, 4, 5, 1)
    assert (atd.flavour, scale) == ("real", 4)
    config, state, _ = fixture_file("unet")
    unet, scale = read_unet(state)
    assert (unet.dim, list(unet.channel_mult), unet.res_blocks) == (32, config["channel_mult"], 1)
    assert (unet.swin_dim, unet.swin_depth, unet.window, unet.head_dim, unet.mlp_ratio) == (64, 2, 8, 32, 4)
    assert (unet.tail_dim, unet.lr_size, scale) == (config["num_feat"], config["lq_size"], 4)


def test_the_papers_networks_are_read_as_the_paper_has_them():
    with torch.device("meta"):
        atd, scale = read_atd(ATD().state_dict(), 128)
        unet, _ = read_unet(dict(sorted(UNet().state_dict().items())))  # block 10 before block 2
    assert (atd.dim, atd.groups, atd.layers, atd.heads, atd.window) == (96, 4, 6, 4, 16)
    assert (atd.tokens, atd.reduced_dim, atd.ffn_kernel, atd.mlp_ratio, scale) == (64, 8, 7, 1, 4)
    assert (unet.dim, unet.channel_mult, unet.res_blocks, unet.tail_dim, unet.lr_size) == (
        160,
        (1, 2, 2, 4),
        2,
        128,
        64,
    )
    assert (unet.swin_dim, unet.swin_depth, unet.window, unet.head_dim, unet.mlp_ratio) == (192, 2, 8, 32, 4)


def test_the_wrong_file_is_refused_in_one_line(published: Path, capsys: pytest.CaptureFixture[str]):
    atd, unet = str(published / "atd_real.pth"), str(published / "unet.pth")
    assert "unet.pth: not the weights of an ATD" in refused(published, capsys, "--atd", unet)
    assert "atd_real.pth: not the weights of UPSR's UNet" in refused(published, capsys, "--unet", atd)
    assert "absent.pth: no such file" in refused(published, capsys, "--unet", str(published / "absent.pth"))
    (published / "text.pth").write_text("no checkpoint")
    assert "text.pth: not a plain weights file" in refused(published, capsys, "--atd", str(published / "text.pth"))


def changed(name: str, key: str, value: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """A released state dict without `key`, or with another weight below it."""
    _, state, _ = fixture_file(name)
    return {k: v for k, v in state.items() if k != key} | ({} if value is None else {key: value})


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("atd_real", "conv_first.weight", None),
        ("atd_real", "norm.weight", torch.ones(25)),
        ("atd_real", "extra.weight", torch.ones(1)),
        ("unet", "conv_last.bias", None),
        ("unet", "time_embed.0.bias", torch.ones(3)),
    ],
)
def test_weights_that_do_not_fit_are_named(published: Path, capsys: Any, name: str, key: str, value: Any):
    torch.save({"params_ema": changed(name, key, value)}, published / f"{name}.pth")
    line = refused(published, capsys, "--unet", str(published / "unet.pth"))
    assert f"{name}.pth: 1 weights are missing, unknown or of the wrong shape, such as `{key}`" in line


@pytest.mark.parametrize("key", ["upsample.0.weight", "layers.0.residual_group.layers.0.attn_atd.wq.weight"])
@pytest.mark.parametrize("value", [torch.ones(()), torch.ones(0, 0), torch.ones(3, 3, 3)])
def test_shapes_without_sense_are_refused(published: Path, capsys: Any, key: str, value: torch.Tensor):
    torch.save({"params_ema": changed("atd_real", key, value)}, published / "atd_real.pth")
    assert "atd_real.pth" in refused(published, capsys)


def test_two_scales_do_not_go_together(published: Path, capsys: pytest.CaptureFixture[str]):
    atd = ATD(scale=2, dim=24, groups=1, layers=2, heads=2, window=8)
    torch.save({"params_ema": atd.state_dict()}, published / "atd_real.pth")
    line = refused(published, capsys, "--unet", str(published / "unet.pth"))
    assert "is for scale 4" in line and "give two of the same scale" in line


def test_a_hostile_file_runs_nothing(published: Path, capsys: pytest.CaptureFixture[str]):
    proof = published / "proof"
    (published / "hostile.pth").write_bytes(pickle.dumps({"params_ema": Hostile(proof)}))
    assert "hostile.pth: not a plain weights file" in refused(
        published, capsys, "--unet", str(published / "hostile.pth")
    )
    assert not proof.exists()
