"""The night: what is compared with what, what counts as worse, and when the champion changes."""

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from conftest import params, settings
from test_registry import painter, register

from pipelines import flows, nightly, registry
from upsr import images
from upsr.config import Nightly
from upsr.files import sha256

RULES = Nightly.model_validate(
    {
        "metrics": {"psnr": {"better": "higher", "tolerance": 0.1}, "lpips": {"better": "lower", "tolerance": 0.01}},
        "improves": "lpips",
        "by": 0.005,
    }
)
BENCHMARKS = {"evaluate": {"benchmarks": ["two", "nowhere"], "metrics": []}, "nightly": {"improves": "psnr"}}


def figures(psnr: float, lpips: float) -> dict[str, dict[str, float]]:
    return {"Set5": {"psnr": psnr, "lpips": lpips, "seconds": 1.0}}


@pytest.mark.parametrize(
    ("psnr", "lpips", "worse"),
    [(29.91, 0.209, []), (29.89, 0.2, ["psnr"]), (31, 0.211, ["lpips"]), (20, 0.5, ["psnr", "lpips"]), (40, 0, [])],
)
def test_worse_is_what_exceeds_the_tolerance_in_the_metrics_direction(
    psnr: float, lpips: float, worse: list[str]
) -> None:
    rows = nightly.compare(figures(psnr, lpips), figures(30, 0.2), RULES, "champion", "last night")
    assert [row.metric for row in rows] == ["psnr", "lpips"]
    assert [row.metric for row in rows if row.worse] == worse


def test_an_improvement_is_of_the_ruling_metric_over_all_that_the_champion_has() -> None:
    assert nightly.improves(figures(30, 0.19), figures(30, 0.2), RULES)
    assert not nightly.improves(figures(35, 0.196), figures(30, 0.2), RULES), "less than `by`"
    both = figures(30, 0.2) | {"RealSet65": {"lpips": 0.2}}
    assert not nightly.improves(figures(30, 0.1), both, RULES), "on one of two benchmarks nothing is known of it"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a benchmark of two small pictures, another one that is absent, and a store of its own."""
    (tmp_path / "params.yaml").write_text(json.dumps(settings(**BENCHMARKS)))
    random = np.random.default_rng(0)
    for name in "ab":
        for folder, side in (("HR", 48), ("LRx4", 12)):
            picture = random.integers(100, 156, (side, side, 3), np.uint8)
            images.write(tmp_path / "data" / "benchmarks" / "two" / folder / f"{name}.png", picture)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def record(name: str, digest: str, pictures: str, psnr: float, protocol: str = "basicsr") -> None:
    """An earlier night's."""
    nightly.REPORTS.mkdir(parents=True, exist_ok=True)
    values = {
        "name": name,
        "settings": {"protocol": protocol, "seed": 0, "tile": 128},
        "models": {"champion": {"digest": digest}},
        "benchmarks": {"two": pictures},
        "figures": {"champion": {"two": {"psnr": psnr}}},
    }
    (nightly.REPORTS / f"{name}.json").write_text(json.dumps(values))


def measured(night: nightly.NightlyRun, role: str, psnr: float) -> None:
    result = {"mean": {"psnr": psnr}, "failed": [], "absent": {}}
    (night.folder / f"{role}-two.json").write_text(json.dumps(result))


def test_a_night_is_held_against_the_last_one_with_the_same_weights_pictures_and_protocol(project: Path) -> None:
    weights = painter(nightly.LOCAL, 0.5)
    digest = sha256(weights)
    night = nightly.begin(params(**BENCHMARKS))
    pictures = night.benchmarks["two"]
    record("2001-01-01", digest, pictures, 10)
    record("2001-01-02", digest, pictures, 30)
    record("2001-01-03", "others", pictures, 11)
    record("2001-01-04", digest, pictures, 12, protocol="upsr")
    measured(night, "candidate", 29.95)
    nightly.judge(night, RULES)
    (row,) = night.rows
    assert (row.before, row.now, row.against, row.worse) == (30, 29.95, "on 2001-01-02", False)

    record("2001-01-05", digest, "changed pictures", 40)
    night.rows.clear()
    nightly.judge(night, RULES)
    assert night.rows == [] and night.promotes is None


def test_a_night_without_store_benchmark_or_figures_is_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    night = nightly.begin(params(**BENCHMARKS))
    assert night.models == {} and nightly.evaluations(night, params(**BENCHMARKS)) == {}
    nightly.judge(night, RULES)
    text = nightly.markdown(night)
    assert "**Nothing was measured**" in text
    for told in ("no registered model is available", "no model", "benchmark nowhere is absent"):
        assert told in text
    painter(nightly.LOCAL, 0.5)
    night = nightly.begin(params(**BENCHMARKS))
    assert night.models["candidate"].version is None, "what is not registered cannot become the champion"
    nightly.judge(night, RULES)
    assert "candidate on two: the evaluation failed" in night.told


def test_a_second_night_of_a_date_overwrites_nothing(project: Path) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5)
    assert nightly._name(now) == "2026-01-02"
    (nightly.REPORTS / "2026-01-02").mkdir(parents=True)
    assert nightly._name(now) == "2026-01-02-030405" > "2026-01-02"


@pytest.mark.slow
def test_a_regression_fails_the_night_and_an_improvement_moves_the_alias(project: Path, api) -> None:
    example = project / "data/benchmarks/two/LRx4/a.png"

    def versions() -> tuple[str, str]:
        champion, newest = registry.champion(), registry.newest()
        assert champion and newest
        return str(champion.version), str(newest.version)

    register(painter(project / "good.safetensors", 0.4), example)
    registry.promote("1")
    register(painter(project / "bad.safetensors", 0.2), example)
    with pytest.raises(nightly.Regression, match=r"candidate on two: psnr \d+\.\d+, champion \d+\.\d+"):
        flows.nightly(root=str(project))
    assert versions() == ("1", "2")
    (first,) = nightly.REPORTS.glob("*.json")
    kept = first.read_bytes()

    register(painter(project / "best.safetensors", 0.5), example)
    flows.nightly(root=str(project))
    assert versions() == ("3", "3")
    assert first.read_bytes() == kept and len(list(nightly.REPORTS.glob("*.json"))) == 2
    last = json.loads(max(nightly.REPORTS.glob("*.json"), key=lambda path: path.stem).read_text())
    assert last["promotes"] == "3" and last["verdict"] == "Version 3 becomes the champion"
    assert {row["against"] for row in last["rows"]} == {f"on {first.stem}", "champion"}
    artifacts = [a for a in api.read_artifacts() if a.key == "nightly"]
    assert any("**worse**" in a.data and "benchmark nowhere is absent" in a.data for a in artifacts)
    assert any("Version 3 becomes the champion" in a.data for a in artifacts)
    states = {run.name: run.state_name for run in api.read_flow_runs() if run.state_name == "Failed"}
    assert states, "the first night's run did not fail"
