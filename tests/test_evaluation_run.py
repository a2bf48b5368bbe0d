"""Models against each other: the same figures however the work is split, and what is told of what failed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT, params, save_model

from pipelines.evaluate_runs import LABEL, figures, sheet
from upsr.__main__ import main
from upsr.data.benchmarks import open_benchmark, open_benchmarks
from upsr.data.known_benchmarks import KNOWN
from upsr.evaluation import runs
from upsr.evaluation.measure import bicubic
from upsr.evaluation.runs import EvaluationRun, evaluate, mean_row
from upsr.evaluation.statistics import table
from upsr.files import DataError
from upsr.images import read_rgb, resize, to_image, to_tensor, write

CPU = [torch.device("cpu")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny UPSR, untrained."""
    return save_model(tmp_path_factory.mktemp("model"), params(unet={"window": 4}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photographs with their LR."""
    from skimage import data

    for name, left in (("a", 40), ("b", 120), ("c", 200)):
        hr = to_tensor(data.astronaut())[:, :, 40:136, left : left + 80]
        write(tmp_path / "mine" / "HR" / f"{name}.png", to_image(hr))
        write(tmp_path / "mine" / "LRx4" / f"{name}.png", to_image(resize(hr, [24, 20])))
    return tmp_path / "mine"


def run_of(model: Path | None, **changes: Any) -> EvaluationRun:
    usual: dict[str, Any] = {
        "models": {"bicubic": None, "upsr": model},
        "scale": 4, "protocol": "basicsr", "metrics": (), "weights": Path("."),
        "seeds": (0,), "tile": 128, "images": None,
    }  # fmt: skip
    return EvaluationRun(**usual | changes)


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_figures(
    model: Path, folder: Path, weights: Path, tmp_path: Path
) -> None:
    """To the last bit, LPIPS too, although the processes of a test run may use any number of threads."""
    benchmark = open_benchmark(folder, 4)
    one, two = (
        evaluate(run_of(model, metrics=("lpips",), weights=weights, images=tmp_path / str(n)), [benchmark], n, CPU)
        for n in (1, 2)
    )
    assert without_time(one.rows) == without_time(two.rows)
    assert [(row["model"], row["picture"]) for row in one.rows] == [(m, p) for m in ("bicubic", "upsr") for p in "abc"]
    pictures = {path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*.png")}
    assert {path.name for path in pictures} == {
        f"{n}.png" for n in ("lr", "bicubic", "upsr", "hr", "residual", "mix", "weight")
    }
    assert all((tmp_path / "1" / p).read_bytes() == (tmp_path / "2" / p).read_bytes() for p in pictures)


def test_other_files_and_another_order_change_nothing(model: Path, folder: Path) -> None:
    benchmark = open_benchmark(folder, 4)
    whole = without_time(evaluate(run_of(model), [benchmark], 1, CPU).rows)
    for part in ("HR", "LRx4"):
        (folder / part / "a.png").unlink()
    rest = without_time(evaluate(run_of(model), [open_benchmark(folder, 4)], 1, CPU).rows)
    assert rest == [row for row in whole if row["picture"] != "a"]


def test_a_tile_changes_little(model: Path, folder: Path) -> None:
    """The noise is one field; what is left is that a network sees less at a tile's edge."""
    whole, tiled = (
        table(evaluate(run_of(model, tile=tile), [open_benchmark(folder, 4)], 1, CPU).rows)[3] for tile in (128, 16)
    )
    assert (whole["model"], whole["metric"]) == ("upsr", "psnr")
    assert tiled["mean"] == pytest.approx(whole["mean"], abs=0.1)


def test_half_precision_costs_little(model: Path, folder: Path) -> None:
    full, half = (
        table(evaluate(run_of(model, dtype=dtype), [open_benchmark(folder, 4)], 1, CPU).rows)[3]
        for dtype in ("fp32", "bf16")
    )
    assert full["metric"] == "psnr"
    assert half["mean"] == pytest.approx(full["mean"], abs=0.1)
    assert half["mean"] != full["mean"]  # it was in effect


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_one_torn_picture_is_counted_and_the_rest_goes_on(model: Path, folder: Path, workers: int) -> None:
    torn = folder / "LRx4" / "b.png"
    torn.write_bytes(torn.read_bytes()[:100])
    outcome = evaluate(run_of(model), [open_benchmark(folder, 4)], workers, CPU)
    assert [row["picture"] for row in outcome.rows] == ["a", "c"] * 2
    assert [(row["model"], row["picture"]) for row in outcome.lost] == [("bicubic", "b"), ("upsr", "b")]
    assert "b.png: not a readable image (truncated)" in outcome.lost[0]["reason"]


def test_figures_are_means_over_the_sampling_seeds_that_all_have_a_value() -> None:
    rows = [{"picture": "a", "psnr": 20.0, "lpips": 0.2}, {"picture": "a", "psnr": 22.0}]
    assert mean_row(rows) == {"picture": "a", "psnr": 21.0}
    assert mean_row([rows[0], None]) is None


KILLED = """
import os, signal, sys, torch
from pathlib import Path
import psutil
from upsr.evaluation.runs import EvaluationRun
from upsr.data.benchmarks import open_benchmark
from upsr.evaluation.spread import spread

if __name__ == "__main__":
    run = EvaluationRun({"bicubic": None}, 4, "basicsr", (), Path("."), (0,), 128, None)
    results = spread(run, run.jobs([open_benchmark(sys.argv[1], 4)]), 2, [torch.device("cpu")])
    next(results)
    print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_no_process_outlives_a_parent_that_is_killed(folder: Path) -> None:
    script = folder.with_name("killed.py")
    script.write_text(KILLED)
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    children = [int(number) for number in done.stdout.split()]
    assert done.returncode == -signal.SIGKILL and len(children) >= 2
    deadline = time.monotonic() + 60
    while any(psutil.pid_exists(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)


# The command.


def test_progress_is_a_line_where_no_terminal_shows_a_bar(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as in the log of a night."""
    command = ["evaluate", "--model", "bicubic", "--benchmark", str(folder), "--metrics"]
    main(command)
    assert capsys.readouterr().err == "", "of an evaluation that takes no time"
    monkeypatch.setattr(runs, "PROGRESS_SECONDS", 0.0)
    main(command)
    assert capsys.readouterr().err.splitlines() == [f"evaluate: {done} of 3 images" for done in (1, 2, 3)]


def test_evaluate_by_itself_writes_statistics_and_names_what_failed(folder: Path, capsys, tmp_path: Path) -> None:
    torn = folder / "HR" / "c.png"
    torn.write_bytes(torn.read_bytes()[:100])
    out = tmp_path / "out.json"
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "--model", "bicubic", "--benchmark", str(folder), "--metrics", "--json", str(out)])
    assert end.value.code == 2
    said = capsys.readouterr()
    assert "2 of 3 images" in said.out and "c.png: not a readable image (truncated)" in said.out
    assert said.err.endswith("error: 1 of 3 images failed\n")
    result = json.loads(out.read_text())
    assert result["statistics"]["psnr"]["pictures"] == 2
    assert result["mean"]["psnr"] == sum(row["psnr"] for row in result["rows"]) / 2
    assert result["benchmark"]["files"]["HR/a.png"]["bytes"] == (folder / "HR" / "a.png").stat().st_size


