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
    no_analysis,
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
    analysis = Analysis(maps, torch.ones(1, 2, 1, 1))
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


@pytest.mark.parametrize("name", ["residual", "edge_frequency", "dynamic"])
def test_an_inverted_variant_puts_less_noise_where_the_variant_puts_more(name: str):
    y = photograph()
    y_up = to_signed(upsample(y, 4))
    g_y = (y_up + 0.2 * torch.randn(y_up.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    plain, inverted = (variant(name, invert=invert) for invert in (False, True))
    first, second = (v.weigher(y_up, g_y, v.analyse(y), FRACTIONS)(T, y_up, y_up) for v in (plain, inverted))
    assert torch.allclose(first + second, torch.tensor(0.4 + 1.0), atol=1e-6)  # W + (1 − W)


def test_the_unit_of_the_training_patches_is_the_same_for_every_image():
    """A nearly flat image has no edges by the unit of the training patches; by its own, its faintest change is one."""
    uncertainty = variant("edge_frequency", unit="training")
    patches = photograph(64, 64).unfold(2, 16, 16).unfold(3, 16, 16).reshape(3, 16, 16, 16).transpose(0, 1)
    uncertainty.calibrate(patches, lambda: torch.tensor(0.3))
    whole = uncertainty.magnitudes(patches, 1).movedim(0, 1).flatten(1)
    for unit_, magnitudes in zip(uncertainty.one_unit.flatten(), whole, strict=True):
        assert (magnitudes <= unit_).float().mean().item() == pytest.approx(0.98, abs=0.01)
    faint = 0.5 + 0.02 * (photograph(64, 64) - 0.5)
    assert uncertainty.analyse(faint).maps.mean() < 0.02
    assert variant("edge_frequency").analyse(faint).maps.mean() > 0.1
    assert torch.equal(uncertainty.analyse(faint).unit, uncertainty.analyse(photograph()).unit)


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


class Expert(torch.nn.Module):
    """A network that knows the answer, and counts its calls."""

    def __init__(self, x0: Tensor) -> None:
        super().__init__()
        self.x0, self.calls = x0, 0

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        self.calls += 1
        return self.x0[: len(x)]


@pytest.mark.parametrize("steps", [5, 60])
@pytest.mark.parametrize("source", ["x_t", "x0_hat"])
def test_training_has_the_states_and_weights_of_sampling(source: str, steps: int):
    """Where the network's answers are right, a rolled-out sample is the sampler's state, at every t."""
    dynamic = {"source": source, "smoothing": 0.5, "intervals": [0.05, 0.03, 0.01]}
    p = params(uncertainty={"variant": "dynamic", "dynamic": dynamic}, diffusion={"steps": steps})
    y = photograph(16, 16)
    y_up = to_signed(upsample(y, 4))
    x0 = (y_up + 0.2 * torch.randn(y_up.shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)
    noise = torch.randn(y_up.shape, generator=torch.Generator().manual_seed(2))
    network = Expert(x0)
    denoiser = build_denoiser(network, unet=p.unet, diffusion=p.diffusion, uncertainty=p.uncertainty, scale=4)
    weigh, states = denoiser.weigher(y_up, x0, denoiser.uncertainty.analyse(y)), {}

    def denoise(x: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        states[int(t)] = x, weight
        return x0

    # From x_T with x0's share 1 − η_T, as in training; g(y) is as good as x0, so that looks before the last see it too.
    noise_at_t = noise + (1 - denoiser.process.eta(torch.tensor([steps]))) * (x0 - y_up) / (
        denoiser.process.noise_level(torch.tensor([steps])) * weigh(steps, y_up, y_up)
    )
    sample(denoise, denoiser.process, y_up, weigh, lambda _: noise_at_t)
    for t in sorted({1, 2, steps // 2, steps - 1}):
        for rolled in (False, True):
            x_t, weight = denoiser.perturb(x0, y, y_up, x0, noise, torch.tensor([t]), torch.tensor([rolled]))
            assert torch.allclose(weight, states[t][1], atol=2e-3), (t, rolled)
            assert torch.allclose(x_t, states[t][0], atol=5e-3), (t, rolled)
    assert not torch.allclose(states[steps][1], states[1][1], atol=0.05)
    assert network.calls == 4 if steps == 60 else 3


@pytest.mark.parametrize("rolled", [False, True])
@pytest.mark.parametrize("source", ["x_t", "x0_hat"])
@pytest.mark.parametrize("name", EVERY)
def test_the_weight_in_training_does_not_know_the_answer(name: str, source: str, rolled: bool):
    """Another x0 with an ε that gives the same x_T changes no weight at T−1, where only x_T was seen."""
    p = params(uncertainty={"variant": name, "dynamic": {"source": source}}, diffusion={"steps": T})
    y = photograph(16, 16)
    y_up = to_signed(upsample(y, 4))
    denoiser = build_denoiser(
        Expert(0.5 * y_up), unet=p.unet, diffusion=p.diffusion, uncertainty=p.uncertainty, scale=4
    )
    generator = torch.Generator().manual_seed(0)
    answers = [(y_up + 0.5 * torch.randn(y_up.shape, generator=generator)).clamp(-1, 1) for _ in range(2)]
    process, last, flag = denoiser.process, torch.tensor([T]), torch.tensor([rolled])
    noise = torch.randn(y_up.shape, generator=generator)
    first = denoiser.perturb(answers[0], y, y_up, y_up, noise, last, torch.tensor([False]))
    noises = [noise, process.epsilon(first[0], answers[1], y_up, first[1], last)]
    weights = [denoiser.perturb(x0, y, y_up, y_up, e, last - 1, flag)[1] for x0, e in zip(answers, noises, strict=True)]
    assert torch.allclose(*weights, atol=1e-3)


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


def photograph_at(number: int) -> np.ndarray:
    """One of ten patches of a photograph, (3, 64, 64) uint8."""
    from skimage.data import astronaut

    top = 40 * number
    return np.ascontiguousarray(astronaut()[top : top + 64, top : top + 64].transpose(2, 0, 1))


def objective_of(p: Params) -> UnetObjective:
    torch.manual_seed(0)
    pairs = Pairs(build_degradation(p.degradation, 4), PairPool(0, 1))
    return UnetObjective(pairs, PerceptualLoss(0, "proper", ""), build_atd(p.atd, 4), 4)


def denoiser(p: Params) -> Denoiser:
    torch.manual_seed(0)
    return build_denoiser(build_unet(p.unet, 4), unet=p.unet, diffusion=p.diffusion, uncertainty=p.uncertainty, scale=4)


@pytest.mark.parametrize("predict", ["x0", "epsilon"])
@pytest.mark.parametrize("normalise", ["none", "energy"])
@pytest.mark.parametrize(("name", "learned"), [("edge_frequency", True), ("dynamic", True), ("dynamic", False)])
def test_gradients_reach_the_mixing_weight(name: str, learned: bool, normalise: str, predict: str):
    uncertainty = {"variant": name, "learn_mix": learned, "normalise": normalise}
    p = params(uncertainty=uncertainty, diffusion={"predict": predict, "steps": 3})
    objective, network = objective_of(p), denoiser(p)
    hr = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8))
    objective.calibrate(network, hr, 0)
    loss, values = objective.loss(network, *objective.draw(hr, (0, 0)))
    loss.backward()
    mix = network.uncertainty.mix
    assert (mix.grad is not None and mix.grad.item() != 0) is learned
    assert values["mix"].item() == pytest.approx(0.5)
    assert 0.4 <= values["weight"] <= 1


@pytest.mark.parametrize("name", EVERY)
def test_every_variant_has_the_same_noise_energy_whatever_it_learns(name: str):
    """`normalise: energy`: the mean of (κ_v w)² over images, pixels and timesteps is κ² · `energy`."""
    p = params(uncertainty={"variant": name, "normalise": "energy", "energy": 0.22}, diffusion={"steps": T})
    objective = objective_of(p)
    patches = np.stack([photograph_at(i) for i in range(10)])
    network = denoiser(p)
    objective.calibrate(network, torch.from_numpy(patches), 0)
    for logit in [0.0, 1.5, -1.5] if name in ("edge_frequency", "dynamic") else [0.0]:
        if logit:
            with torch.no_grad():
                network.uncertainty.mix.fill_(logit)
        lr, hr, _, noise, rolled, _ = objective.draw(torch.from_numpy(patches), (0,))
        x0, y_up, g_y = objective._images(lr, hr)
        t = torch.arange(len(hr)) % T + 1
        weight = network.perturb(x0, lr, y_up, g_y, noise, t, rolled)[1]
        energy = (network.process.kappa * weight).square().mean() / 2.5**2
        assert energy.item() == pytest.approx(0.22, rel=0.05 if name == "dynamic" else 0.02), logit


def test_an_energy_that_was_not_measured_does_not_pass_for_a_number():
    p = params(uncertainty={"variant": "residual", "normalise": "energy"})
    assert torch.isnan(torch.as_tensor(denoiser(p).process.kappa))


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


@pytest.mark.parametrize("name", ["edge_frequency", "dynamic"])
def test_tiles_take_the_weight_from_the_whole_picture(name: str, tmp_path: Path):
    """A tile in the flat half of a picture must not find edges there because it sees nothing else."""
    y = torch.cat(
        [0.5 + 0.004 * torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0)), photograph(48, 48)], 3
    )
    p = params(uncertainty={"variant": name}, diffusion={"steps": 2})
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
        ({"variant": "isotropic", "invert": True}, "`isotropic` is 1 everywhere"),
        ({"variant": "edge_frequency", "edges": "dexined"}, r"uncertainty\.edge_weights"),
        ({"variant": "edge_frequency", "edges": "dexined", "edge_weights": "no.pth"}, r"no\.pth: no such file"),
        ({"variant": "edge_frequency", "softness": 0.7}, "mean brightness"),
        ({"variant": "edge_frequency", "mix": 1}, "less than 1"),
    ],
)
def test_choices_that_do_not_fit_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        params(uncertainty=changes)
