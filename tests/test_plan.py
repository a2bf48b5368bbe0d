"""The plan counts what METHOD's figures say, without the memory or the time of a step."""

from pathlib import Path

import pytest
import yaml
from conftest import ROOT, merged, params, save_model, settings

from pipelines.plan import plan, trainings
from upsr.config import Params, parse


@pytest.mark.slow
def test_the_papers_networks_are_counted_as_the_paper_counts_them(weights, monkeypatch: pytest.MonkeyPatch):
    """UNet 160: 119.42 M parameters, 148 GFLOP forward at 64×64, of which 36 are for convolutions of enlarged features,
    that take 4/9 here; ATD 96: 2.532 M and 34 GFLOP. Backward is twice that, and LPIPS-VGG, which takes about 40 GFLOP
    a picture of 256×256, sees two pictures and goes back through one."""
    monkeypatch.chdir(weights.parents[1])
    scale = yaml.safe_load((ROOT / "scales" / "df2k.yaml").read_text())
    paper = merged(yaml.safe_load((ROOT / "params.yaml").read_text()), scale)
    (_, _, x2), (_, _, atd), (_, recipe, unet) = trainings(parse(Params, paper, "df2k"))
    assert unet.parameters == pytest.approx(119.42e6, rel=1e-3)
    assert atd.parameters == pytest.approx(2.532e6, rel=1e-3)
    assert unet.flops / recipe.batch == pytest.approx((3 * (148 - 36 * 5 / 9) + 34 + 3 * 40) * 1e9, rel=0.03)
    assert atd.flops / recipe.batch == pytest.approx((3 * 34 + 4 * 40) * 1e9, rel=0.25)
    assert x2.flops < atd.flops


def test_recomputed_activations_are_not_kept(weights, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(weights.parents[1])
    plain, short = (trainings(params(train={"checkpointing": on})) for on in (False, True))
    for (_, _, kept), (_, _, recomputed) in zip(plain, short, strict=True):
        assert recomputed.activations < kept.activations
        assert recomputed.flops > kept.flops


def test_every_stage_has_a_line(weights, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(weights.parents[1])
    text = plan(parse(Params, settings(), "test"))
    for stage in ("download", "crop", "pack", "train_atd x4", "train_unet", "evaluate"):
        assert f"\n{stage}  " in text


def test_the_images_of_a_teacher_are_counted(weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Five forward passes; a forward and a backward pass, worth three, for each step of the student."""
    monkeypatch.chdir(weights.parents[1])
    model = str(save_model(tmp_path, params(diffusion={"steps": 5})))
    none, one, two = (
        trainings(params(diffusion={"steps": steps}, train_unet={"teacher": teacher}))[-1][2].flops
        for steps, teacher in ((1, None), (1, model), (2, model))
    )
    assert (two - none) / (one - none) == pytest.approx((5 + 2 * 3) / (5 + 3), rel=0.03)
