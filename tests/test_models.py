"""The networks: the released code's numbers, and any size and width."""

import pytest
import torch
import torch.nn.functional as F
from conftest import fixture_file, params

from pipelines.train_unet import fresh_denoiser
from upsr.models.atd import ATD, build_atd
from upsr.models.unet import UNet, build_unet, convolve_doubled
from upsr.models.widen import widen_atd, widen_unet
from upsr.models.windows import attend, attention_mask, cut, relative_position_index
from upsr.official import DERIVED, read_atd, read_unet

CPU = torch.device("cpu")


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


@torch.inference_mode()
def test_atd_gives_the_released_numbers():
    config, state, tensors = fixture_file("atd_real")
    atd = build_atd(*read_atd(state, config["category_size"])).eval()
    atd.load_state_dict(state)
    assert distance(atd(tensors["in.lr"]), tensors["out.sr"]) < 1e-4
    assert distance(atd(tensors["in.lr_odd"]), tensors["out.sr_odd"]) < 1e-4


@torch.inference_mode()
def test_unet_gives_the_released_numbers():
    _, state, tensors = fixture_file("unet")
    unet = build_unet(*read_unet(state)).eval()
    unet.load_state_dict({k: v for k, v in state.items() if not k.endswith(DERIVED)})
    assert distance(unet(tensors["in.x"], tensors["in.t"], tensors["in.lq"]), tensors["out.x0"]) < 1e-4


def test_the_released_mask_is_repeated_on_demand_only():
    _, state, _ = fixture_file("unet")
    released = state["input_blocks.1.1.blocks.1.attn_mask"]
    official, proper = (attention_mask(16, 16, 8, 4, CPU, official=o) for o in (True, False))
    assert torch.equal(official[:, 0], released)
    assert not torch.equal(proper, official)


def test_sizes_are_the_published_ones():
    assert count(ATD(dim=48, flavour="classical")) == 768_792
    assert count(ATD(dim=96)) == 2_532_360
    assert count(UNet(dim=160)) == 119_418_319
    assert round(count(UNet(dim=96)) / 1e6, 2) == 48.86


def test_spandrel_gives_the_same_for_our_classical_atd(monkeypatch: pytest.MonkeyPatch):
    spandrel = pytest.importorskip("spandrel")
    torch.manual_seed(0)
    atd = ATD(dim=48, groups=2, layers=2, flavour="classical").eval()
    theirs = spandrel.ModelLoader().load_from_state_dict(atd.state_dict()).model.eval()
    sort = torch.sort
    monkeypatch.setattr(torch, "sort", lambda x, dim, stable: sort(x, dim=dim, stable=True))  # theirs is unstable
    lr = torch.rand(1, 3, 33, 20)
    with torch.inference_mode():
        assert distance(atd(lr), theirs(lr)) < 1e-4


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (16, 16)])
@pytest.mark.parametrize("scale", [2, 4])
def test_atd_takes_any_size(size: tuple[int, int], scale: int):
    atd = build_atd(params().atd, scale)
    assert atd(torch.rand(1, 3, *size)).shape == (1, 3, scale * size[0], scale * size[1])


@pytest.mark.parametrize("dim", [48, 96])
@pytest.mark.parametrize("condition", [["sr", "bicubic"], ["sr"], ["bicubic"]])
@pytest.mark.parametrize("scale", [2, 4])
def test_unet_takes_any_width_condition_and_patch(dim: int, condition: list[str], scale: int):
    unet = build_unet(params(unet={"dim": dim, "condition": condition}).unet, scale)
    c = 3 * scale**2
    for h, w in ((2, 6), (12, 10)):  # neither is a multiple of the window
        out = unet(torch.rand(2, c, h, w), torch.tensor([0, 1]), torch.rand(2, c * len(condition), h, w))
        assert out.shape == (2, 3, h * scale, w * scale)


def test_two_branches_are_mixed_by_the_detail_map():
    unet = build_unet(params(unet={"branches": 2}).unet, 4)
    x, t, condition = torch.rand(1, 48, 8, 8), torch.tensor([1]), torch.rand(1, 96, 8, 8)
    detail, smooth, half = (unet(x, t, condition, torch.full((1, 1, 32, 32), w)) for w in (1.0, 0.0, 0.5))
    assert distance(detail, smooth) > 1e-3
    assert distance(half, (detail + smooth) / 2) < 1e-5
    single = build_unet(params().unet, 4)
    single.load_state_dict({k: v for k, v in unet.state_dict().items() if not k.startswith("smooth.")})
    assert torch.equal(single(x, t, condition), detail)


