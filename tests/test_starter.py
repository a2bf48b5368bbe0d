"""The starter weights: there at once, better than bicubic, and what the sample scale begins from."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import yaml
from conftest import ROOT

from pipelines.training import initialise
from upsr import images
from upsr.__main__ import main
from upsr.checkpoint import STARTERS
from upsr.config import Params, parse
from upsr.evaluation.metrics import psnr
from upsr.evaluation.protocol import PROTOCOLS, for_fidelity
from upsr.inference.upscaler import Upscaler
from upsr.models import build_atd


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
    atd, upsr = (Upscaler.from_pretrained(STARTERS / name).upscale(lr).picture for name in ("atd-48", "upsr-48"))
    detail = [(x[..., 1:] - x[..., :-1]).abs().mean() for x in (atd, upsr)]
    assert 1.1 < detail[1] / detail[0] < 3
    assert psnr(upsr, atd) > 20


def test_the_sample_scale_begins_from_them(capsys):
    params = parse(Params, yaml.safe_load((ROOT / "params.yaml").read_text()), "params.yaml")
    assert params.train.init == "starter"
    atd = build_atd(params.atd, params.scale)
    fresh = {name: value.clone() for name, value in atd.state_dict().items()}
    initialise(atd, "atd", params.atd, params.scale, "starter")
    assert "atd: starts from" in capsys.readouterr().out
    assert any(not torch.equal(value, fresh[name]) for name, value in atd.state_dict().items())
    assert all(value.dtype == torch.float32 for value in atd.parameters())


def test_a_network_that_they_do_not_fit_starts_from_nothing(capsys):
    params = parse(Params, yaml.safe_load((ROOT / "params.yaml").read_text()), "params.yaml")
    wide = params.atd.model_copy(update={"dim": 32})
    torch.manual_seed(0)
    atd = build_atd(wide, 4)
    torch.manual_seed(0)
    initialise(atd, "atd", wide, 4, "starter")
    told = capsys.readouterr().out
    assert "starts from nothing" in told and "atd.dim: 48 -> 32" in told
    assert all(torch.equal(a, b) for a, b in zip(atd.parameters(), build_atd(wide, 4).parameters(), strict=True))
