"""The UNet's objective, number by number: what the network is given, at which timesteps, and what its answer costs."""

import pytest
import torch
import torch.nn.functional as F
from conftest import params
from torch import Tensor, nn

from upsr.degradation.pair_pool import PairPool
from upsr.degradation.second_order import build_degradation
from upsr.diffusion.denoiser import Denoiser
from upsr.diffusion.process import build_process
from upsr.diffusion.uncertainty import Residual
from upsr.training.pairs import Pairs
from upsr.training.unet_objective import UnetObjective

T, KAPPA = 5, 2.5
TIMESTEPS = torch.arange(1, T + 1)  # one sample each
POSITIONS = (TIMESTEPS - 0.5) / T  # the middle of each timestep's share of [0, 1)


class Recorder(nn.Module):
    """A network that keeps what it is given and always answers the same image."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        self.x, self.t, self.condition = x, t, condition
        return self.answer


class Auxiliary(nn.Module):
    """g: far from bicubic, so that neither can stand for the other."""

    def forward(self, lr: Tensor) -> Tensor:
        return 1 - F.interpolate(lr, scale_factor=4, mode="nearest")


class Distance(nn.Module):
    """A perceptual distance that can be computed by hand: 0.25 times the mean absolute difference."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return 0.25 * (x - target).abs().mean((1, 2, 3))


@pytest.fixture
def batch() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(T, 3, 16, 16, generator=generator)
    never = torch.zeros(T, dtype=torch.bool)
    return F.avg_pool2d(hr, 4), hr, POSITIONS, torch.randn(hr.shape, generator=generator), never


def objective() -> UnetObjective:
    pairs = Pairs(build_degradation(params().degradation, 4), PairPool(0, T))
    return UnetObjective(pairs, Distance(), Auxiliary(), 4)  # type: ignore[arg-type]


def test_what_the_network_is_given_and_what_its_answer_costs(batch: tuple[Tensor, ...]):
    lr, hr, _, noise, _ = batch
    answer = torch.full_like(hr, 0.5)
    network = Recorder(answer)
    process = build_process(params(diffusion={"steps": T, "kappa": KAPPA}).diffusion)
    denoiser = Denoiser(
        network, process, scale=4, condition=["sr", "bicubic"], predict="x0",
        uncertainty=Residual(floor=0.4, psi_max=0.1, gray=False),
    )  # fmt: skip
    loss, logged = objective().loss(denoiser, *batch)

    # By hand: METHOD's formulas, in [-1, 1].
    x0 = 2 * hr - 1
    y_up = 2 * F.interpolate(lr, scale_factor=4, mode="bicubic", align_corners=False) - 1
    g_y = 2 * (1 - lr.repeat_interleave(4, 2).repeat_interleave(4, 3)) - 1
    weight = 0.4 + 0.6 * (((g_y - y_up).abs() / 2).clamp(max=0.1) / 0.1)
    eta = (process.sqrt_eta[1:] ** 2).float().view(T, 1, 1, 1)
    x_t = x0 + eta * (y_up - x0) + KAPPA * eta.sqrt() * weight * noise
    scaled = x_t / (0.3 * KAPPA**2 * eta + 0.25).sqrt()
    mse = ((answer - x0) ** 2).mean()
    lpips = 0.25 * (answer - x0).abs().mean()

    assert network.t.tolist() == [0, 1, 2, 3, 4]  # the released network counts from 0
    assert torch.allclose(network.x, F.pixel_unshuffle(scaled, 4), atol=1e-5)
    assert torch.allclose(network.condition[:, :48], F.pixel_unshuffle(g_y, 4), atol=1e-6)
    assert torch.allclose(network.condition[:, 48:], F.pixel_unshuffle(y_up, 4), atol=1e-6)
    assert loss.item() == pytest.approx((mse + lpips).item(), rel=1e-5)
    assert logged.keys() == {"mse", "lpips", "weight", "energy"}
    assert logged["energy"].item() == pytest.approx((weight**2).mean().item(), rel=1e-5)
    assert logged["weight"].item() == pytest.approx(weight.mean().item(), rel=1e-5)


def test_every_timestep_is_drawn_equally_often():
    hr = torch.zeros(500, 3, 4, 4, dtype=torch.uint8)
    _, _, position, *_ = objective().draw(hr, (0, 0))
    counts = ((position * T).long() + 1).bincount(minlength=T + 1)
    assert counts[0] == 0 and len(counts) == T + 1
    assert counts[1:].min() > 70  # 100 expected, with a deviation of 9
