"""The bundled weights: there at once, better than bicubic, and what the sample scale starts from."""

import os
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import yaml
from conftest import ROOT

from upsr import images
from upsr.__main__ import main
from upsr.config import Params, parse
from upsr.evaluation.metrics import psnr
from upsr.evaluation.protocol import PROTOCOLS, for_fidelity
from upsr.inference.upscaler import Upscaler
from upsr.models.atd import build_atd
from upsr.models.unet import build_unet
from upsr.models.widen import widen_atd, widen_unet
from upsr.pretrained import load_pretrained, weights_file
from upsr.training.initial import initialise


def test_photos_are_upscaled_right_after_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By PSNR of luma, the mean of three photographs."""
    monkeypatch.chdir(tmp_path)
    gains = []
    for photo in (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()):
        hr = images.to_tensor(photo[:256, :384])
        size = hr.shape[2:]
        lr = images.round8(images.resize(hr, (size[0] // 4, size[1] // 4)))
        images.write("lr.png", images.to_image(lr))
        main(["upscale", "lr.png", "-o", "sr.png"])
        ours, bicubic = images.to_tensor(images.read("sr.png")), images.round8(images.resize(lr, size))
        better, worse = (psnr(*(for_fidelity(x, PROTOCOLS["basicsr"], 4) for x in (sr, hr))) for sr in (ours, bicubic))
        gains.append(float(better - worse))
    assert np.mean(gains) > 0.8, gains


def test_upsr_makes_detail_that_atd_leaves_out():
    lr = images.round8(images.resize(images.to_tensor(skimage.data.chelsea()[:256, :384]), (64, 96)))
    atd, upsr = (Upscaler.from_pretrained(name).upscale(lr).image for name in ("atd-48", "upsr-48"))
    detail = [(x[..., 1:] - x[..., :-1]).abs().mean() for x in (atd, upsr)]
    assert 1.1 < detail[1] / detail[0] < 3
    assert psnr(upsr, atd) > 20


@pytest.mark.parametrize("name", ["atd", "unet"])
def test_the_sample_scale_begins_from_them(name: str, capsys):
    params = parse(Params, yaml.safe_load((ROOT / "params.yaml").read_text()), "params.yaml")
    assert params.train.init == "starter"
    cfg, build = {"atd": (params.atd, build_atd), "unet": (params.unet, build_unet)}[name]
    network = build(cfg, params.scale)
    fresh = {key: value.clone() for key, value in network.state_dict().items()}
    initialise(network, name, cfg, params.scale, params.train.init, {"atd": widen_atd, "unet": widen_unet}[name])
    assert f"{name}: starts from" in capsys.readouterr().out
    assert any(not torch.equal(value, fresh[key]) for key, value in network.state_dict().items())
    assert all(value.dtype == torch.float32 for value in network.parameters())


@pytest.mark.parametrize("dim", [96, 144])
def test_a_width_begins_from_the_starter_that_divides_it(dim: int, capsys):
    params = parse(Params, yaml.safe_load((ROOT / "params.yaml").read_text()), "params.yaml")
    # a seed where no pixel is between two categories, which rounding would decide
    lr = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    wide = build_atd(params.atd.model_copy(update={"dim": dim}), 4).eval()
    initialise(wide, "atd", params.atd.model_copy(update={"dim": dim}), 4, "starter", widen_atd)
    assert f"atd-48{os.sep}weights.safetensors, widened from 48 to {dim}" in capsys.readouterr().out
    with torch.inference_mode():
        assert torch.allclose(wide(lr), Upscaler.from_pretrained("atd-48").atd(lr), atol=1e-4)


def test_the_starter_unet_widened_makes_the_same_picture():
    upscaler = Upscaler.from_pretrained("upsr-48")
    lr = images.round8(images.resize(images.to_tensor(skimage.data.chelsea()[:128, :192]), (32, 48)))
    narrow = upscaler.upscale(lr).image
    params = parse(Params, yaml.safe_load((ROOT / "params.yaml").read_text()), "params.yaml")
    cfg = params.unet.model_copy(update={"dim": 96})
    assert upscaler.diffuser is not None
    upscaler.diffuser.denoiser.network = build_unet(cfg, 4).eval()
    initialise(upscaler.diffuser.denoiser.network, "unet", cfg, 4, "starter", widen_unet)
    assert psnr(upscaler.upscale(lr).image, narrow) > 50


def test_upsr_stands_on_the_atd_that_comes_alone():
    alone, within = (load_pretrained(weights_file(name)).parts["atd"] for name in ("atd-48", "upsr-48"))
    assert all(torch.equal(value, within[key].to(value.dtype)) for key, value in alone.items())


def test_a_sweep_compares_unets_that_all_train_from_scratch(capsys):
    params = parse(Params, yaml.safe_load((ROOT / "params.yaml").read_text()), "params.yaml")
    (init,) = params.sweep.cross["train.init"]
    initialise(build_atd(params.atd, params.scale), "atd", params.atd, params.scale, init, widen_atd)
    initialise(build_unet(params.unet, params.scale), "unet", params.unet, params.scale, init, widen_unet)
    told = capsys.readouterr().out
    assert "atd: starts from" in told and "unet: trains from scratch" in told


def test_a_network_that_they_do_not_fit_starts_from_nothing(capsys):
    params = parse(Params, yaml.safe_load((ROOT / "params.yaml").read_text()), "params.yaml")
    wide = params.atd.model_copy(update={"dim": 32})
    torch.manual_seed(0)
    atd = build_atd(wide, 4)
    torch.manual_seed(0)
    initialise(atd, "atd", wide, 4, "starter", widen_atd)
    told = capsys.readouterr().out
    assert "trains from scratch" in told and "atd.dim: 48 -> 32" in told
    assert all(torch.equal(a, b) for a, b in zip(atd.parameters(), build_atd(wide, 4).parameters(), strict=True))
