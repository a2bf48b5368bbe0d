"""Upscaling: any picture, any tile, one noise field; and the command line around it."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, params, save_model
from torch import Tensor

from upsr import images
from upsr.__main__ import main
from upsr.inference.maps import heat_map
from upsr.inference.precision import fast_dtype
from upsr.inference.tiling import Fields, blend, cuts, join
from upsr.inference.upscaler import Upscaler
from upsr.memory import free_memory
from upsr.photo.reading import Photo


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny UPSR, untrained but alive: its networks do something everywhere."""
    unet = {"dim": 16, "window": 4, "lr_size": 8, "branches": 2}
    return save_model(tmp_path_factory.mktemp("model"), params(unet=unet, diffusion={"steps": 3, "sampler_eta": 0.5}))


@pytest.fixture(scope="module")
def upscaler(model: Path) -> Upscaler:
    return Upscaler.from_pretrained(model)


def picture(height: int, width: int, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (height, width, channels), dtype=dtype)


# Tiling


@pytest.mark.parametrize("length", [1, 7, 8, 9, 20, 31, 100])
@pytest.mark.parametrize("multiple", [1, 4, 16])
def test_tiles_cover_everything_share_it_evenly_and_overlap(length: int, multiple: int):
    found = cuts(length, 24, 2, multiple)
    assert (found[0].start, found[-1].stop) == (0, length)
    sides = {cut.stop - cut.start for cut in found}
    assert len(sides) == 1 and max(sides) <= 24
    assert all(a.start < b.start and b.start + 2 <= a.stop for a, b in pairwise(found))
    assert len(found) * (max(sides) - multiple) < length + 2 * len(found)  # no larger than an even share needs


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 8), (9, 30), (37, 21)])
@pytest.mark.parametrize("together", [1, 3])
def test_tiles_of_a_local_function_join_to_the_whole(height: int, width: int, together: int):
    def double(part: Fields, top: int, lefts: list[int]) -> Fields:
        """Both fields enlarged, under other names."""
        return {f"large {name}": x.repeat_interleave(2, 2).repeat_interleave(2, 3) for name, x in part.items()}

    inputs = {"image": torch.rand(1, 3, height, width), "map": torch.rand(1, 1, height, width)}
    rows, columns = cuts(height, 8, 2), cuts(width, 8, 2)
    bands = list(blend(inputs, double, rows=rows, columns=columns, overlap=2, scale=2, together=together))
    assert [row for row, _ in bands] == list(np.cumsum([0] + [b["large map"].shape[2] for _, b in bands[:-1]]))
    whole, expected = join([band for _, band in bands]), double(inputs, 0, [0])
    assert whole.keys() == expected.keys()
    assert all(torch.allclose(whole[name], expected[name], atol=1e-6) for name in whole)


def test_seams_fade():
    """Two tiles that disagree are joined by a ramp: no step is larger than the ramp's."""

    def constant(part: Fields, top: int, lefts: list[int]) -> Fields:
        return {"side": torch.full_like(part["lr"], float(lefts[0] > 0))}

    inputs, rows, columns = {"lr": torch.zeros(1, 1, 4, 24)}, cuts(4, 16, 8), cuts(24, 16, 8)
    bands = blend(inputs, constant, rows=rows, columns=columns, overlap=8, scale=1)
    joined = join([band for _, band in bands])["side"]
    assert joined[0, 0, 0, 0] == 0
    assert joined[0, 0, 0, -1] == 1
    assert joined.diff(dim=3).abs().max() < 0.2


# Upscaling


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 5), (33, 20)])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_any_picture_keeps_its_kind(upscaler: Upscaler, size: tuple[int, int], channels: int, dtype: type):
    out = upscaler(picture(*size, channels, dtype), tile=16)
    assert out.shape == (4 * size[0], 4 * size[1], channels)
    assert out.dtype == dtype


def test_alpha_is_carried_along(upscaler: Upscaler):
    image = picture(8, 8, 4)
    image[:, :, 3] = 255
    out = upscaler(image)
    assert (out[:, :, 3] == 255).all()
    assert np.array_equal(out[:, :, :3], upscaler(image[:, :, :3]))


def test_the_seed_alone_decides(upscaler: Upscaler):
    image = picture(20, 20)
    assert np.array_equal(upscaler(image, seed=1), upscaler(image, seed=1))
    assert not np.array_equal(upscaler(image, seed=1), upscaler(image, seed=2))