def test_fewer_steps_are_measured_and_named(model: Path, folder: Path, tmp_path: Path) -> None:
    def measured(*options: str) -> dict[str, Any]:
        command = ["evaluate", "--model", str(model), "--benchmark", str(folder), "--metrics", *options]
        main([*command, "--json", str(tmp_path / "out.json")])
        return json.loads((tmp_path / "out.json").read_text())

    whole, one = measured(), measured("--steps", "1")
    assert {row["model"] for row in whole["rows"]} == {whole["model"]} == {str(model)}
    assert {row["model"] for row in one["rows"]} == {one["model"]} == {f"{model} --steps 1"}
    assert (whole["steps"], one["steps"]) == (None, 1) and one["mean"]["psnr"] != whole["mean"]["psnr"]


def test_steps_that_a_model_does_not_have_are_one_line(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, message in (
        (str(model), "sampling steps: 9, but the model has 2: choose 1 to 2"),
        ("atd-48", "sampling steps: 9, but .*atd-48/weights.safetensors does not sample: leave them out"),
        ("bicubic", "sampling steps: 9, but bicubic does not sample: leave them out"),
    ):
        for workers in ("1", "2"):
            with pytest.raises(SystemExit, match="2"):
                main(["evaluate", "--model", name, "--benchmark", str(folder), "--steps", "9", "--workers", workers])
            assert re.fullmatch(f"error: {message}", capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize("reference", [True, False])
def test_images_of_another_program_are_measured_by_name(
    folder: Path, capsys, tmp_path: Path, weights: Path, reference: bool
) -> None:
    """Those of bicubic get bicubic's figures, but no time; what is not there or does not fit is named and left out."""
    theirs, out = tmp_path / "theirs", tmp_path / "out.json"
    for name, suffix in (("a", ".png"), ("b", ".bmp"), ("c_out", ".png")):
        lr = to_tensor(read_rgb(folder / "LRx4" / f"{name[0]}.png"))
        write(theirs / f"{name}{suffix}", to_image(bicubic(lr, 4)))
    if not reference:
        (folder / "HR").rename(tmp_path / "HR")

    def measured(model: str) -> dict[str, Any]:
        command = ["evaluate", "--model", model, "--benchmark", str(folder), "--json", str(out), "--workers", "1"]
        main([*command, "--metrics", "lpips" if reference else "piqe", "--weights", str(weights)])
        return json.loads(out.read_text())

    expected = measured("bicubic")
    with pytest.raises(SystemExit) as end:
        measured(f"folder:{theirs}")
    said = capsys.readouterr()
    assert end.value.code == 2 and said.err.endswith("error: 1 of 3 images failed\n")
    assert f"c: {theirs}: no image of c: name it as the benchmark does, such as c.png\n" in said.out
    found = json.loads(out.read_text())
    assert [row | {"model": "bicubic"} for row in found["rows"]] == without_time(expected["rows"][:2])
    assert found["statistics"]["lpips" if reference else "piqe"]["pictures"] == 2
    # another size
    write(theirs / "c.png", to_image(bicubic(lr, 2)))
    with pytest.raises(SystemExit):
        measured(f"folder:{theirs}")
    assert f"{theirs}/c.png: 40×48 is not 4 times 20×24, the size of its LR: make it again" in capsys.readouterr().out


def test_a_folder_that_cannot_be_measured_is_one_line(folder: Path, capsys, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    for make, message in (
        (lambda: None, f"{theirs}: no such folder of images"),
        (theirs.mkdir, f"every image failed: correct the first: {theirs}: no image of a: name it as"),
        (lambda: [write(theirs / name, read_rgb(folder / "HR/a.png")) for name in ("a.png", "a.jpg")],
         "a.png: a.jpg has the same name without suffix: rename one"),
    ):  # fmt: skip
        make()
        with pytest.raises(SystemExit, match="2"):
            main(["evaluate", "--model", f"folder:{theirs}", "--benchmark", str(folder), "--metrics"])
        assert message in capsys.readouterr().err.splitlines()[-1]


# Benchmarks.


def test_a_benchmark_that_is_not_there_says_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    found, absent = open_benchmarks((*KNOWN, str(folder)), 4)
    assert [b.name for b in found] == ["mine"] and absent.keys() == KNOWN.keys()
    assert absent["Set5"].startswith("data/benchmarks/Set5: no such folder: get https://")
    assert "copy Set5/HR to data/benchmarks/Set5/HR" in absent["Set5"]
    with pytest.raises(DataError, match="none of Set5 is available: data/benchmarks/Set5: no such folder: get"):
        open_benchmarks(("Set5",), 4)


def test_how_lr_came_to_be_is_on_record(folder: Path) -> None:
    assert open_benchmark(folder, 4).manifest["lr"] == "not stated"
    (folder / "manifest.json").write_text('{"lr": "photographed from further away"}')
    assert open_benchmark(folder, 4).manifest["lr"] == "photographed from further away"
    named = folder.rename(folder.with_name("Set5"))
    (named / "manifest.json").unlink()
    manifest = open_benchmark(named, 4).manifest
    assert manifest["lr"] == "bicubic x4 by MATLAB's imresize"
    assert (manifest["pictures"], manifest["known_pictures"]) == (3, 5)


def test_benchmarks_open_as_they_are_released(folder: Path, tmp_path: Path) -> None:
    resshift, realsr = tmp_path / "ImageNet-Test", tmp_path / "RealSR"
    for name in "abc":
        hr, lr = (read_rgb(folder / part / f"{name}.png") for part in ("HR", "LRx4"))
        write(resshift / "gt" / f"{name}.png", hr)
        write(resshift / "lq" / f"{name}.png", lr)
        write(realsr / "Nikon" / "Test" / "4" / f"{name}_HR.png", hr)
        write(realsr / "Nikon" / "Test" / "4" / f"{name}_LR4.png", lr)
        write(realsr / "Nikon" / "Train" / "4" / f"{name}_LR4.png", lr)
    for released in (resshift, realsr):
        pairs = open_benchmark(released, 4).pairs
        assert [pair.name for pair in pairs] == ["a", "b", "c"]
        assert all(pair.hr and pair.hr.is_file() for pair in pairs)


def test_names_line_variants_up() -> None:
    rows = [
        {"benchmark": "Set5", "model": model, "picture": picture, "psnr": value, "seconds": 1.0}
        for model, value in (("bicubic", 28.0), ("upsr", 29.0))
        for picture in ("a", "b")
    ]
    statistics = table(rows)
    assert figures(statistics, "bicubic") == {"Set5/psnr": 28.0, "Set5/seconds": 1.0}
    assert figures(statistics, "upsr") == {"Set5/psnr": 29.0, "Set5/psnr_minus_bicubic": 1.0, "Set5/seconds": 1.0}


@pytest.mark.parametrize(("height", "width"), [(512, 400), (300, 600), (64, 64)])
def test_a_sheet_names_its_images_and_fits_the_page_of_a_model(height: int, width: int, tmp_path: Path) -> None:
    """Which is 789 pixels wide at 1400, beside MLflow's assistant."""
    grays = {"lr": 40, "bicubic": 80, "upsr": 120, "hr": 160}
    for name, gray in grays.items():
        write(tmp_path / f"{name}.png", np.full((height, width, 3), gray, np.uint8))
    shown = sheet(tmp_path)
    h, w = shown.shape[0] // 2, shown.shape[1] // 3
    assert h - LABEL == pytest.approx(w * height / width, abs=1) and 3 * w <= 789
    cells = [shown[y * h : (y + 1) * h, x * w : (x + 1) * w] for y in (0, 1) for x in (0, 1, 2)]
    assert [int(cell[-1, -1, 0]) for cell in cells] == [*grays.values(), 255, 255]
    labels = [cell[:LABEL].tobytes() for cell in cells[:4]]
    assert len(set(labels)) == 4 and all(min(label) < 50 for label in labels)
