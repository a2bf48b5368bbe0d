"""The night: what evidence is collected, kept and looked up again, against a real store and a real Prefect server."""

import json
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from conftest import params, settings
from test_registry import painter, register

from pipelines import flows, nightly, registry, tracking
from pipelines.gate import Verdict
from upsr import images

BENCHMARKS = {"evaluate": {"benchmarks": ["two", "nowhere"], "metrics": []}, "nightly": {"improves": "psnr"}}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a benchmark of two small images, another one that is absent, and a store of its own."""
    (tmp_path / "params.yaml").write_text(json.dumps(settings(**BENCHMARKS)))
    random = np.random.default_rng(0)
    for name in "ab":
        for folder, side in (("HR", 48), ("LRx4", 12)):
            image = random.integers(100, 156, (side, side, 3), np.uint8)
            images.write(tmp_path / "data" / "benchmarks" / "two" / folder / f"{name}.png", image)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def version(project: Path, grey: float) -> str:
    """Registers a network that paints everything in one grey; 0.5 fits the images best."""
    return register(painter(project / f"{grey}.safetensors", grey), project / "data/benchmarks/two/LRx4/a.png")


@pytest.fixture
def champion(project: Path) -> str:
    number = version(project, 0.4)
    registry.promote(number)
    return number


def a_night(psnr: dict[str, float], *, accept: bool = False) -> tuple[nightly.NightlyRun, Verdict]:
    """A night whose evaluations gave these figures, by role, on both images; its record is saved."""
    run = nightly.begin(params(**BENCHMARKS), accept)
    for role, value in psnr.items():
        rows = [{"picture": name, "psnr": value + i, "ssim": 0.5} for i, name in enumerate("ab")]
        path = run.folder / f"{role}-two.json"
        path.write_text(json.dumps({"rows": rows, "failed": [], "absent": {}}))
    verdict = nightly.judge(run, params(**BENCHMARKS))
    nightly.save(run, verdict)
    time.sleep(1)  # nights of one date are told apart by the second
    return run, verdict


def test_the_champion_is_held_against_the_night_that_crowned_it(project: Path, champion: str) -> None:
    a_night({"champion": 30})
    registry.promote(version(project, 0.5))  # by hand
    for psnr in (31, 30.98, 30.96):
        _, verdict = a_night({"champion": psnr})
        assert (verdict.outcome, verdict.alarm) == ("no candidate", False)
    _, verdict = a_night({"champion": 30.94})
    assert verdict.alarm and "psnr on two differs by 0.0600" in str(verdict)


def test_a_promotion_is_found_again_as_reference_and_as_predecessor(project: Path, champion: str) -> None:
    number = version(project, 0.45)
    run, verdict = a_night({"champion": 30, "candidate": 31})
    assert verdict.outcome == "promoted" and run.models["candidate"].version == number
    registry.promote(number)
    version(project, 0.5)
    _, verdict = a_night({"champion": 31.04, "candidate": 32})
    assert verdict.outcome == "promoted"
    assert {c.against for c in verdict.comparisons if c.model == "champion"} == {run.name}
    registry.promote(version(project, 0.3))
    version(project, 0.2)
    _, verdict = a_night({"champion": 30.9, "candidate": 31.94})  # its predecessor had 32
    assert verdict.outcome == "rejected" and any("psnr gains -0.06" in reason for reason in verdict.reasons)


def test_changed_images_are_an_alarm_until_they_are_accepted(project: Path, champion: str) -> None:
    a_night({"champion": 30})
    image = project / "data/benchmarks/two/HR/a.png"
    images.write(image, 255 - images.read(image))
    _, verdict = a_night({"champion": 25})
    assert verdict.alarm and "the images of two are not those of" in str(verdict)
    _, verdict = a_night({"champion": 25}, accept=True)
    assert not verdict.alarm
    _, verdict = a_night({"champion": 25.01})
    assert not verdict.alarm
    for file in (project / "data/benchmarks/two").rglob("b.png"):
        file.unlink()
    _, verdict = a_night({"champion": 30})
    assert verdict.alarm, "fewer images"


def test_a_deleted_champion_is_an_alarm_and_nobody_is_crowned(project: Path, champion: str) -> None:
    registry.promote(version(project, 0.45))
    version(project, 0.5)
    _, verdict = a_night({"champion": 30, "candidate": 31})
    assert verdict.outcome == "promoted"
    tracking.client().delete_registered_model_alias(registry.NAME, registry.CHAMPION)
    _, verdict = a_night({"candidate": 31, "bicubic": 20})
    assert verdict.alarm and "no version has the alias `champion`, but" in str(verdict)


def test_weights_are_those_that_were_registered(project: Path, champion: str) -> None:
    stored = registry.weights_of(f"models:/upsr/{champion}")
    stored.write_bytes(painter(project / "other.safetensors", 0.5).read_bytes())
    run = nightly.begin(params(**BENCHMARKS))
    assert nightly.evaluations(run, params(**BENCHMARKS)) == {}
    assert "has other weights than were registered" in run.lost[0]
    stored.unlink()
    assert nightly.begin(params(**BENCHMARKS)).lost[0].startswith(f"version {champion} cannot be measured")
    stored.write_bytes((project / "0.4.safetensors").read_bytes())
    newest = version(project, 0.5)
    registry.weights_of(f"models:/upsr/{newest}").unlink()
    _, verdict = a_night({"champion": 30})
    assert (verdict.outcome, verdict.alarm) == ("undecided", False)
    assert "candidate on two: no psnr of a" in str(verdict)


def test_damaged_and_future_records_are_named_and_change_nothing(project: Path, champion: str) -> None:
    a_night({"champion": 30})
    (first,) = nightly.REPORTS.glob("*.json")
    damaged, future = nightly.REPORTS / "2001-01-01.json", nightly.REPORTS / "2099-01-01.json"
    damaged.write_text('{"name": "2001')
    future.write_text(first.read_text().replace(first.stem, "2099-01-01").replace("30.0", "10.0"))
    run, verdict = a_night({"champion": 30.01})
    assert not verdict.alarm
    assert any("2001-01-01.json is not a record" in told for told in run.told)
    assert any("2099-01-01.json is a record of the future" in told for told in run.told)
    run, verdict = a_night({"champion": 30})
    assert not verdict.alarm and not any("2001" in told for told in run.told), "an alarm is given once"


def test_two_benchmarks_of_one_name_are_refused(project: Path, champion: str) -> None:
    (project / "elsewhere").mkdir()
    (project / "elsewhere/two").symlink_to(project / "data/benchmarks/two")
    chosen = params(evaluate={"benchmarks": ["two", "elsewhere/two"], "metrics": []}, nightly={"improves": "psnr"})
    assert "two are named two" in nightly.begin(chosen).lost[0]


@pytest.mark.parametrize("name", ["data/benchmarks/two/", "linked"])
def test_a_benchmark_may_be_linked_and_end_in_a_slash(name: str, project: Path, champion: str) -> None:
    (project / "data/benchmarks/linked").symlink_to(project / "data/benchmarks/two")
    chosen = params(evaluate={"benchmarks": [name], "metrics": []}, nightly={"improves": "psnr"})
    run = nightly.begin(chosen)
    assert list(nightly.evaluations(run, chosen)) == ["champion-two"]


def test_a_second_night_of_a_date_overwrites_nothing(project: Path) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5)
    assert nightly._name(now) == "2026-01-02"
    (nightly.REPORTS / "2026-01-02").mkdir(parents=True)
    assert nightly._name(now) == "2026-01-02-030405" > "2026-01-02"


# The flow, against a Prefect server


def aliases() -> tuple[str | None, str]:
    """The champion's number and the newest one."""
    champion, newest = registry.champion(), registry.newest()
    assert newest
    return champion and str(champion.version), str(newest.version)


