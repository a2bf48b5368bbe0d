"""The bundled weights: there at once, better than bicubic, and what the sample scale starts from."""

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
import yaml
from conftest import ROOT
from torch import Tensor

from upsr import images
from upsr.config import Params, parse
from upsr.evaluation.metrics import psnr
from upsr.evaluation.protocol import PROTOCOLS, for_fidelity
from upsr.inference.upscaler import Upscaler
from upsr.models.atd import build_atd
from upsr.models.unet import build_unet
from upsr.models.widen import widen_atd, widen_unet
from upsr.pretrained import load_pretrained, weights_file
from upsr.training.initial import initialise
from upsr.training.perceptual import Lpips

PHOTOS = [photo()[:256, :384] for photo in (skimage.data.astronaut, skimage.data.coffee, skimage.data.chelsea)]


def pairs(quality: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """LR and HR of three photographs; LR is only shrunk, or then compressed by JPEG too."""
    for photo in PHOTOS:
        hr = images.to_tensor(photo)
        lr = images.to_image(images.resize(hr, (64, 96)))
        if quality is not None:
            _, data = cv2.imencode(".jpg", lr[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
            lr = images.decode(data.tobytes(), "lr.jpg")
        yield images.to_tensor(lr), hr


def test_the_starter_enlarges_compressed_photographs_better_than_bicubic(weights: Path):
    """By LPIPS: blocks and coloured spots count in it."""
    starter, lpips = Upscaler.from_pretrained(), Lpips(weights)
    with torch.inference_mode():
        gains = [
            lpips(images.resize(lr, hr.shape[2:]).clamp(0, 1), hr) - lpips(starter.upscale(lr).image.clamp(0, 1), hr)
            for lr, hr in pairs(quality=30)
        ]
    assert np.mean(gains) > 0.03, gains


@pytest.mark.parametrize(("name", "gain"), [("light", 0.6), ("atd-48-light", 0.9)])
def test_light_enlarges_shrunk_photographs_better_than_bicubic(name: str, gain: float):
    """By PSNR of luma."""
    light = Upscaler.from_pretrained(name)
    gains = []
    for lr, hr in pairs():
        both = (images.round8(light.upscale(lr).image), images.round8(images.resize(lr, hr.shape[2:])))
        better, worse = (psnr(*(for_fidelity(x, PROTOCOLS["basicsr"], 4) for x in (sr, hr))) for sr in both)
        gains.append(float(better - worse))
    assert np.mean(gains) > gain, gains


def test_upsr_makes_detail_that_atd_leaves_out():
    lr = next(pairs())[0]
    atd, upsr = (Upscaler.from_pretrained(name).upscale(lr).image for name in ("atd-48-light", "upsr-48-light"))
    detail = [(x[..., 1:] - x[..., :-1]).abs().mean() for x in (atd, upsr)]
    assert 1.1 < detail[1] / detail[0] < 3
    assert psnr(upsr, atd) > 20


def test_the_starter_samples_in_one_step_and_light_in_all():
    steps = [Upscaler.from_pretrained(name).diffuser.denoiser.process.steps for name in ("starter", "light")]  # type: ignore[union-attr]
    assert steps == [1, 5]
    assert Upscaler.from_pretrained("light", steps=1).diffuser.denoiser.process.steps == 1  # type: ignore[union-attr]


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


@pytest.mark.parametrize("kind", ["", "-light"])
def test_upsr_stands_on_the_atd_that_comes_alone(kind: str):
    alone, within = (load_pretrained(weights_file(name + kind)).parts["atd"] for name in ("atd-48", "upsr-48"))
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
