"""Figures against the published protocol, and what happens where there is none."""

import importlib.util
import json
import math
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from upsr.config import ConfigError
from upsr.data.benchmarks import Benchmark, open_benchmark
from upsr.evaluation.measure import Upscale, bicubic, measure
from upsr.evaluation.metrics import BEST_PSNR, Metrics, Row, higher_is_better, ssim
from upsr.evaluation.protocol import PROTOCOLS, for_fidelity
from upsr.evaluation.statistics import headline, interval, showcase, summary, table
from upsr.images import number_of, read_rgb, resize, to_image, to_tensor, write

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
WEIGHTS = ROOT / "data" / "metric_weights"
CPU = torch.device("cpu")

needs_pyiqa = pytest.mark.skipif(not importlib.util.find_spec("pyiqa"), reason="pyiqa is not installed")


def plain(protocol: str = "basicsr") -> Metrics:
    return Metrics([], WEIGHTS, PROTOCOLS[protocol], 4, CPU)


def photograph(side: int = 96) -> Tensor:
    from skimage import data

    return to_tensor(data.astronaut())[:, :, 40 : 40 + side, 180 : 180 + side]


@pytest.fixture
def benchmark_folder(tmp_path: Path) -> Path:
    """Three pictures; the HR of the last is 3 pixels larger than 4 times its LR."""
    for name, side in (("a", 96), ("b", 64), ("c", 67)):
        hr = photograph(side)
        small = side // 4
        write(tmp_path / "mine" / "HR" / f"{name}.png", to_image(hr))
        write(
            tmp_path / "mine" / "LRx4" / f"{name}.png",
            to_image(resize(hr[:, :, : 4 * small, : 4 * small], [small] * 2)),
        )
    return tmp_path / "mine"


def by_bicubic(lr: Tensor, number: int) -> Tensor:
    return bicubic(lr, 4)


def evaluate(upscale: Upscale, benchmark: Benchmark, metrics: Metrics) -> tuple[list[Row], list[Row]]:
    """All pictures of a benchmark: rows and failures."""
    found = [measure(upscale, pair, benchmark.scale, metrics) for pair in benchmark.pairs]
    rows = [{"benchmark": benchmark.name, "model": "bicubic"} | row for row, _ in found if row]
    return rows, [failure for _, failures in found for failure in failures]


# Figures.


@pytest.mark.parametrize(
    ("name", "psnr", "similarity"), [("Set5", 28.4318, 0.8113), ("Set14", 26.0928, 0.7049), ("BSD100", 25.9630, 0.6682)]
)
def test_bicubic_has_its_published_figures(name: str, psnr: float, similarity: float) -> None:
    folder = SHARED / "benchmarks" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    rows, failed = evaluate(by_bicubic, open_benchmark(folder, 4), plain())
    means = summary(rows)[name]["bicubic"]
    assert not failed
    assert means["psnr"] == pytest.approx(psnr, abs=0.0005)
    assert means["ssim"] == pytest.approx(similarity, abs=0.0001)


def test_ssim_equals_scikit_image() -> None:
    from skimage.metrics import structural_similarity

    a, b = (for_fidelity(x, PROTOCOLS["upsr"], 4) for x in (photograph(), photograph().flip(3)))
    options: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    _, everywhere = structural_similarity(a[0, 0].numpy(), b[0, 0].numpy(), data_range=255, full=True, **options)
    assert float(ssim(a, b)) == pytest.approx(everywhere[5:-5, 5:-5].mean(), abs=1e-9)


def test_protocols_differ_in_the_border_only() -> None:
    hr = photograph()
    damaged = hr.clone()
    damaged[:, :, :4] = 0
    assert plain("basicsr")(damaged, hr)["psnr"] == BEST_PSNR
    assert plain("upsr")(damaged, hr)["psnr"] < 30
    inner = for_fidelity(hr, PROTOCOLS["upsr"], 4)[:, :, 4:-4, 4:-4]
    assert torch.equal(inner, for_fidelity(hr, PROTOCOLS["basicsr"], 4))


def test_what_a_file_cannot_hold_is_not_measured() -> None:
    hr = photograph()
    assert plain()(hr + 0.4 / 255, hr) == {"psnr": BEST_PSNR, "ssim": 1.0}


@needs_pyiqa
def test_lpips_of_the_authors_examples(weights: Path) -> None:
    folder = SHARED / "lpips_example"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    reference, first, second = (to_tensor(read_rgb(folder / f"ex_{name}.png")) for name in ("ref", "p0", "p1"))
    metrics = Metrics(["lpips"], weights, PROTOCOLS["basicsr"], 4, CPU)
    assert metrics(first, reference)["lpips"] == pytest.approx(0.722, abs=0.0005)
    assert metrics(second, reference)["lpips"] == pytest.approx(0.138, abs=0.0005)


@needs_pyiqa
def test_directions() -> None:
    directions = {name: higher_is_better(name) for name in ("psnr", "ssim", "musiq", "lpips", "niqe", "seconds")}
    assert directions == {"psnr": True, "ssim": True, "musiq": True, "lpips": False, "niqe": False, "seconds": False}