def test_tiles_see_one_noise_field(model: Path):
    """With a network that sees a place alone, tiled and untiled are one picture, whatever the tile."""
    upscaler = Upscaler.from_pretrained(model)

    class Pointwise(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, condition: Tensor, detail: Tensor) -> Tensor:
            return torch.nn.functional.pixel_shuffle(0.3 * x + 0.1 * condition[:, :48], 4)

    class Nearest(torch.nn.Module):
        def forward(self, lr: Tensor) -> Tensor:
            return torch.nn.functional.interpolate(lr, scale_factor=4, mode="nearest")

    upscaler.diffuser.denoiser.network, upscaler.atd = Pointwise(), Nearest()
    x = images.to_tensor(np.full((40, 56, 3), 90, np.uint8))
    whole = upscaler.upscale(x, seed=3, tile=64).image
    assert whole.std() > 0.01
    for tile in (16, 32):
        assert (upscaler.upscale(x, seed=3, tile=tile).image - whole).abs().max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("variant", ["residual", "edge_frequency", "dynamic"])
def test_tiles_in_batches_give_the_picture_of_tiles_one_by_one(tmp_path: Path, variant: str):
    """As on a GPU, which is idle with one small tile."""
    p = params(unet={"dim": 16, "window": 4, "lr_size": 8}, uncertainty={"variant": variant}, diffusion={"steps": 3})
    one, many = (Upscaler.from_pretrained(save_model(tmp_path, p)) for _ in range(2))
    many.batch_bytes = 2**30
    x, ticks = torch.rand(1, 3, 40, 70), []
    rows, columns = many.grid(40, 70, 16)
    assert (one.together(16), many.together(16) > len(columns) > 2) == (1, True)
    expected, found = (upscaler.upscale(x, seed=3, tile=16) for upscaler in (one, many))
    assert (found.image - expected.image).abs().max() <= 1 / 255 + 1e-6
    assert all((found.maps[name] - expected.maps[name]).abs().max() < 1e-4 for name in expected.maps)
    many.enlarge(Photo(picture(40, 70)), tile=16, tick=lambda: ticks.append(1))
    assert len(ticks) == len(rows) * len(columns) == many.tiles(Photo(picture(40, 70)), tile=16)


def test_auto_changes_the_precision_of_the_unet_alone(model: Path):
    """And of that only where the hardware has bf16."""
    lr = torch.rand(1, 3, 16, 16)
    exact, auto, low = (Upscaler.from_pretrained(model, dtype=d).upscale(lr) for d in ("fp32", "auto", "bf16"))
    assert torch.equal(auto.maps["residual"], exact.maps["residual"])  # ATD's
    assert not torch.equal(low.maps["residual"], exact.maps["residual"])
    same = torch.equal(auto.image, exact.image)
    assert same == (fast_dtype(torch.device("cpu"))[0] == "fp32")


def test_an_even_share_wastes_little(upscaler: Upscaler):
    """A side of 150 is two tiles of 88, not of 128: these networks pad to multiples of 8."""
    rows, columns = upscaler.grid(150, 100, 128)
    assert [(cut.start, cut.stop) for cut in rows] == [(0, 88), (62, 150)]
    assert [(cut.start, cut.stop) for cut in columns] == [(0, 100)]


@pytest.mark.parametrize("name", ["atd-48", "upsr-48"])
def test_a_model_loads_without_the_compiler_of_torch(name: str):
    """It takes twice as long to import as all else. Random numbers and differences on `meta` tensors import it."""
    code = f"import sys; from upsr import Upscaler; Upscaler.from_pretrained('{name}'); print('sympy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_the_tile_follows_the_free_memory():
    upscaler = Upscaler.from_pretrained("upsr-48")
    assert [upscaler.fitting_tile(free) for free in (2**20, 2**32, 2**34)] == [64, 128, 256]
    assert 2**20 < free_memory(upscaler.device) < 2**50


def test_fewer_steps_and_g_alone(model: Path):
    one = Upscaler.from_pretrained(model, steps=1)
    assert one.diffuser is not None
    assert one.diffuser.denoiser.process.steps == 1
    image = picture(9, 9)
    assert one(image).shape == (36, 36, 3)
    with pytest.raises(ValueError, match="1 to 3"):
        Upscaler.from_pretrained(model, steps=4)
    with pytest.raises(ValueError, match=r"atd-48/weights\.safetensors does not sample: leave them out"):
        Upscaler.from_pretrained("atd-48", steps=1)


def test_maps_lie_where_they_should(upscaler: Upscaler):
    result = upscaler.upscale(torch.rand(1, 3, 20, 24), tile=16)
    assert result.image.shape == (1, 3, 80, 96)
    assert {tuple(values.shape) for values in result.maps.values()} == {(1, 1, 80, 96)}
    assert result.maps["residual"].min() >= 0
    assert 0.4 - 1e-6 <= result.maps["weight"].min() <= result.maps["weight"].max() <= 1 + 1e-6


def test_a_map_shows_low_dark_and_high_bright_with_a_bar():
    values = torch.linspace(0, 1, 64 * 64).view(1, 1, 64, 64)
    shown = heat_map(values, 0, 1)
    assert shown.shape == (64, 76, 3)
    assert shown[2, 2].sum() < shown[60, 20].sum()
    assert shown[-1, -1].sum() < shown[0, -1].sum()


