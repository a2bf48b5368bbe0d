"""`upsr compare` on a real MLflow store: means over seeds, and only what can be compared."""

from pathlib import Path

import pytest

from pipelines import tracking
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
        record("residual", 1, psnr=22.0, lpips=0.7)
        record("dynamic", 0, psnr=21.5, lpips=0.4)
        record("dynamic", 1, psnr=21.5, lpips=0.4, workers=2)
        record("dynamic", 1, psnr=30.0, lpips=0.1, steps=15)  # another chain: a line of its own
        record("dynamic", 2, psnr=99.0, lpips=0.0, digest="other")
        record("dynamic", 3, psnr=99.0, lpips=0.0, extra="1")
        record("residual", 0, psnr=20.0, lpips=0.5)
        yield


def record(
    variant: str, seed: int, *, psnr: float, lpips: float, steps: int = 5, workers: int = 1, digest: str = "a", **more
):
    params = {"seed": seed, "unet": {"dim": 48}, "uncertainty": {"variant": variant}, "diffusion": {"steps": steps}}
    params |= {"train": {"workers": workers}} | more
    with tracking.start("evaluate", variant, params, {"data.holdout": digest}) as tracker:
        figures = {"psnr": psnr, "lpips": lpips, "psnr_bicubic": 19.0, "lpips_bicubic": 0.8, "psnr_atd": 18.0}
        tracker.metrics({f"holdout/{name}": value for name, value in figures.items()})


def cells(page: str) -> list[list[str]]:
    return [[c.strip() for c in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]


def test_settings_are_compared_over_their_seeds(store, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["compare", "-o", str(tmp_path)])
    page = (tmp_path / "variants.md").read_text()
    head, _, *rows = cells(page)
    assert head == ["uncertainty.variant", "unet.dim", "diffusion.steps", "seeds", "psnr ↑", "lpips ↓"]
    assert ["residual", "48", "5", "2", "21.0000 ± 1.4142", "0.6000 ± 0.1414"] in rows
    assert ["dynamic", "48", "5", "2", "21.5000 ± 0.0000", "0.4000 ± 0.0000"] in rows
    assert ["dynamic", "48", "15", "1", "**30.0000**", "**0.1000**"] in rows
    assert len(rows) == 3
    assert "1 with other images, 1 with parameters of another version, 2 with a newer run of the same settings" in page
    assert images.read(tmp_path / "variants.png").shape[:2] == (600, 840)
    assert page in capsys.readouterr().out


def test_nothing_to_compare_is_said(store, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(["compare", "--benchmark", "Set5", "-o", str(tmp_path)])
    assert end.value.code == 2
    assert "evaluate: no run in MLflow has figures of `Set5`" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
