"""The diffusion: the released code's numbers, and laws that hold whatever the numbers."""

import pytest
import torch
from conftest import fixture_file, params
from torch import Tensor

from upsr.diffusion.denoiser import Denoiser
from upsr.diffusion.noise import field
from upsr.diffusion.process import Process, build_process
from upsr.diffusion.samplers import sample
from upsr.diffusion.schedule import respace, sqrt_eta_schedule
from upsr.diffusion.uncertainty import Isotropic, Residual, Variant, no_analysis
from upsr.images import to_signed, to_unit
from upsr.models.unet import build_unet
from upsr.official import DERIVED, read_unet

PLAIN = {"scale": 4, "uncertainty": Isotropic(), "condition": ["sr", "bicubic"]}
PAPER = {"kappa": 2.5, "min_noise": 0.2, "end": 0.99}


def process(steps: int = 5, power: float = 0.2) -> Process:
    return Process(sqrt_eta_schedule(steps, power=power, **PAPER), PAPER["kappa"])


def distance(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def pictures(*names: str, seed: int = 0, size: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(2, 3, size, size, generator=generator) * 2 - 1 for _ in names]


def weight_like(x: Tensor) -> Tensor:
    return 0.4 + 0.6 * torch.rand(x.shape, generator=torch.Generator().manual_seed(9))


def weight_of(uncertainty: Variant, y_up: Tensor, g_y: Tensor) -> Tensor:
    """The weight of a variant that takes nothing from y."""
    return uncertainty.weigher(y_up, g_y, no_analysis(y_up), [0, 1])(1, y_up, y_up)


# Parity


@pytest.mark.parametrize(("steps", "power"), [(5, 0.2), (15, 0.3), (200, 0.2)])
def test_schedules_are_the_released_ones(steps: int, power: float):
    _, _, tensors = fixture_file("diffusion")
    assert distance(process(steps, power).sqrt_eta[1:], tensors[f"sqrt_eta.T{steps}.p{power}"]) < 1e-12


def test_forward_posterior_and_weight_are_the_released_ones():
    _, _, f = fixture_file("diffusion")
    t = f["t"] + 1
    weight = weight_of(Residual(floor=0.4, psi_max=0.1, gray=False), f["y_up"], f["g_y"])
    assert distance(weight, f["weight"]) < 1e-6
    x_t = process().q_sample(f["x0"], f["y_up"], weight, f["noise"], t)
    mean, variance = process().posterior(x_t, f["x0"], weight, t)
    assert distance(x_t, f["q_sample"]) < 1e-5
    assert distance(mean, f["post_mean"]) < 1e-5
    assert distance(variance, f["post_var"]) < 1e-5


@torch.inference_mode()
def test_loss_and_sampler_are_the_released_ones():
    _, _, f = fixture_file("diffusion")
    _, state, _ = fixture_file("unet")
    network = build_unet(*read_unet(state)).eval()
    network.load_state_dict({k: v for k, v in state.items() if not k.endswith(DERIVED)})
    denoiser = Denoiser(
        network,
        process(),
        scale=4,
        uncertainty=Isotropic(),
        condition=["sr", "bicubic"],
        predict="x0",
    )
    condition = denoiser.condition(f["g_y"], f["y_up"])
    estimate = denoiser(f["q_sample"], f["t"] + 1, condition, f["y_up"], f["weight"])
    assert distance(((estimate - f["x0"]) ** 2).flatten(1).mean(1), f["mse_per_sample"]) < 1e-5

    states = []

    def denoise(x: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        states.append(x)
        return denoiser.denoise(condition, f["y_up"])(x, t, weight)

    last = sample(denoise, process(), f["y_up"], lambda *_: f["weight"], lambda _: f["noise"])
    for i, x in enumerate([*states[1:], last]):
        assert distance(x, f[f"ddim_step{i}"]) < 1e-4, i


# Laws


@pytest.mark.parametrize("steps", [1, 2, 5, 50])
def test_the_schedule_rises_from_nothing_to_its_end(steps: int):
    sqrt_eta = process(steps).sqrt_eta
    assert len(sqrt_eta) == steps + 1
    assert sqrt_eta[0] == 0
    assert sqrt_eta[-1] == pytest.approx(0.99)
    assert (sqrt_eta.diff() > 0).all()


@pytest.mark.parametrize("used", [1, 2, 3, 7, 15])
def test_respacing_keeps_the_largest_noise_level(used: int):
    times = respace(15, used)
    assert len(times) == used
    assert times[-1] == 15
    assert process(15).respaced(times).sqrt_eta[-1] == process(15).sqrt_eta[-1]


@pytest.mark.parametrize("used", [0, 16])
def test_respacing_to_what_there_is_not_is_refused(used: int):
    with pytest.raises(ValueError, match="1 to 15"):
        respace(15, used)


@pytest.mark.parametrize("t", [1, 3, 5])
def test_epsilon_and_x0_are_each_others_inverse(t: int):
    x0, y_up, noise = pictures("x0", "y_up", "noise")
    weight, time = weight_like(x0), torch.tensor([t, t])
    x_t = process().q_sample(x0, y_up, weight, noise, time)
    assert distance(process().epsilon(x_t, x0, y_up, weight, time), noise) < 2e-4
    assert distance(process().x0_from_epsilon(x_t, noise, y_up, weight, time), x0) < 2e-3


def test_a_step_of_the_posterior_has_the_forward_marginal():
    """q(x_{t−1}|x0) is what q(x_{t−1}|x_t, x0) makes of q(x_t|x0): mean and variance in closed form."""
    p, (x0, y_up) = process(), pictures("x0", "y_up")
    weight = weight_like(x0)
    for t in (2, 5):
        time = torch.tensor([t, t])
        mean, variance = p.posterior(p.q_mean(x0, y_up, time), x0, weight, time)
        shrink = p.eta(time - 1) / p.eta(time)
        expected = (p.noise_level(time - 1) * weight) ** 2
        assert distance(mean, p.q_mean(x0, y_up, time - 1)) < 1e-5
        assert distance(variance + shrink**2 * (p.noise_level(time) * weight) ** 2, expected) < 1e-5


@pytest.mark.parametrize("steps", [1, 2, 5, 15])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("changing", [False, True])
def test_a_sampler_that_knows_the_picture_returns_it(steps: int, eta: float, changing: bool):
    x0, y_up = pictures("x0", "y_up")
    fixed = weight_like(x0)
    visited = []

    def weigh(t: int, x: Tensor, estimate: Tensor) -> Tensor:
        visited.append(t)
        return fixed * t / steps if changing else fixed

    def noise(t: int) -> Tensor:
        return torch.randn(x0.shape, generator=torch.Generator().manual_seed(t))

    out = sample(lambda x, t, w: x0, process(steps), y_up, weigh, noise, eta)
    assert torch.equal(out, x0)
    assert visited == list(range(steps, 0, -1))


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("changing", [False, True])
def test_every_state_of_a_sampler_has_the_forward_marginal(eta: float, changing: bool):
    """By simulation: with the true x̂0, x_{t} is N(q_mean, (κ√η_t w_t)²) for every eta and a weight that changes."""
    p, n = process(), 400
    x0, y_up = torch.full((n, 3, 8, 8), 0.3), torch.full((n, 3, 8, 8), -0.2)
    generator = torch.Generator().manual_seed(0)
    states: dict[int, tuple[Tensor, Tensor]] = {}

    def denoise(x: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        states[int(t[0])] = x, weight
        return x0

    def weigh(t: int, x: Tensor, estimate: Tensor) -> Tensor:
        return torch.full_like(x0, 0.4 + 0.1 * t if changing else 0.7)

    sample(denoise, p, y_up, weigh, lambda _: torch.randn(x0.shape, generator=generator), eta)
    for t, (x, weight) in states.items():
        time = torch.full((n,), t)
        level = (p.noise_level(time) * weight)[0, 0, 0, 0]
        assert x.std().item() == pytest.approx(level.item(), rel=0.02)
        assert distance(x.mean(), p.q_mean(x0, y_up, time).mean()) < 0.03 * level


class Linear(torch.nn.Module):
    """Stands for a network: some function of everything it is given, at HR size."""

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return torch.nn.functional.pixel_shuffle(x + 0.1 * condition[:, :48] + 0.01 * t.view(-1, 1, 1, 1), 4)


def test_predicting_epsilon_and_x0_are_one_sampler():
    """A network that knows ε leads to the same picture as one that knows x0."""
    x0, y_up, noise = pictures("x0", "y_up", "noise")
    weight, p = weight_like(x0), process()

    class Oracle(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
            scale = (0.3 * p.kappa**2 * p.eta(t + 1) + 0.25).sqrt()
            x_t = torch.nn.functional.pixel_shuffle(x, 4) * scale
            return p.epsilon(x_t, x0, y_up, weight, t + 1)

    denoiser = Denoiser(Oracle(), p, **PLAIN, predict="epsilon")
    out = sample(denoiser.denoise(denoiser.condition(y_up, y_up), y_up), p, y_up, lambda *_: weight, lambda _: noise)
    assert distance(out, x0) < 1e-2


def test_no_step_dominates_the_loss_of_epsilon():
    """loss_weight · (x̂0 − x0)² is (ε̂ − ε)², so that an error of ε counts the same at every t."""
    x0, y_up, noise = pictures("x0", "y_up", "noise")
    weight, p = weight_like(x0), process()
    denoiser = Denoiser(Linear(), p, **PLAIN, predict="epsilon")
    for t in range(1, 6):
        time = torch.tensor([t, t])
        x_t = p.q_sample(x0, y_up, weight, noise, time)
        wrong = p.x0_from_epsilon(x_t, noise + 0.1, y_up, weight, time)
        error = denoiser.loss_weight(time, weight) * (wrong - x0) ** 2
        assert error.mean().item() == pytest.approx(0.01, rel=1e-2)


def test_a_true_x_t_of_little_noise_counts_more_with_edm():
    """EDM's λ = (σ² + σ_n²)/(σ σ_n)² in units of 1/σ²; a rolled-out x_t counts 1, and so does all else."""
    p, sigma = process(), 0.05
    weight = torch.full((2, 3, 4, 4), 0.5)
    edm = Denoiser(Linear(), p, **PLAIN, predict="x0", skip="edm", sigma_data=sigma)
    plain = Denoiser(Linear(), p, **PLAIN, predict="x0")
    for t in range(1, 6):
        time = torch.tensor([t, t])
        noise = p.kappa * p.eta(time)[0].item() ** 0.5 * 0.5
        found = edm.loss_weight(time, weight, torch.tensor([True, False]))
        assert found[0].eq(1).all()
        assert found[1, 0, 0, 0].item() == pytest.approx((sigma**2 + noise**2) / (sigma * noise) ** 2 * sigma**2)
        assert plain.loss_weight(time, weight, torch.tensor([True, False])).eq(1).all()


def test_a_respaced_denoiser_tells_the_network_the_trained_times():
    seen = []

    class Spy(Linear):
        def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
            seen.append(int(t[0]))
            return super().forward(x, t, condition)

    y_up = pictures("y_up")[0]
    denoiser = Denoiser(
        Spy(),
        process(15),
        scale=4,
        uncertainty=Isotropic(),
        condition=["sr", "bicubic"],
        predict="x0",
        times=respace(15, 3),
    )
    denoise = denoiser.denoise(denoiser.condition(y_up, y_up), y_up)
    sample(denoise, denoiser.process, y_up, lambda *_: torch.ones_like(y_up), lambda _: y_up)
    assert seen == [14, 9, 4]


# Noise


def test_any_part_of_the_noise_field_is_cut_from_one():
    whole = field(7, 3, 0, 0, 200, 150)
    assert torch.equal(field(7, 3, 50, 60, 100, 90), whole[:, :, 50:150, 60:150])
    assert not torch.equal(field(8, 3, 0, 0, 200, 150), whole)
    assert not torch.equal(field(7, 2, 0, 0, 200, 150), whole)
    assert whole.std().item() == pytest.approx(1, rel=0.02)
    assert whole.mean().item() == pytest.approx(0, abs=0.02)


def test_ranges_are_crossed_both_ways():
    x = torch.linspace(0, 1, 11)
    assert distance(to_unit(to_signed(x)), x) < 1e-6
    assert to_signed(x).min() == -1


def test_the_shipped_chain_is_the_papers():
    assert distance(build_process(params(diffusion={"steps": 5}).diffusion).sqrt_eta, process().sqrt_eta) == 0