# The command line


def upsr(*arguments: object) -> None:
    main([str(a) for a in arguments])


def test_files_and_folders(model: Path, tmp_path: Path):
    for name in ("a", "b"):
        images.write(tmp_path / "in" / f"{name}.png", picture(6, 7))
    upsr("upscale", tmp_path / "in", "-o", tmp_path / "out", "--model", model)
    assert images.read(tmp_path / "out" / "a.png").shape == (24, 28, 3)
    upsr("upscale", tmp_path / "in" / "b.png", "-o", tmp_path / "one.jpg", "--model", model, "--save-maps")
    assert {p.name for p in tmp_path.glob("one*")} == {
        "one.jpg",
        *(f"one.{m}.png" for m in ("residual", "mix", "weight")),
    }
    # the same picture, alone or among others
    upsr("upscale", tmp_path / "in" / "b.png", "-o", tmp_path / "again", "--model", model)
    assert (tmp_path / "again" / "b.png").read_bytes() == (tmp_path / "out" / "b.png").read_bytes()
    # nearly the same in half precision
    upsr("upscale", tmp_path / "in" / "b.png", "-o", tmp_path / "half.png", "--model", model, "--dtype", "bf16")
    half, full = (images.read(path).astype(int) for path in (tmp_path / "half.png", tmp_path / "out" / "b.png"))
    assert 0 < abs(half - full).mean() < 8


def test_an_error_comes_with_its_traceback_where_that_is_asked_for(model: Path, tmp_path: Path):
    with pytest.raises(images.ImageError, match="1 of 1 images could not be upscaled"):
        upsr("--debug", "upscale", tmp_path / "no.png", "-o", tmp_path / "out", "--model", model)


def test_one_bad_picture_is_named_and_the_others_are_done(model: Path, tmp_path: Path, capsys):
    images.write(tmp_path / "in" / "good.png", picture(6, 7))
    (tmp_path / "in" / "bad.png").write_text("no picture")
    with pytest.raises(SystemExit) as end:
        upsr("upscale", tmp_path / "in", "-o", tmp_path / "out", "--model", model)
    assert end.value.code == 2
    assert (tmp_path / "out" / "good.png").is_file()
    errors = capsys.readouterr().err
    assert "bad.png: not a readable" in errors
    assert "1 of 2 images could not be upscaled" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["upscale", "nowhere.png", "-o", "out", "--model", "MODEL"], "nowhere.png: cannot be read"),
        (["upscale", "empty", "-o", "out", "--model", "MODEL"], "empty: no images found"),
        (["upscale", "nowhere.png", "-o", "out", "--model", "nomodel"], "nomodel/weights.safetensors: no such"),
        (["upscale", "nowhere.png", "-o", "out", "--model", "MODEL", "--steps", "9"], "1 to 3"),
        (["upscale", "a.png", "-o", "a.png", "--model", "MODEL"], "a.png: the result would replace an image"),
        (["upscale", "loop.png", "-o", "out.png", "--model", "MODEL"], "loop.png: cannot be read"),
        (["upscale", "full", "-o", "full", "--model", "MODEL"], "full/a.png: the result would replace an image"),
        (["upscale", "a.png", "-o", "out", "--model", "MODEL", "--device", "cuda:77"], "cuda:77: not available"),
        (
            ["upscale", "a.png", "-o", "out", "--model", "MODEL", "--tile", "1"],
            "--tile: 1 is too small: give 16 or more",
        ),
        (["evaluate", "--benchmark", "empty", "--model", "bicubic"], "empty: a benchmark without images"),
    ],
)
def test_a_mistake_is_one_line(model: Path, tmp_path: Path, monkeypatch, capsys, arguments, message: str):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("loop.png").symlink_to("loop.png")
    images.write("full/a.png", picture(4, 4))
    with pytest.raises(SystemExit) as end:
        upsr(*(str(model) if a == "MODEL" else a for a in arguments))
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_evaluate_by_itself(tmp_path: Path, model: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        images.write(tmp_path / "set" / "HR" / f"{name}.png", picture(48, 48))
        images.write(tmp_path / "set" / "LRx4" / f"{name}.png", picture(12, 12))
    for which in ("bicubic", model):
        upsr("evaluate", "--model", which, "--benchmark", "set", "--metrics", "--json", "out.json")
        result = json.loads(Path("out.json").read_text())
        assert result["pictures"] == 2
        assert result["mean"]["psnr"] == pytest.approx(np.mean([row["psnr"] for row in result["rows"]]))


def test_help_says_what_there_is():
    done = subprocess.run([sys.executable, "-m", "upsr", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert "upscale" in done.stdout
    assert "evaluate" in done.stdout
