"""Uncertainty: each variant's formula by hand, what sampling and training make of it, and what is refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import params, save_model
from torch import Tensor

from upsr import images
from upsr.__main__ import main
from upsr.config import ConfigError, Params
from upsr.degradation.pair_pool import PairPool
from upsr.degradation.second_order import build_degradation
from upsr.diffusion.denoiser import Denoiser, build_denoiser, upsample
from upsr.diffusion.detail import LearnedEdges, high_pass, sobel, unit
from upsr.diffusion.process import build_process
from upsr.diffusion.samplers import sample
from upsr.diffusion.uncertainty import (
    Analysis,
    Dynamic,
    EdgeFrequency,
    Isotropic,
    Residual,
    Variant,
    build_uncertainty,
    levelled,
    no_analysis,
    weight_at,
)
from upsr.images import to_signed
from upsr.inference.upscaler import Upscaler
from upsr.models.atd import build_atd
from upsr.models.unet import build_unet
from upsr.training.pairs import Pairs
from upsr.training.perceptual import PerceptualLoss
from upsr.training.unet_objective import UnetObjective

T = 5
FRACTIONS = [t / T for t in range(T + 1)]
EVERY = ["isotropic", "residual", "edge_frequency", "dynamic"]


def variant(name: str, **changes: Any) -> Variant:
    return build_uncertainty(params(uncertainty={"variant": name, **changes}).uncertainty)


def photograph(height: int = 48, width: int = 40) -> Tensor:
    """A part of a real picture, as LR."""
    from skimage.data import astronaut

    return images.to_tensor(astronaut()[100 : 100 + 4 * height : 4, 180 : 180 + 4 * width : 4])


def weights_along(uncertainty: Variant, y: Tensor, x: Tensor | None = None) -> list[Tensor]:
    """The weight at each step from T to 1, the current picture being `x` all the time, y↑ where none is given."""
    y_up = to_signed(upsample(y, 4))
    current = y_up if x is None else x
    weigh = uncertainty.weigher(y_up, y_up, uncertainty.analyse(y), FRACTIONS)
    return [weigh(T, y_up, y_up), *(weigh(t, current, current) for t in range(T - 1, 0, -1))]


# What detail is


def test_sobel_measures_a_slope_per_lr_pixel():
    ramp = (0.02 * torch.arange(12.0)).expand(1, 3, 8, 12)
    assert torch.allclose(sobel(ramp, 1)[..., 1:-1], torch.tensor(0.02), atol=1e-6)
    assert torch.allclose(sobel(ramp, 1 / 4)[..., 1:-1], torch.tensor(0.08), atol=1e-6)
    assert torch.allclose(sobel(ramp.transpose(2, 3), 1)[:, :, 1:-1], torch.tensor(0.02), atol=1e-6)


@pytest.mark.parametrize(("frequency", "kept"), [(0, 0), (0.125, 0), (0.25, 0), (0.375, 0.5), (0.5, 1), (0.875, 1)])
@pytest.mark.parametrize("pixel", [1, 0.25])
def test_the_high_pass_keeps_what_lies_above_its_edge(frequency: float, kept: float, pixel: float):
    """A cosine that fits the mirrored picture is one frequency: T is 0 up to .25, ½ at the cutoff, 1 from .5 on."""
    wave = torch.cos(math.pi * frequency * pixel * (torch.arange(64) + 0.5))
    x = (0.5 + 0.3 * wave).expand(1, 3, 16, 64)
    assert torch.allclose(high_pass(x, pixel, cutoff=0.375, softness=0.25), 0.3 * kept * wave.abs(), atol=1e-5)


def test_one_bright_speck_does_not_hide_the_rest():
    x = torch.full((1, 1, 10, 10), 0.2)
    x[..., 3, 3] = 9
    assert unit(x, 98).item() == pytest.approx(0.2)
    assert unit(torch.zeros(1, 1, 4, 4), 98).item() == pytest.approx(1 / 255)  # flat: nothing is an edge


# The variants' formulas


def constant(weigh: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
    one = torch.zeros(1)
    return weigh(1, one, one)


def test_the_residual_weight_by_hand():
    y_up = torch.zeros(1, 3, 1, 2)
    g_y = torch.tensor([0.1, 1.0, 0.0, 0.0, 0.04, 0.0]).view(1, 3, 1, 2)
    # ψ = |ŷ − y↑|/2 = .05, .5, 0, 0, .02, 0;  w = .4 + .6 · min(ψ, .1)/.1
    expected = torch.tensor([0.7, 1.0, 0.4, 0.4, 0.52, 0.4]).view(1, 3, 1, 2)
    weight = constant(Residual(0.4, 0.1, gray=False).weigher(y_up, g_y, no_analysis(y_up), FRACTIONS))
    assert torch.allclose(weight, expected)
    # gray: the channel means are .07/3 and .5/3
    gray = constant(Residual(0.4, 0.1, gray=True).weigher(y_up, g_y, no_analysis(y_up), FRACTIONS))
    assert gray[0, :, 0, 0].tolist() == pytest.approx([0.4 + 0.6 * 0.07 / 3 / 0.1] * 3)
    assert gray[0, :, 0, 1].tolist() == pytest.approx([1.0] * 3)


def test_isotropic_noise_is_the_same_everywhere():
    y_up = torch.rand(2, 3, 8, 8)
    assert torch.equal(constant(Isotropic().weigher(y_up, y_up, no_analysis(y_up), FRACTIONS)), torch.ones_like(y_up))


def test_the_edge_frequency_weight_by_hand():
    """w = b + (1−b)(a E + (1−a) H), a = sigmoid(mix) = ¼."""
    uncertainty = variant("edge_frequency", mix=0.25)
    maps = torch.tensor([[1.0, 0.5, 0.0, 0.2], [0.0, 1.0, 0.0, 0.6]]).view(1, 2, 2, 2)
    analysis = Analysis(maps, torch.ones(1, 2, 1, 1), maps.mean((2, 3), keepdim=True))
    y_up = torch.zeros(1, 3, 2, 2)
    weight = constant(uncertainty.weigher(y_up, y_up, analysis, FRACTIONS))
    assert weight.shape == y_up.shape
    for channel in weight[0]:
        assert channel.flatten().tolist() == pytest.approx([0.4 + 0.6 * w for w in (0.25, 0.875, 0, 0.5)])


def test_a_picture_gets_noise_where_its_edges_are():
    """From y to w: left half flat, right half a checkerboard, which is all edges and all high frequencies."""
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2
    y = torch.cat([torch.full((16, 16), 0.5), 0.2 + 0.6 * board], 1).expand(1, 3, 16, 32)
    uncertainty = variant("edge_frequency")
    y_up = upsample(y, 4)
    weight = constant(uncertainty.weigher(y_up, y_up, uncertainty.analyse(y), FRACTIONS))
    assert weight[..., :48].max() < 0.5
    assert weight[..., 80:].mean() > 0.65
    assert ((weight >= 0.4) & (weight <= 1)).all()


@pytest.mark.parametrize("target", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_levelled_map_has_the_mean_asked_for(target: float):
    share = torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    new = levelled(share, share.mean().view(1, 1, 1, 1), torch.full((1, 1, 1, 1), target))
    assert new.mean().item() == pytest.approx(target, abs=1e-6)
    assert ((new >= 0) & (new <= 1 + 1e-6)).all()
    order = share.flatten().argsort()
    assert (new.flatten()[order].diff() >= -1e-6).all()
    for flat in (torch.zeros_like(share), torch.ones_like(share)):
        new = levelled(flat, flat.mean().view(1, 1, 1, 1), torch.full((1, 1, 1, 1), target))
        assert torch.allclose(new, torch.tensor(target), atol=1e-6)


@pytest.mark.parametrize("name", ["edge_frequency", "dynamic"])
def test_normalised_noise_has_the_residual_variants_energy_whatever_is_learned(name: str):
    y = photograph()
    y_up = to_signed(upsample(y, 4))
    g_y = (y_up + 0.2 * torch.randn(y_up.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    expected = constant(variant("residual").weigher(y_up, g_y, no_analysis(y), FRACTIONS)).mean()
    uncertainty = variant(name, normalise="mean", mix=0.9)
    weigh = uncertainty.weigher(y_up, g_y, uncertainty.analyse(y), FRACTIONS)
    for t in range(T, 0, -1):
        weight = weigh(t, g_y, g_y)
        assert weight.mean().item() == pytest.approx(expected.item(), abs=2e-3 if t == T else 1e-5)
        # so that the mixing cannot save noise: the mean does not move with it
        slope = torch.autograd.grad(weight.mean(), uncertainty.mix, retain_graph=True)[0]
        free = torch.autograd.grad((weight * y_up).mean(), uncertainty.mix, retain_graph=True)[0]
        assert abs(slope.item()) < 0.05 * abs(free.item()) + 1e-6


# Dynamic


def test_dynamic_begins_as_edge_frequency():
    y = photograph()
    fixed, dynamic = variant("edge_frequency"), variant("dynamic")
    assert torch.equal(weights_along(dynamic, y)[0], weights_along(fixed, y)[0])


def test_dynamic_of_a_constant_picture_is_edge_frequency():
    y = torch.full((1, 3, 12, 10), 0.3)
    for a, b in zip(weights_along(variant("dynamic"), y), weights_along(variant("edge_frequency"), y), strict=True):
        assert torch.allclose(a, b, atol=1e-4)  # what rounding leaves of a difference of equal numbers


def test_dynamic_of_a_picture_that_stays_y_stays_near_edge_frequency():
    """Both measure in LR pixels: the same picture at HR size tells nearly the same."""
    y = photograph()
    fixed = weights_along(variant("edge_frequency"), y)[0]
    for weight in weights_along(variant("dynamic"), y):
        assert (weight - fixed).abs().mean() < 0.04


@pytest.mark.parametrize("source", ["x_t", "x0_hat"])
def test_dynamic_follows_its_source_smoothly(source: str):
    """One step by hand: maps ← λ·maps + (1−λ)·new, of p·x + (1−p)·y↑ with p = 1 − t/T."""
    uncertainty = variant("dynamic", dynamic={"source": source, "smoothing": 0.75, "intervals": [0.05, 0.03, 0.01]})
    assert isinstance(uncertainty, Dynamic)
    y = photograph()
    y_up = to_signed(upsample(y, 4))
    x_t, x0 = (torch.rand(y_up.shape, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in (1, 2))
    analysis = uncertainty.analyse(y)
    weigh = uncertainty.weigher(y_up, y_up, analysis, FRACTIONS)
    before, after = weigh(T, y_up, y_up), weigh(3, x_t, x0)
    mixed = 0.4 * (x_t if source == "x_t" else x0) + 0.6 * y_up
    maps = (uncertainty.base.magnitudes((mixed + 1) / 2, 1 / 4) / analysis.unit).clamp(max=1)
    new = 0.4 + 0.6 * maps.mean(1, keepdim=True)  # a is ½
    assert torch.allclose(after, 0.75 * before + 0.25 * new, atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, []),
        (2, [1]),
        (5, [4, 3, 2, 1]),
        (60, [57, 54, 51, 48, 45, 42, *range(40, 20, -2), *range(20, 0, -1)]),
    ],
)
def test_the_weight_is_recomputed_ever_more_often(steps: int, expected: list[int]):
    uncertainty = variant("dynamic")
    assert uncertainty.times(steps) == expected
    thousand = uncertainty.times(1000)
    gaps = -np.diff([1000, *thousand])
    assert list(gaps[:6]) == [50] * 6
    assert 30 in gaps
    assert list(gaps[-30:]) == [10] * 30


def test_training_walks_the_weights_that_sampling_finds():
    """Sampling that knows x0 and starts at the mean of q stays on the means: its weights must be training's."""
    uncertainty = variant("dynamic", dynamic={"source": "x_t", "smoothing": 0.5, "intervals": [0.05, 0.03, 0.01]})
    process = build_process(params(diffusion={"steps": T}).diffusion)
    y = photograph(16, 16).expand(T, -1, -1, -1)
    y_up = to_signed(upsample(y, 4))
    x0 = torch.rand(y_up.shape, generator=torch.Generator().manual_seed(0)).mul(2).sub(1)[:1].expand_as(y_up)
    analysis = uncertainty.analyse(y)
    found: dict[int, Tensor] = {}
    weigh = uncertainty.weigher(y_up, y_up, analysis, FRACTIONS)

    def keeping(t: int, x: Tensor, estimate: Tensor) -> Tensor:
        found[t] = weigh(t, x, estimate)
        return found[t]

    t = torch.arange(1, T + 1)  # each sample has its own

    def q_mean(time: int) -> Tensor:
        return process.q_mean(x0, y_up, torch.full_like(t, time))

    def noise(time: int) -> Tensor:
        return (q_mean(time) - y_up) / (process.noise_level(torch.full_like(t, time)) * found[time])

    sample(lambda x, t, w: x0, process, y_up, keeping, noise)

    trained = weight_at(
        uncertainty.weigher(y_up, y_up, analysis, FRACTIONS), uncertainty.times(T), q_mean, x0, y_up, t, T
    )
    for i in range(T):
        assert torch.allclose(trained[i], found[i + 1][i], atol=1e-4), i
    assert not torch.allclose(found[5], found[1], atol=0.05)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("predict", ["x0", "epsilon"])