def test_a_placebo_moves_the_detail_map_by_half_of_the_image():
    x, y_up, t = torch.rand(1, 3, 32, 48), torch.rand(1, 3, 32, 48), torch.tensor([1])
    weight = 0.4 + 0.6 * torch.rand(1, 3, 32, 48)
    seen = {}
    for placebo in (False, True):
        denoiser = fresh_denoiser(params(unet={"branches": 2, "placebo": placebo}))
        forward = denoiser.network.forward
        denoiser.network.forward = lambda *args, detail, f=forward, p=placebo: (
            seen.update({p: detail}) or f(*args, detail)
        )
        denoiser(x, t, F.pixel_unshuffle(torch.cat([x, y_up], 1), 4), y_up, weight)
    assert torch.allclose(seen[False], (weight - 0.4) / 0.6, atol=1e-6)
    assert torch.equal(seen[True][..., 16:, 24:], seen[False][..., :16, :24])
    assert torch.equal(seen[True][..., :16, :24], seen[False][..., 16:, 24:])


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("condition", [["sr", "bicubic"], ["bicubic"]])
@pytest.mark.parametrize("skip", ["condition", "edm"])
def test_an_untrained_network_with_a_skip_answers_what_it_corrects(skip: str, condition: list[str], branches: int):
    """`condition`: its first image; `edm`: c x_t + (1−c) ŷ, c = s²/(s² + (κ √η_t w)²). It can learn from there."""
    p = params(unet={"skip": skip, "sigma_data": 0.1, "condition": condition, "branches": branches})
    denoiser = fresh_denoiser(p)
    x_t, first, second = (torch.rand(2, 3, 32, 32) * 2 - 1 for _ in range(3))
    images, weight, t = [first, second][: len(condition)], torch.full((2, 3, 32, 32), 0.7), torch.tensor([1, 2])
    answer = denoiser(x_t, t, F.pixel_unshuffle(torch.cat(images, 1), 4), second, weight)
    noise = (2.5 * denoiser.process.sqrt_eta[1:].float() * 0.7).view(2, 1, 1, 1)
    expected = first
    if skip == "edm":  # s², from the 5×5 pixels around, where the noise is small beside σ
        square = (x_t - first).square().mean(1, keepdim=True)
        around = torch.stack([square[:, :, 8 + i : 24 + i, 8 + j : 24 + j] for i in range(-2, 3) for j in range(-2, 3)])
        known = 0.1**2 / (0.1**2 + noise**2)
        local = known * (around.mean(0) - noise**2).clamp(min=1e-5) + (1 - known) * 0.1**2
        inner = [x[:, :, 8:24, 8:24] for x in (x_t, first, answer)]
        x_t, expected, answer = inner[0], inner[1], inner[2]
        expected = expected + local / (local + noise**2) * (x_t - expected)
    assert torch.allclose(answer, expected, atol=1e-5)
    answer.square().sum().backward()
    last = denoiser.network.conv_last
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in last.parameters())


def test_images_at_hr_size_reach_the_last_convolutions():
    """One pixel of x_t changes its own surroundings, where nothing but the last convolutions could see it."""
    p = params(unet={"hr_inputs": True})
    denoiser = fresh_denoiser(p)
    weight = denoiser.network.conv_hr.weight
    assert weight.shape[1] == denoiser.network.conv_last.weight.shape[1] + 6
    weight.data[:, :-6] = 0  # without the features of the UNet
    x_t, y_up, condition = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32), torch.rand(1, 96, 8, 8)
    changed = x_t.clone()
    changed[0, :, 13, 21] += 1
    t, w = torch.tensor([1]), torch.ones(1, 3, 32, 32)
    outputs = [denoiser(x, t, condition, y_up, w) for x in (x_t, changed)]
    rows, columns = (outputs[0] - outputs[1]).abs().sum((0, 1)).nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (11, 15, 19, 23)


def test_what_lies_beyond_the_edge_does_not_reach_the_picture():
    """A map that is no multiple of the window is continued: its places must not see the continuation."""
    mask = attention_mask(5, 5, 8, 0, CPU)[0, 0]
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[:5, :5] = True
    inside = inside.flatten()
    assert (mask[inside][:, inside] == 0).all()
    assert (mask[inside][:, ~inside] < 0).all()


def test_a_whole_window_without_shift_needs_no_mask():
    assert attention_mask(16, 8, 8, 0, CPU) is None


