"""The degradation: the released code's numbers, and laws that hold whatever the numbers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from upsr.config import Degradation, parse
from upsr.degradation import kernels, ops
from upsr.degradation.jpeg import jpeg
from upsr.degradation.pair_pool import PairPool
from upsr.degradation.second_order import SecondOrder, build_degradation
from upsr.images import resize, round8, to_tensor

ROOT = Path(__file__).resolve().parents[1]
PARITY = ROOT.parent / "shared" / "parity" / "degradation.safetensors"
needs_parity = pytest.mark.skipif(not PARITY.exists(), reason=f"no {PARITY}: the released code's numbers are absent")
PAPER = yaml.safe_load((ROOT / "scales" / "df2k.yaml").read_text())["degradation"]
DEGRADATION = parse(Degradation, PAPER, "df2k.yaml")
MAKE = {
    "gaussian_iso": lambda size, sigma: kernels.gaussian_kernel(size, sigma, sigma, 0),
    "gaussian_aniso": kernels.gaussian_kernel,
    "generalized_aniso": kernels.generalized_kernel,
    "plateau_aniso": kernels.plateau_kernel,
    "sinc": kernels.sinc_kernel,
}


@pytest.fixture
def degrade() -> SecondOrder:
    return build_degradation(DEGRADATION, scale=4)


def sharpening() -> SecondOrder:
    return build_degradation(DEGRADATION.model_copy(update={"usm": True}), scale=4)


def picture(batch: int = 2, height: int = 64, width: int = 64) -> torch.Tensor:
    """Smooth and coloured, so that JPEG and blur have something to keep."""
    y, x = torch.meshgrid(torch.linspace(0, 2, height), torch.linspace(0, 3, width), indexing="ij")
    waves = torch.stack([torch.sin(x + y), torch.cos(2 * x), torch.sin(x * y)]) / 4 + 0.5
    return round8(torch.stack([waves.roll(7 * i, dims=2) for i in range(batch)]))


def fields(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


# Parity


@needs_parity
def test_kernels_are_the_released_ones():
    with safe_open(PARITY, "pt") as stored:
        for name, values in stored.metadata().items():
            kernel = MAKE[name.split(".")[1]](**json.loads(values))
            assert np.abs(kernel - stored.get_tensor(name).numpy()).max() < 1e-6, name


@needs_parity
def test_operations_are_the_released_ones():
    with safe_open(PARITY, "pt") as stored:
        x = stored.get_tensor("image")
        factor = stored.get_tensor("jpeg.quality")  # the released code overwrites the quality with its factor
        quality = torch.where(factor < 1, 100 - 50 * factor, 50 / factor)
        assert (
            distance(ops.filter2d(x, stored.get_tensor("filter2d.kernels")), stored.get_tensor("filter2d.out")) < 1e-5
        )
        assert distance(ops.usm_sharpen(x), stored.get_tensor("usm.out")) < 1e-3
        assert distance(jpeg(x, quality), stored.get_tensor("jpeg.out")) < 1e-3


# Kernels


@pytest.mark.parametrize("kind", range(7))
def test_every_kind_of_kernel_sums_to_one_and_is_symmetric(kind):
    blur = dict(DEGRADATION.first.blur) | {
        "kinds": tuple(float(kind == i) for i in range(6)) if kind < 6 else (1, 0, 0, 0, 0, 0),
        "sinc": float(kind == 6),
    }
    drawn = [kernels.random_kernel(np.random.default_rng(i), **blur) for i in range(20)]
    for kernel in drawn:
        assert kernel.shape == (19, 19)
        assert kernel.sum() == pytest.approx(1)
        assert np.allclose(kernel, kernel[::-1, ::-1])  # through the centre
        if kind % 2 == 0:
            assert np.allclose(kernel, kernel.T)
    assert len({(kernel != 0).sum() for kernel in drawn}) > 3  # sizes vary


def test_a_kernel_is_the_identity_where_blur_is_not_drawn():
    x = picture()
    kernel = kernels.random_kernel(np.random.default_rng(0), **dict(DEGRADATION.first.blur) | {"probability": 0})
    assert torch.equal(ops.filter2d(x, torch.from_numpy(kernel).float().expand(2, -1, -1)), x)


def test_a_sinc_kernel_keeps_what_lies_below_its_cutoff():
    response = np.abs(np.fft.rfft2(kernels.sinc_kernel(101, math.pi / 2), (256, 256)))[0]
    assert np.allclose(response[:50], 1, atol=0.1) and (response[78:] < 0.1).all()


# Operations


def test_filter2d_uses_each_samples_own_kernel_and_any_size():
    x = picture(batch=2, height=3, width=1)
    own = torch.stack([torch.zeros(21, 21), torch.full((21, 21), 1 / 441)])
    own[0, 10, 11] = 1
    shifted, mean = ops.filter2d(picture()[:, :, :8, :8], own)
    assert torch.equal(shifted[:, :, :7], picture()[0, :, :8, 1:8])
    assert mean.std((1, 2)).max() < 0.01
    assert ops.filter2d(x, own).shape == x.shape


def test_usm_leaves_flat_areas_and_raises_edges():
    flat = torch.full((1, 3, 40, 40), 0.3)
    edge = flat.clone()
    edge[..., 20:] = 0.7
    assert distance(ops.usm_sharpen(flat), flat) < 1e-6
    sharp = ops.usm_sharpen(edge)
    assert sharp[..., 20].min() > 0.75 and sharp[..., 19].max() < 0.25


def test_gaussian_noise_has_the_variance_asked_for():
    x, sigma = torch.full((2, 3, 128, 128), 0.5), torch.tensor([5.0, 25.0])
    noise = ops.gaussian_noise(x, sigma, [False, False], fields(2)) - x
    assert torch.allclose(noise.std((1, 2, 3)) * 255, sigma, rtol=0.02)


def test_poisson_noise_has_the_variance_of_counting():
    # 2 distinct values (0.2 and 0.8) -> v = 2 photons; the variance is scale² x / v.
    x = torch.full((1, 3, 256, 256), 51 / 255)
    x[..., 128:] = 204 / 255
    scale = 0.05
    noise = ops.poisson_noise(x, torch.tensor([scale]), [False], fields(1)) - x
    variance = noise[..., :128].var().item()
    assert variance == pytest.approx(scale**2 * 0.2 / 2, rel=0.05)


@pytest.mark.parametrize("distinct, photons", [(1, 1), (2, 2), (3, 4), (128, 128), (129, 256), (256, 256)])
def test_photons_are_the_next_power_of_two_of_the_distinct_values(distinct, photons):
    x = (torch.arange(768) % distinct / 255).view(1, 3, 16, 16)
    assert ops._photons(x).tolist() == [photons]


@pytest.mark.parametrize("add, strength", [(ops.gaussian_noise, 20.0), (ops.poisson_noise, 0.2)])
def test_gray_noise_is_equal_in_the_channels_and_its_own_in_each_sample(add, strength):
    x = torch.full((3, 3, 32, 32), 0.5)
    noise = add(x, torch.full((3,), strength), [True, True, False], fields(3)) - x
    assert distance(noise[:2, 0], noise[:2, 2]) < 1e-6
    assert distance(noise[0], noise[1]) > 0.01
    assert distance(noise[2, 0], noise[2, 2]) > 0.01


def test_jpeg_at_full_quality_is_nearly_the_identity_and_low_quality_loses():
    x = picture(2, 128, 128)
    out = jpeg(x, torch.tensor([100.0, 10.0]))
    error = (out - x).abs().mean((1, 2, 3))
    assert error[0] < 1 / 255 < error[1]


@pytest.mark.parametrize("height, width", [(1, 1), (7, 33), (16, 50)])
def test_jpeg_takes_any_size_and_continues_the_edge(height, width):
    gray = torch.full((2, 3, height, width), 128 / 255)
    assert distance(jpeg(gray, torch.tensor([30.0, 95.0])), gray) < 1e-5


def test_jpeg_quality_is_each_samples_own():
    x, quality = picture(), torch.tensor([30.0, 90.0])
    alone = [jpeg(x[i : i + 1], quality[i : i + 1]) for i in range(2)]
    assert distance(jpeg(x, quality), torch.cat(alone)) < 1e-5


# The chain


@pytest.mark.parametrize("height, width", [(64, 48), (16, 16), (4, 4)])
def test_lr_is_a_scale_smaller_and_holds_8_bit_values(degrade, height, width):
    for step in range(8):
        lr = degrade(picture(3, height, width), (0, step, 0))
        assert lr.shape == (3, 3, height // 4, width // 4)
        assert torch.equal(lr, round8(lr)) and lr.isfinite().all()


def test_the_seed_alone_decides(degrade):
    hr = picture()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = degrade(hr, (0, 5, 0))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    np.random.seed(3)
    assert torch.equal(degrade(hr, (0, 5, 0)), first)
    assert not torch.equal(degrade(hr, (0, 6, 0)), first)
    assert not torch.equal(degrade(hr, (0, 5, 1)), first)


def test_a_named_image_does_not_depend_on_the_number_of_threads(degrade):
    """Of 75 images, this one had another LR on several threads: one interpolates by other code, and JPEG rounds."""
    from skimage import data

    hr, before = to_tensor(data.astronaut())[:, :, :256, :256], torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(degrade.named(hr, "astronaut-2", (0,))[0])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_how_a_batch_is_split_changes_nothing(degrade):
    """8 samples at once, as 4 + 4, or one by one: the same LR."""
    hr = picture(8)
    for step in range(6):
        whole = degrade(hr, (0, step))
        for size in (4, 1):
            parts = torch.cat([degrade(hr[i : i + size], (0, step), i) for i in range(0, 8, size)])
            assert torch.equal(parts, whole), (step, size)


def test_samples_of_a_batch_differ_in_their_draws(degrade):
    """One picture four times: no two come out alike, nor does one step's batch as another's."""
    hr = picture(1).expand(4, -1, -1, -1)
    flat = torch.cat([degrade(hr, (0, step)) for step in range(6)])
    assert len({lr.numpy().tobytes() for lr in flat}) == 24


def test_autocast_changes_nothing():
    hr, degrade = picture(), sharpening()
    plain = [degrade(hr, (0, step)) for step in range(4)]
    with torch.autocast("cpu", torch.bfloat16):
        inside = [degrade(hr, (0, step)) for step in range(4)]
        sharpened = degrade.target(hr)
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))
    assert torch.equal(sharpened, degrade.target(hr))


def test_lr_still_shows_the_picture(degrade):
    """The mean over many degradations is near the plain small picture: nothing is flipped, shifted or recoloured."""
    hr = picture(1)
    mean = torch.stack([degrade(hr, (step,)) for step in range(60)]).mean(0)
    small = torch.nn.functional.interpolate(hr, scale_factor=0.25, mode="area")
    assert (mean - small).abs().mean() < 0.05


def test_a_share_of_the_samples_is_shrunk_by_bicubic_alone(degrade):
    """And the others are degraded as they would be without them."""
    hr = picture(16)
    half = build_degradation(DEGRADATION.model_copy(update={"plain": 0.5}), scale=4)
    small = round8(resize(hr, (hr.shape[2] // 4, hr.shape[3] // 4)))
    mixed, drawn = half.drawn(hr, (0,))
    degraded = degrade(hr, (0,))
    flags = [notes["plain"] for notes in drawn]
    assert all(notes == {"plain": True} or "first.jpeg" in notes for notes in drawn)  # what was not done is not told
    assert 0 < sum(flags) < 16
    for flag, ours, plain, other in zip(flags, mixed, small, degraded, strict=True):
        assert torch.equal(ours, plain if flag else other)
        assert not torch.equal(plain, other)


def test_the_target_is_sharpened_only_on_demand(degrade):
    hr = picture()
    assert degrade.target(hr) is hr
    assert distance(sharpening().target(hr), ops.usm_sharpen(hr)) == 0


# The pool


def pairs(first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs that tell which they are by their value."""
    ids = torch.arange(first, first + count, dtype=torch.float32).view(-1, 1, 1, 1)
    return ids.expand(-1, 3, 8, 8), ids.expand(-1, 3, 2, 2)