def test_states_under_a_dynamic_weight_have_the_forward_marginal(eta: float, predict: str):
    """By simulation: (x_t − q_mean) / (κ √η_t w_t) is standard normal at every step, though w changes on the way."""
    p = params(diffusion={"steps": T, "predict": predict})
    process, uncertainty = build_process(p.diffusion), variant("dynamic")
    n = 150
    y = photograph(8, 8).expand(n, -1, -1, -1)
    y_up = to_signed(upsample(y, 4))
    x0 = (y_up + 0.3 * torch.randn(y_up[:1].shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)
    weigh = uncertainty.weigher(y_up, y_up, uncertainty.analyse(y), FRACTIONS)
    generator = torch.Generator().manual_seed(0)
    changes: list[float] = []
    first = weigh(T, y_up, y_up)

    @torch.no_grad()
    def denoise(x: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        normal = (x - process.q_mean(x0, y_up, t)) / (process.noise_level(t) * weight)
        assert normal.std().item() == pytest.approx(1, rel=0.02)
        assert normal.std(0).min() > 0.7  # everywhere, not on the whole alone
        changes.append((weight - first).abs().max().item())
        return x0

    noise = lambda _: torch.randn(y_up.shape, generator=generator)  # noqa: E731
    with torch.no_grad():
        sample(denoise, process, y_up, weigh, noise, eta)
    assert changes[0] == 0
    assert min(changes[1:]) > 0.05


# With the networks


def denoiser(p: Params) -> Denoiser:
    torch.manual_seed(0)
    return build_denoiser(build_unet(p.unet, 4), unet=p.unet, diffusion=p.diffusion, uncertainty=p.uncertainty, scale=4)


@pytest.mark.parametrize("predict", ["x0", "epsilon"])
@pytest.mark.parametrize("normalise", ["none", "mean"])
@pytest.mark.parametrize(("name", "learned"), [("edge_frequency", True), ("dynamic", True), ("dynamic", False)])
def test_gradients_reach_the_mixing_weight(name: str, learned: bool, normalise: str, predict: str):
    uncertainty = {"variant": name, "learn_mix": learned, "normalise": normalise}
    p = params(uncertainty=uncertainty, diffusion={"predict": predict, "steps": 3})
    pairs = Pairs(build_degradation(p.degradation, 4), PairPool(0, 1))
    objective = UnetObjective(pairs, PerceptualLoss(0, "proper", ""), build_atd(p.atd, 4), 4)
    network = denoiser(p)
    hr = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8))
    loss, values = objective.loss(network, *objective.draw(hr, (0, 0)))
    loss.backward()
    mix = network.uncertainty.mix
    assert (mix.grad is not None and mix.grad.item() != 0) is learned
    assert values["mix"].item() == pytest.approx(0.5)
    assert 0.4 <= values["weight"] <= 1