@pytest.mark.parametrize(("height", "width"), [(8, 12), (5, 5), (13, 4), (10, 7), (3, 9)])
@pytest.mark.parametrize("shift", [0, 2, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_pixels_attend_to_their_window_and_side_of_the_seam(height: int, width: int, shift: int, batch: int):
    """The same by a mask over all pairs of pixels, without windows."""
    qkv, table = torch.randn(batch, height * width, 3 * 6), torch.randn(49, 2)
    order, back, mask = cut(height, width, 4, shift, CPU)
    windows = qkv.index_select(1, order).view(batch, -1, 16, 18)
    result = attend(windows, 2, table, relative_position_index(4), mask).flatten(1, 2).index_select(1, back)
    y, x = torch.arange(height * width) // width, torch.arange(height * width) % width
    side = [torch.where(v < shift, -1, (v - shift) // 4) for v in (y, x)]  # rolled over the edge: a window's other side
    together = (side[0][:, None] == side[0]) & (side[1][:, None] == side[1])
    offset = (y[:, None] - y + 3) * 7 + (x[:, None] - x + 3)
    bias = table[offset.clamp(0, 48)].permute(2, 0, 1).masked_fill(~together, -torch.inf)
    q, k, v = qkv.view(batch, -1, 3, 2, 3).permute(2, 0, 3, 1, 4)
    expected = ((q @ k.transpose(2, 3) / 3**0.5 + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)
    assert distance(result, expected) < 1e-5


def test_windows_without_a_mask_are_spared_it():
    mask = cut(32, 24, 8, 4, CPU).mask
    assert mask is not None
    assert len(mask) == 4 * 3 - 3 * 2
    assert (mask.flatten(1) < 0).any(1).all()


@pytest.mark.parametrize("size", [(1, 1), (4, 7)])
def test_a_convolution_of_a_doubled_image_is_exact(size: tuple[int, int]):
    conv, x = torch.nn.Conv2d(5, 6, 3, padding=1), torch.randn(2, 5, *size)
    expected = conv(F.interpolate(x, scale_factor=2, mode="nearest"))
    assert distance(convolve_doubled(conv, x), expected) < 1e-5


def test_every_weight_of_both_networks_learns():
    cfg = params()
    unet, atd = build_unet(cfg.unet, 4), build_atd(cfg.atd, 4)
    for p in unet.parameters():  # the residual blocks begin at 0 and would hide what is before them
        torch.nn.init.normal_(p, std=0.1)
    unet(torch.rand(2, 48, 8, 8), torch.tensor([0, 1]), torch.rand(2, 96, 8, 8)).square().sum().backward()
    atd(torch.rand(2, 3, 16, 16)).square().sum().backward()
    for name, p in [*unet.named_parameters(), *atd.named_parameters()]:
        assert p.grad is not None and p.grad.abs().sum() > 0, name


def scattered(network: torch.nn.Module) -> torch.nn.Module:
    """Every weight away from where it begins, so that none goes without notice."""
    for p in network.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return network.eval()


@torch.inference_mode()
@pytest.mark.parametrize("flavour", ["real", "classical"])
@pytest.mark.parametrize("dim", [32, 48])
def test_a_widened_atd_is_the_same_function(flavour: str, dim: int):
    narrow, wide = (build_atd(params(atd={"dim": d, "flavour": flavour}).atd, 4).eval() for d in (16, dim))
    wide.load_state_dict(widen_atd(scattered(narrow).state_dict(), wide))
    lr = torch.rand(2, 3, 19, 16)
    assert distance(wide(lr), narrow(lr)) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize(("dims", "branches"), [((32, 64), 1), ((32, 64), 2), ((32, 96), 1), ((64, 128), 1)])
def test_a_widened_unet_is_the_same_function(dims: tuple[int, int], branches: int):
    narrow, wide = (build_unet(params(unet={"dim": d, "branches": branches}).unet, 4).eval() for d in dims)
    wide.load_state_dict(widen_unet(scattered(narrow).state_dict(), wide))
    inputs = [torch.randn(2, 48, 8, 8), torch.tensor([0, 3]), torch.rand(2, 96, 8, 8), torch.rand(2, 1, 32, 32)]
    assert distance(wide(*inputs), narrow(*inputs)) < 1e-5


def test_the_copies_of_a_channel_learn_different_things():
    narrow, wide = (build_atd(params(atd={"dim": d}).atd, 4) for d in (16, 32))
    wide.load_state_dict(widen_atd(narrow.state_dict(), wide))
    wide(torch.rand(1, 3, 16, 16)).square().sum().backward()
    gradient = wide.conv_first.weight.grad
    assert gradient is not None and distance(gradient[::2], gradient[1::2]) > 1e-2 * gradient.abs().max()