def test_the_pool_fills_then_swaps_and_loses_nothing():
    pool, seen = PairPool(7, 3), []  # lanes of 3, 2 and 2 pairs
    for step in range(9):
        hr, lr = pool(*pairs(3 * step, 3), (0, step))
        assert torch.equal(hr[:, :, :2, :2], lr)  # pairs stay pairs
        assert step > 1 or hr[:, 0, 0, 0].tolist() == [3 * step, 3 * step + 1, 3 * step + 2]
        assert [int(i) % 3 for i in hr[:, 0, 0, 0]] == [0, 1, 2]  # and lanes do not mix
        seen += hr[:, 0, 0, 0].tolist()
    state = pool.state_dict()
    assert state["lane"].tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert {*seen, *state["hr"][:, 0, 0, 0].tolist()} == set(range(27))
    assert len(set(seen[9:])) == 18  # once full, nothing is shown twice


@pytest.mark.parametrize("size", [0, 2])
def test_lanes_without_a_place_pass_their_pairs(size):
    pool = PairPool(size, 7)
    for step in range(3):
        hr, lr = pool(*pairs(7 * step, 7), (0, step))
        assert hr.shape == (7, 3, 8, 8) and lr.shape == (7, 3, 2, 2)
        assert hr[size:, 0, 0, 0].tolist() == list(range(7 * step + size, 7 * step + 7))


