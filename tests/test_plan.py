"""The plan counts what METHOD's figures say, without the memory or the time of a step."""

from pathlib import Path

import pytest
import yaml
from conftest import ROOT, merged, params, save_model, settings

from pipelines.plan import plan, trainings
from upsr.acquisition.archives import UNKNOWN_SIZE
from upsr.acquisition.space import data_sizes
from upsr.config import Params, parse


@pytest.mark.slow
def test_the_papers_networks_are_counted_as_the_paper_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """UNet 160: 119.42 M parameters, 148 GFLOP forward at 64×64, of which 36 are for convolutions of enlarged features,
    that take 4/9 here; ATD 96: 2.532 M and 34 GFLOP. Backward is twice that, and LPIPS-VGG, which takes about 40 GFLOP
    a picture of 256×256, sees two pictures and goes back through one."""
    monkeypatch.chdir(tmp_path)
    scale = yaml.safe_load((ROOT / "scales" / "df2k.yaml").read_text())
    paper = merged(yaml.safe_load((ROOT / "params.yaml").read_text()), scale)
    (_, _, x2), (_, _, atd), (_, recipe, unet) = trainings(parse(Params, paper, "df2k"))
    assert unet.parameters == pytest.approx(119.42e6, rel=1e-3)
    assert atd.parameters == pytest.approx(2.532e6, rel=1e-3)
    assert unet.flops / recipe.batch == pytest.approx((3 * (148 - 36 * 5 / 9) + 34 + 3 * 40) * 1e9, rel=0.03)
    assert atd.flops / recipe.batch == pytest.approx((3 * 34 + 4 * 40) * 1e9, rel=0.25)
    assert x2.flops < atd.flops


def test_recomputed_activations_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    plain, short = (trainings(params(train={"checkpointing": on})) for on in (False, True))
    for (_, _, kept), (_, _, recomputed) in zip(plain, short, strict=True):
        assert recomputed.activations < kept.activations
        assert recomputed.flops > kept.flops


def test_every_stage_has_a_line_before_there_is_any_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    text = plan(parse(Params, settings(), "test"))
    for stage in ("download", "crop", "pack", "train_atd x4", "train_unet", "evaluate"):
        assert f"\n{stage}  " in text
    assert text.count("here: ") == text.count("one H100: ") == 2
    assert not list(tmp_path.iterdir())


DF2K = {
    "data": {"source": "df2k", "holdout": ["0801"], "validation": ["0805", "0809"]},
    "crop": {"size": 480, "step": 240},
}


def test_the_disk_space_of_df2k_is_known_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """BasicSR's 32,592 sub-images of DIV2K's 800 images repeat each pixel 3.4 times."""
    monkeypatch.chdir(tmp_path)
    p = params(**DF2K)
    download, crop, pack = data_sizes(p).values()
    assert download.total == 3530603713 + 448993893 + UNKNOWN_SIZE + 19_500_000_000
    images = 19_000_000_000
    assert crop.total / images == pytest.approx(32592 * 480**2 / (800 * 2040 * 1356), rel=0.05)
    assert pack.total == pack.missing == crop.total
    half = tmp_path / "data" / "subimages" / "a.png"
    half.parent.mkdir(parents=True)
    with half.open("wb") as file:
        file.truncate(30_000_000_000)
    assert data_sizes(p)["crop"].missing == crop.total - 30_000_000_000


def test_the_images_of_a_teacher_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Five forward passes; a forward and a backward pass, worth three, for each step of the student."""
    monkeypatch.chdir(tmp_path)
    model = str(save_model(tmp_path, params(diffusion={"steps": 5})))
    none, one, two = (
        trainings(params(diffusion={"steps": steps}, train_unet={"teacher": teacher}))[-1][2].flops
        for steps, teacher in ((1, None), (1, model), (2, model))
    )
    assert (two - none) / (one - none) == pytest.approx((5 + 2 * 3) / (5 + 3), rel=0.03)