# What cannot be measured.


@needs_pyiqa
def test_absent_weights_are_named_and_no_host_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*args: object) -> None:
        pytest.fail(f"tried to connect to {args[-1]}")

    from pyiqa.utils import download_util

    before = torch.hub.get_dir(), download_util.DEFAULT_CACHE_DIR, dict(os.environ)
    monkeypatch.setattr(socket.socket, "connect", connect)
    names = ["piqe", "lpips", "niqe", "musiq", "topiq_nr", "clipiqa"]
    monkeypatch.chdir(tmp_path)
    metrics = Metrics(names, Path("weights"), PROTOCOLS["basicsr"], 4, CPU)
    assert metrics.absent.keys() == set(names) - {"piqe"}
    assert metrics.absent["niqe"] == "its weights are missing: put pyiqa/niqe_modelparameters.mat into weights/hub"
    assert metrics.absent["topiq_nr"].startswith("its weights files are unknown: add them to WEIGHTS")
    assert metrics(photograph(), photograph()).keys() == {"psnr", "ssim", "piqe"}
    assert (torch.hub.get_dir(), download_util.DEFAULT_CACHE_DIR, dict(os.environ)) == before
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@needs_pyiqa
def test_a_misspelt_metric_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`lpisp`: not a metric of pyiqa"):
        Metrics(["lpisp"], tmp_path, PROTOCOLS["basicsr"], 4, CPU)


@needs_pyiqa
def test_without_a_reference_only_what_needs_none(tmp_path: Path) -> None:
    metrics = Metrics(["piqe", "gmsd"], tmp_path, PROTOCOLS["basicsr"], 4, CPU)
    assert metrics(photograph(), photograph()).keys() == {"psnr", "ssim", "piqe", "gmsd"}
    assert metrics(photograph(), None).keys() == {"piqe"}


@pytest.mark.parametrize("side", [1, 8, 12])
def test_tiny_pictures_have_no_ssim(side: int) -> None:
    values = plain()(photograph(side), photograph(side))
    assert math.isnan(values["ssim"])
    assert math.isnan(values["psnr"]) == (side <= 8)


# A benchmark.


def test_rows_and_what_is_kept(benchmark_folder: Path) -> None:
    kept: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def keep(lr: Tensor, sr: Tensor, hr: Tensor | None) -> None:
        assert hr is not None
        kept.append((tuple(sr.shape[2:]), tuple(hr.shape[2:])))

    for pair in open_benchmark(benchmark_folder, 4).pairs:
        row, failed = measure(by_bicubic, pair, 4, plain(), keep)
        assert not failed and row is not None and list(row) == ["picture", "psnr", "ssim", "seconds"]
    assert kept == [((96, 96), (96, 96)), ((64, 64), (64, 64)), ((64, 64), (64, 64))]


def test_the_noise_belongs_to_the_name(benchmark_folder: Path) -> None:
    def numbers(of: Callable[[], None]) -> dict[tuple[int, ...], int]:
        of()
        seen: dict[tuple[int, ...], int] = {}

        def upscale(lr: Tensor, number: int) -> Tensor:
            seen[tuple(lr.shape)] = number
            return bicubic(lr, 4)

        evaluate(upscale, open_benchmark(benchmark_folder, 4), plain())
        return seen

    def without_the_first() -> None:
        for part in ("HR", "LRx4"):
            (benchmark_folder / part / "a.png").unlink()

    whole, rest = numbers(lambda: None), numbers(without_the_first)
    assert rest.items() <= whole.items()
    assert whole[(1, 3, 24, 24)] == number_of("a") == 0xE8B7BE43  # CRC-32: the same on every machine


def test_one_torn_picture_leaves_the_others(benchmark_folder: Path) -> None:
    torn = benchmark_folder / "LRx4" / "b.png"
    torn.write_bytes(torn.read_bytes()[:100])
    rows, failed = evaluate(by_bicubic, open_benchmark(benchmark_folder, 4), plain())
    assert [row["picture"] for row in rows] == ["a", "c"]
    assert [(f["picture"], f["metric"]) for f in failed] == [("b", None)]
    assert "b.png: not a readable image (truncated)" in failed[0]["reason"]


def test_a_reference_of_another_size_is_named(benchmark_folder: Path) -> None:
    write(benchmark_folder / "HR" / "a.png", to_image(photograph(64)))
    rows, failed = evaluate(by_bicubic, open_benchmark(benchmark_folder, 4), plain())
    assert len(rows) == 2
    assert "a.png: 64×64 is not 4 times 24×24" in failed[0]["reason"]


def test_a_smaller_reference_cuts_the_result(benchmark_folder: Path) -> None:
    write(benchmark_folder / "HR" / "a.png", to_image(photograph(96)[:, :, :94, :93]))  # its LR was rounded up
    rows, failed = evaluate(by_bicubic, open_benchmark(benchmark_folder, 4), plain())
    assert not failed and rows[0]["psnr"] > 20


