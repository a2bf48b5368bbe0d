"""`upsr bench chain`: does the network use x_t? A small network trained for a minute or two must."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, SHARED, params
from torch import Tensor

from pipelines.train_unet import fresh_denoiser
from upsr import images
from upsr.__main__ import main
from upsr.bench.chain import COLUMNS, Chain, report
from upsr.config import Atd
from upsr.degradation.second_order import build_degradation
from upsr.models.atd import build_atd
from upsr.pretrained import FILE, load_pretrained, save_pretrained, weights_file
from upsr.training.ema import Ema
from upsr.training.unet_objective import build_unet_objective


def chain(**lpips_and_psnr: list[float]) -> Chain:
    """A chain of two steps: each argument is [at t = 1, at t = 2]."""
    values = {m: {c: [0.0, 0.0] for c in COLUMNS} for m in ("psnr", "lpips")}
    for name, at in lpips_and_psnr.items():
        metric, column = name.split("_", 1)
        values[metric][{"x": COLUMNS[0], "true": COLUMNS[1], "sampled": COLUMNS[2]}[column]] = at
    return Chain(values, {"psnr": 25.0, "lpips": 0.4}, images=3)


def test_a_network_that_uses_what_it_is_given_has_no_faults():
    good = chain(psnr_x=[35, 13], psnr_true=[36, 25], psnr_sampled=[24, 25], lpips_sampled=[0.3, 0.4])
    assert good.faults() == []
    assert "the network uses x_t at every t" in report(good)


def test_a_network_that_loses_what_x_t_shows_is_told():
    lost = chain(psnr_x=[35, 13], psnr_true=[30.5, 25], psnr_sampled=[25, 25])
    assert lost.faults() == [
        "t = 1: a true x_t has 35.00 dB, and its x̂0 only 30.50 dB: the network loses what x_t shows"
    ]


def test_a_chain_that_gets_worse_in_both_is_told():
    worse = chain(psnr_x=[1, 1], psnr_true=[2, 2], psnr_sampled=[24, 25], lpips_sampled=[0.5, 0.4])
    assert "along the sampled chain x̂0 gets worse in both: PSNR 25.00 to 24.00 dB" in report(worse)
    only_psnr = chain(psnr_x=[1, 1], psnr_true=[2, 2], psnr_sampled=[24, 25], lpips_sampled=[0.4, 0.4])
    assert only_psnr.faults() == []


# A small network, trained


SMALL = {
    "dim": 16, "channel_mult": [1, 2], "res_blocks": 1, "swin_dim": 32, "mlp_ratio": 2, "tail_dim": 32, "lr_size": 16,
    "sigma_data": 0.13,
}  # fmt: skip
STEPS, BATCH, SIDE = 150, 8, 64
MILD = yaml.safe_load((ROOT / "scales/study.yaml").read_text())["settings"]["degradation"] | {"plain": 0.0}


def patches(count: int, seed: int) -> Tensor:
    """Random patches of sample photographs, (B, 3, 64, 64) uint8."""
    import skimage.data

    photographs = [getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee")]
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        image = photographs[i % len(photographs)]
        top, left = (rng.integers(size - SIDE + 1) for size in image.shape[:2])
        found.append(torch.from_numpy(image[top : top + SIDE, left : left + SIDE].copy()).permute(2, 0, 1))
    return torch.stack(found)


def trained(unet: dict[str, object], weights: Path, folder: Path) -> Path:
    """A model folder: the bundled ATD, and a small UNet trained for a minute or two on other photographs."""
    p = params(
        degradation=MILD,
        unet={**SMALL, **unet},
        diffusion={"steps": 5},
        train_unet={"batch": BATCH, "micro_batch": BATCH, "pool": 0, "lpips_share": 0.25, "rollout": 0.25},
    )
    file = load_pretrained(weights_file("atd-48-light"))
    atd = build_atd(file.section("atd", Atd), 4)
    atd.load_state_dict(file.parts["atd"])
    torch.manual_seed(0)
    denoiser = fresh_denoiser(p)
    objective = build_unet_objective(p, atd, weights)
    adam = torch.optim.AdamW(denoiser.parameters(), lr=1e-3)
    ema = Ema(denoiser, 0.97)
    for step in range(STEPS):
        loss, _ = objective.loss(denoiser, *objective.draw(patches(BATCH, step), (0, step)))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        for group in adam.param_groups:
            group["lr"] = 1e-3 * min(1, 5 * (STEPS - step) / STEPS)
        adam.step()
        ema.update(denoiser, skip=torch.tensor(False))
    denoiser = ema.network
    parts = {"atd": file.parts["atd"], "unet": denoiser.network.state_dict()}
    parts["uncertainty"] = denoiser.uncertainty.state_dict()
    sections = {"unet": p.unet, "diffusion": p.diffusion, "uncertainty": p.uncertainty}
    save_pretrained(folder / FILE, parts, {"scale": 4, "atd": file.section("atd", Atd), **sections})
    return folder


def benchmark(folder: Path) -> Path:
    """Centres of twelve images of BSD100, degraded as in training."""
    if not (SHARED / "benchmarks/BSD100").is_dir():
        pytest.skip("no BSD100: what a network makes of held-out images cannot be measured")
    degrade = build_degradation(params(degradation=MILD).degradation, 4)
    for path in images.find(SHARED / "benchmarks/BSD100/HR")[:12]:
        hr = images.read_rgb(path)
        top, left = ((size - 2 * SIDE) // 2 for size in hr.shape[:2])
        x = images.to_tensor(hr[top : top + 2 * SIDE, left : left + 2 * SIDE].copy())
        images.write(folder / f"HR/{path.stem}.png", images.to_image(x))
        images.write(folder / f"LRx4/{path.stem}.png", images.to_image(degrade.named(x, path.stem)[0]))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_small_network_uses_x_t_and_one_that_only_corrects_g_does_not(weights: Path, tmp_path: Path, capsys):
    """The gate: a true x_t, denoised, is at least as good as it was at every t, and the sampled chain gains."""
    data = benchmark(tmp_path / "held-out")
    printed = {}
    for skip in ("edm", "condition"):
        model = trained({"skip": skip, "hr_inputs": skip == "edm"}, weights, tmp_path / skip)
        arguments = ["--model", str(model), "--benchmark", str(data), "--weights", str(weights)]
        main(["bench", "chain", *arguments, "--side", "32", "-o", str(tmp_path / f"{skip}.png")])
        printed[skip] = capsys.readouterr().out
        assert images.read_rgb(tmp_path / f"{skip}.png").std() > 10
    assert "the network uses x_t at every t" in printed["edm"], printed["edm"]
    assert "t = 1: a true x_t has" in printed["condition"], printed["condition"]