MAPS = {
    "isotropic": {"residual", "weight"},
    "residual": {"residual", "mix", "weight"},
    "edge_frequency": {"residual", "edge", "frequency", "mix", "weight"},
    "dynamic": {"residual", "edge", "frequency", "mix", "weight", "weights"},
}


@pytest.mark.parametrize("name", EVERY)
def test_every_variant_upscales_and_shows_its_maps(name: str, tmp_path: Path):
    branches = 1 if name == "isotropic" else 2
    p = params(uncertainty={"variant": name}, unet={"branches": branches}, diffusion={"steps": 3, "sampler_eta": 0.5})
    model = save_model(tmp_path / "model", p)
    images.write(tmp_path / "in.png", images.to_image(photograph(21, 24)))
    main(["upscale", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--model", str(model), "--save-maps"])
    assert images.read(tmp_path / "out.png").shape == (84, 96, 3)
    assert {f.name.split(".")[1] for f in tmp_path.glob("out.*.png")} == MAPS[name]
    if name == "dynamic":  # three steps, side by side
        assert images.read(tmp_path / "out.weights.png").shape[1] > 3 * 96


@pytest.mark.parametrize("normalise", ["none", "mean"])
@pytest.mark.parametrize("name", ["edge_frequency", "dynamic"])
def test_tiles_take_the_weight_from_the_whole_picture(name: str, normalise: str, tmp_path: Path):
    """A tile in the flat half of a picture must not find edges there because it sees nothing else."""
    y = torch.cat(
        [0.5 + 0.004 * torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0)), photograph(48, 48)], 3
    )
    p = params(uncertainty={"variant": name, "normalise": normalise}, diffusion={"steps": 2})
    upscaler = Upscaler.from_pretrained(save_model(tmp_path, p))
    whole, tiled = upscaler.upscale(y, tile=96), upscaler.upscale(y, tile=32)
    difference = (whole.maps["weight"] - tiled.maps["weight"]).abs()
    assert difference.mean() < 0.01
    assert whole.maps["weight"][..., :160].mean() < whole.maps["weight"][..., 224:].mean()