@pytest.mark.slow
def test_the_first_champion_surpasses_bicubic(project: Path, api) -> None:
    version(project, 0.2)
    flows.nightly(root=str(project))
    assert aliases() == (None, "1")
    version(project, 0.5)
    flows.nightly(root=str(project))
    assert aliases() == ("2", "2")


@pytest.mark.slow
def test_a_worse_candidate_is_rejected_and_a_better_one_promoted(project: Path, champion: str, api) -> None:
    version(project, 0.2)
    flows.nightly(root=str(project))
    assert aliases() == ("1", "2")
    (first,) = nightly.REPORTS.glob("*.json")
    kept = first.read_bytes()
    version(project, 0.5)
    flows.nightly(root=str(project))
    assert aliases() == ("3", "3")
    assert first.read_bytes() == kept and len(list(nightly.REPORTS.glob("*.json"))) == 2
    pages = [artifact.data for artifact in api.read_artifacts() if artifact.key == "nightly"]
    assert any("**rejected**" in page and "benchmark nowhere is absent" in page for page in pages)
    assert any("**promoted**" in page and "| candidate | champion | psnr | two |" in page for page in pages)


@pytest.mark.slow
def test_a_night_that_cannot_see_its_champion_fails(
    project: Path, champion: str, api, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = registry.weights_of(f"models:/upsr/{champion}")
    stored.write_bytes(painter(project / "other.safetensors", 0.5).read_bytes())
    with pytest.raises(nightly.Alarm, match="has other weights than were registered"):
        flows.nightly(root=str(project))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(nightly.Alarm, match="MLflow does not answer"):
        flows.nightly(root=str(project))
    assert [run.state_name for run in api.read_flow_runs()].count("Failed") >= 2
