"""`upsr compare` on a real MLflow store: means and contrasts over seeds, and only what can be compared."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import browser, script

from pipelines import compare_page, tracking
from pipelines.evaluate_runs import named
from upsr import images
from upsr.__main__ import main


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    """Two variants × two seeds, and runs that must not count."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        record("residual", 0, psnr=1.0, lpips=0.9)  # done again below
        record("residual", 0, psnr=20.0, lpips=0.5)
        record("residual", 1, psnr=22.0, lpips=0.7, old=True)
        record("dynamic", 0, psnr=21.5, lpips=0.4)
        record("dynamic", 1, psnr=21.5, lpips=0.4, workers=2)
        record("dynamic", 1, psnr=30.0, lpips=0.1, steps=15)  # another chain: a line of its own
        record("dynamic", 2, psnr=99.0, lpips=0.0, digest="other")
        record("dynamic", 3, psnr=99.0, lpips=0.0, extra="1")
        record("residual", 0, psnr=20.0, lpips=0.5)
        yield


def record(
    variant: str,
    seed: int,
    *,
    psnr: float,
    lpips: float,
    steps: int = 5,
    workers: int = 1,
    digest: str = "a",
    images: int = 4,
    experiment: str = "evaluate",
    old: bool = False,
    **more,
):
    """The runs that the stage `evaluate` records, or the one of 0.2.0; without images it has no table of them."""
    params = {"seed": seed, "unet": {"dim": 48}, "uncertainty": {"variant": variant}, "diffusion": {"steps": steps}}
    params |= {"train": {"workers": workers}} | more
    tags = {"data.holdout": digest}
    figures = {"psnr": psnr, "lpips": lpips, "psnr_minus_bicubic": psnr - 19}
    bicubic = {"psnr": 19.0, "lpips": 0.8}
    rows = [
        {"benchmark": benchmark, "picture": f"a/{i}", "model": model, "psnr": psnr + i, "lpips": lpips}
        for benchmark, model in (("holdout", "bicubic"), ("holdout", "upsr"), ("Set5", "upsr"))
        for i in range(images)
        if old or model == "upsr"
    ]
    with tracking.start(experiment, variant, params, tags) as parent:
        if old:
            figures |= {"psnr_bicubic": 19.0, "lpips_bicubic": 0.8, "psnr_atd": 18.0, "psnr_over_bicubic": psnr - 19}
            log(parent, figures, rows, "picture", "model")
            return
        for model, own in (("bicubic", bicubic), ("upsr", figures)):
            name, settings = f"{model}-{variant}", params if model == "upsr" else {}
            with tracking.start(experiment, name, settings, tags | {"model": model}, parent=parent.run_id) as tracker:
                log(tracker, own, [{k: v for k, v in row.items() if k != "model"} for row in rows], "picture")


def log(tracker: tracking.Tracker, figures: dict[str, float], rows: list[dict], *names: str) -> None:
    tracker.metrics({f"holdout/{name}": value for name, value in figures.items()})
    if rows:
        tracker.table(named(rows, "picture", "benchmark", *names), "per_image")


def cells(page: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith("|")]
    return [[c.strip() for c in line.removeprefix("|").removesuffix("|").split("|")] for line in lines]


def test_settings_are_compared_over_their_seeds(store, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["compare", "-o", str(tmp_path)])
    page = (tmp_path / "variants.md").read_text()
    head, _, *rows = cells(page.partition("## Contrasts")[0])
    assert head == ["Variant", "Width", "`diffusion.steps`", "Seeds", "PSNR ↑", "LPIPS ↓"]
    assert ["residual", "48", "5", "2", "21.0000 ± 1.4142", "0.6000 ± 0.1414"] in rows
    assert ["dynamic", "48", "5", "2", "21.5000 ± 0.0000", "0.4000 ± 0.0000"] in rows
    assert ["dynamic", "48", "15", "1", "**30.0000**", "**0.1000**"] in rows
    assert len(rows) == 3
    assert "1 with other images, 1 with parameters of another version, 2 with a newer run of the same settings" in page
    assert images.read(tmp_path / "variants.png").shape[:2] == (600, 840)
    assert page in capsys.readouterr().out
    best = "dynamic, width 48, diffusion.steps 15"
    assert f"**Best on average: in PSNR, {best} (30.0000); in LPIPS, {best} (0.1000).**" in page
    shown = (tmp_path / "compare.html").read_text()
    assert ">dynamic</td>" in shown and shown.count('src="data:image/png;base64,') == 2 and 'png"' not in shown


def contrasts(folder: Path, *options: str) -> tuple[list[list[str]], str]:
    """The table's rows and the page of a comparison."""
    main(["compare", "-o", str(folder), *options])
    page = (folder / "variants.md").read_text()
    return cells(page.partition("## Contrasts")[2])[2:], page


def test_arms_are_contrasted_with_the_papers(store, tmp_path: Path):
    """By hand: over seeds, PSNR differs by 1.5 and -0.5, LPIPS by -0.1 and -0.3; t(1) = 12.706 at 97.5 %."""
    rows, page = contrasts(tmp_path)
    name = "dynamic (diffusion.steps 5) against residual"
    assert rows == [
        [name, "PSNR", "0.5000", "-12.2062 to 13.2062", "0.7048", "undecided", "2", "4"],
        [name, "LPIPS", "-0.2000", "-1.4706 to 1.0706", "0.5903", "undecided", "2", "4"],
    ]
    assert page.count("undecided") == 2, "each contrast is said once"
    assert "Without an arm to compare with: dynamic (diffusion.steps 15)." in page
    assert "![Forest plot of the contrasts](variants-forest.png)" in page
    assert images.read(tmp_path / "variants-forest.png").size