# The learned edge detector


def test_a_learned_detector_travels_with_the_model(tmp_path: Path):
    torch.manual_seed(0)
    path = tmp_path / "dexined.pth"
    torch.save(LearnedEdges().network.state_dict(), path)
    p = params(uncertainty={"variant": "edge_frequency", "edges": "dexined", "edge_weights": str(path)})
    detector = LearnedEdges()
    detector.load(path)
    expected = detector(photograph(37, 21), 1)
    assert expected.shape == (1, 1, 37, 21)
    assert ((expected >= 0) & (expected <= 1)).all()
    uncertainty = build_uncertainty(p.uncertainty)
    assert isinstance(uncertainty, EdgeFrequency)
    uncertainty.detector.load_state_dict(detector.state_dict())
    assert not uncertainty.train().detector.network.training
    assert [name for name, weight in uncertainty.named_parameters() if weight.requires_grad] == ["mix"]
    assert torch.equal(uncertainty.magnitudes(photograph(37, 21), 1)[:, :1], expected)


def test_other_files_are_no_detector(tmp_path: Path):
    (tmp_path / "wrong.pth").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"wrong\.pth: not the weights of kornia's DexiNed"):
        LearnedEdges().load(tmp_path / "wrong.pth")


# What makes no sense is refused before any work


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "isotropic", "normalise": "mean"}, "`isotropic` is 1 everywhere"),
        ({"variant": "edge_frequency", "edges": "dexined"}, r"uncertainty\.edge_weights"),
        ({"variant": "edge_frequency", "edges": "dexined", "edge_weights": "no.pth"}, r"no\.pth: no such file"),
        ({"variant": "edge_frequency", "softness": 0.7}, "mean brightness"),
        ({"variant": "edge_frequency", "mix": 1}, "less than 1"),
    ],
)
def test_choices_that_do_not_fit_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        params(uncertainty=changes)