@pytest.mark.parametrize("stop", [0, 1, 5])
def test_a_restored_pool_goes_on_as_if_never_stopped(stop):
    """Also where two processes saved it and four go on."""
    whole, halves, quarters = (
        PairPool(9, 4),
        [PairPool(9, 4) for _ in range(2)],
        [PairPool(9, 4) for _ in range(4)],
    )

    def run(pool: PairPool, step: int, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return pool(*pairs(4 * step + first, count), (0, step), first)

    for step in range(stop):
        expected = run(whole, step, 0, 4)
        parts = [run(half, step, 2 * i, 2) for i, half in enumerate(halves)]
        assert all(torch.equal(a, torch.cat(b)) for a, b in zip(expected, zip(*parts, strict=True), strict=True))
    for i, pool in enumerate(quarters):
        pool.load_state_dict(*(half.state_dict() for half in halves), lanes=range(i, i + 1))
    for step in range(stop, stop + 4):
        expected = run(whole, step, 0, 4)
        parts = [run(pool, step, i, 1) for i, pool in enumerate(quarters)]
        assert all(torch.equal(a, torch.cat(b)) for a, b in zip(expected, zip(*parts, strict=True), strict=True))


def test_a_pool_copies_what_it_keeps():
    pool, (hr, lr) = PairPool(2, 2), (x.clone() for x in pairs(0, 2))
    pool(hr, lr, (0, 0))
    hr.fill_(9)
    lr.fill_(9)
    assert pool(*pairs(2, 2), (0, 1))[0][:, 0, 0, 0].tolist() == [0, 1]