def test_a_metric_without_value_is_left_out_and_named(tmp_path: Path) -> None:
    write(tmp_path / "tiny" / "HR" / "dot.png", to_image(photograph(12)))
    write(tmp_path / "tiny" / "LRx4" / "dot.png", np.zeros((3, 3, 3), np.uint8))
    rows, failed = evaluate(by_bicubic, open_benchmark(tmp_path / "tiny", 4), plain())
    assert rows[0].keys() == {"benchmark", "model", "picture", "psnr", "seconds"}
    assert failed == [{"picture": "dot", "metric": "ssim", "reason": "ssim has no value"}]
    json.dumps(rows, allow_nan=False)


def test_without_references_there_is_no_psnr(benchmark_folder: Path) -> None:
    shutil.rmtree(benchmark_folder / "HR")
    rows, failed = evaluate(by_bicubic, open_benchmark(benchmark_folder, 4), plain())
    assert not failed
    assert summary(rows)["mine"]["bicubic"].keys() == {"seconds"}


def test_means_leave_missing_values_out() -> None:
    rows = [
        {"benchmark": "x", "model": "m", "picture": "1", "psnr": 20.0, "seconds": 1.0},
        {"benchmark": "x", "model": "m", "picture": "2", "psnr": 30.0, "niqe": 5.0, "seconds": 2.0},
        {"benchmark": "x", "model": "n", "picture": "1", "psnr": 40.0, "seconds": 3.0},
    ]
    assert summary(rows) == {
        "x": {"m": {"psnr": 25.0, "seconds": 1.5, "niqe": 5.0}, "n": {"psnr": 40.0, "seconds": 3.0}}
    }


def test_the_headline_is_one_model_s_three_figures_of_each_benchmark() -> None:
    figures = {"psnr": 20.0, "ssim": 0.5, "lpips": 0.3, "niqe": 4.0, "seconds": 1.0}
    rows = [{"benchmark": "x", "model": name, "picture": "1"} | figures for name in ("bicubic", "upsr")]
    rows += [{"benchmark": "y", "model": "upsr", "picture": "1", "niqe": 4.0}]
    rows += [{"benchmark": "z", "model": "bicubic", "picture": "1", "psnr": 20.0}]
    assert headline(rows, "upsr") == {"x/psnr": 20.0, "x/ssim": 0.5, "x/lpips": 0.3}


def test_an_interval_holds_the_mean_and_forgets_the_order() -> None:
    values = np.random.default_rng(1).normal(30, 4, 200).tolist()
    low, high = interval(values)
    assert low is not None and high is not None and low < np.mean(values) < high
    assert high - low == pytest.approx(2 * 1.96 * np.std(values) / math.sqrt(200), rel=0.1)
    assert interval(values[::-1]) == (low, high)
    assert interval([3.0]) == (None, None)


@pytest.mark.parametrize("count", [2, 4, 5, 14, 29])
def test_intervals_of_few_images_cover_what_they_say(count: int) -> None:
    samples = np.random.default_rng(count).normal(0, 1, (2000, count)).tolist()
    covered = [low <= 0 <= high for low, high in map(interval, samples)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)
    assert interval(samples[0][::-1]) == interval(samples[0])


def rows_of(gains: dict[str, float]) -> list[Row]:
    """A baseline that is far from picture to picture, and a model that is better by little."""
    base = {name: 10.0 * i for i, name in enumerate(gains)}
    by_model = [{"model": "upsr", "picture": name, "psnr": base[name] + gain} for name, gain in gains.items()]
    return [
        {"benchmark": "x"} | row
        for row in [{"model": "bicubic", "picture": name, "psnr": v} for name, v in base.items()] + by_model
    ]


def test_differences_are_paired() -> None:
    rows = rows_of({"a": 1.0, "b": 1.1, "c": 0.9, "d": 1.0})
    baseline, upsr = table(rows)
    assert (
        baseline["difference"] is None and baseline["mean"] == 15 and baseline["std"] == pytest.approx(12.91, abs=0.01)
    )
    assert upsr["difference"] == pytest.approx(1.0)
    assert 0.86 < upsr["difference_low"] < 0.9 and 1.1 < upsr["difference_high"] < 1.14  # 1 ± 3.18 · 0.0816 / 2
    assert upsr["high"] - upsr["low"] > 10
    del rows[1]  # the baseline failed on b: it is left out of the difference, not of the mean
    assert table(rows)[1]["difference"] == pytest.approx((1.0 + 0.9 + 1.0) / 3)


def test_the_best_and_the_worst_are_those_with_most_and_least_gain() -> None:
    rows = rows_of({"a": 0.3, "b": -2.0, "c": 0.1, "d": 5.0, "e": 0.2})
    assert showcase(rows, "upsr", 9) == ("psnr", ["d", "a", "e", "c", "b"])
    assert showcase(rows, "upsr", 2) == ("psnr", ["d", "b"])
    worse_lpips = [row | {"lpips": row["psnr"]} for row in rows]
    assert showcase(worse_lpips, "upsr", 2) == ("lpips", ["b", "d"])