def test_any_setting_can_be_the_reference_and_one_seed_gives_no_interval(store, tmp_path: Path):
    rows, page = contrasts(tmp_path, "--against", "diffusion.steps=5")
    name = "dynamic (diffusion.steps 15) against 5"
    assert rows[0] == [name, "PSNR", "8.5000", "", "", "no interval", "1", "4"]
    assert "an interval needs at least two seeds and two images" in page
    assert (tmp_path / "variants-forest.png").is_file()
    rows, page = contrasts(tmp_path, "--against", "uncertainty.variant=isotropic")
    assert not rows and "None: no two arms" in page and "variants-forest" not in page
    assert not (tmp_path / "variants-forest.png").exists(), "the plot of another comparison was left"


def test_a_difference_is_found_and_missing_tables_are_named(store, tmp_path: Path):
    for seed in range(5):
        record("residual", seed, psnr=20 + 0.01 * seed**2, lpips=0.5, experiment="five")
        record("dynamic", seed, psnr=21, lpips=0.5, experiment="five", images=4 if seed < 4 else 0)
        record("isotropic", seed, psnr=21, lpips=0.5, experiment="five", images=4 if seed else 3)
    rows, page = contrasts(tmp_path, "--experiment", "five")
    assert [(row[0], row[1], *row[5:]) for row in rows] == [
        ("dynamic against residual", "PSNR", "better", "4", "4"),
        ("dynamic against residual", "LPIPS", "equal", "4", "4"),
        ("isotropic against residual", "PSNR", "not measured", "0", "0"),
        ("isotropic against residual", "LPIPS", "not measured", "0", "0"),
    ]
    assert "holdout: not measured: psnr of isotropic is missing for a/3, seed 0: evaluate it again" in page
    assert "without values per image: upsr-dynamic (" in page


def test_a_single_setting_is_not_the_best_of_anything(store, tmp_path: Path):
    record("residual", 0, psnr=21, lpips=0.5, experiment="single")
    _, page = contrasts(tmp_path, "--experiment", "single")
    assert "**Only one setting was evaluated: residual, width 48.**" in page and "UPSR in 1 run:" in page
    assert "best" not in page.lower() and page.count("**") == 2, "nothing else is bold"


def test_a_benchmark_without_originals_has_no_plot(store, tmp_path: Path):
    for variant, niqe in (("residual", 5.5), ("dynamic", 4.5)):
        params = {"seed": 0, "unet": {"dim": 48}, "uncertainty": {"variant": variant}}
        with tracking.start("real", f"upsr-{variant}", params, {"model": "upsr"}) as tracker:
            tracker.metrics({"RealSet65/niqe": niqe})
    _, page = contrasts(tmp_path, "--experiment", "real", "--benchmark", "RealSet65")
    assert "**Best on average: in NIQE, dynamic, width 48 (4.5000).**" in page
    assert "variants.png" not in page and not (tmp_path / "variants.png").exists()


@pytest.mark.parametrize("bicubic", [None, (19.0, 0.8)])
def test_bicubic_does_not_squeeze_the_variants(tmp_path: Path, bicubic: tuple[float, float] | None):
    """Two dots are as far apart as the plot is wide. Their markers in the legend are above each other."""
    columns = ["uncertainty.variant", "unet.dim"]
    rows = [["residual", 48, 24.0, None, 0.31, None], ["dynamic", 48, 24.2, None, 0.30, None]]
    table = pd.DataFrame(rows, columns=[*columns, "psnr", "psnr std", "lpips", "lpips std"])
    compare_page.plot(table, columns, bicubic, "holdout", tmp_path / "plot.png")
    pixels = images.read(tmp_path / "plot.png")[..., :3].astype(int)
    blue, orange = (
        set(np.nonzero(abs(pixels - colour).max(axis=2) < 8)[1]) for colour in ((31, 119, 180), (255, 127, 14))
    )
    assert np.median(list(orange - blue)) - np.median(list(blue - orange)) > 500


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not on PATH")
def test_the_page_fits_a_phone(store, tmp_path: Path):
    """Wide tables scroll in themselves, and a link leads back to the report beside the page."""
    contrasts(tmp_path)
    assert "index.html" not in (tmp_path / "compare.html").read_text()
    (tmp_path / "index.html").touch()
    contrasts(tmp_path)
    with browser(tmp_path / "profile") as (call, errors):
        call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=2, mobile=True)
        call("Page.navigate", url=(tmp_path / "compare.html").as_uri())
        js = partial(script, call)
        js("new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))")
        assert js("document.documentElement.scrollWidth") == 400
        assert js("[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth).length")
        assert js("document.querySelector('a').getAttribute('href')") == "index.html"
        assert errors == []


@pytest.mark.parametrize("against", ["residual", "train.workers=1"])
def test_a_reference_that_no_run_could_have_is_refused(store, tmp_path: Path, capsys, against: str):
    with pytest.raises(SystemExit) as end:
        main(["compare", "-o", str(tmp_path), "--against", against])
    assert end.value.code == 2
    reason = "no such setting: write KEY=VALUE, KEY one of uncertainty.variant, unet.dim, diffusion.steps"
    assert f"--against {against}: {reason}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_stays_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SystemExit):
        main(["compare"])
    assert "mlflow.db: no MLflow store: go to a checkout" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_to_compare_is_said(store, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(["compare", "--benchmark", "Set5", "-o", str(tmp_path)])
    assert end.value.code == 2
    assert "evaluate: no run in MLflow has figures of `Set5`" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
