"""The night: what evidence is collected, kept and looked up again, against a real store and a real Prefect server."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, settings
from prefect.client.schemas.sorting import LogSort
from services import free_port, until
from test_registry import painter, register
from test_report import browser, script

from pipelines import flows, nightly, nightly_report, registry, tracking, webhook
from pipelines.gate import Verdict
from upsr import images
from upsr.config import Params, parse
from upsr.locks import Locked

METRICS = {"psnr": {"better": "higher", "tolerance": 0.05}, "ssim": {"better": "higher", "tolerance": 0.002}}


def values(*benchmarks: str) -> dict[str, Any]:
    """Settings with PSNR and SSIM alone; by default on a benchmark that is there and one that is not."""
    chosen = settings(evaluate={"benchmarks": list(benchmarks) or ["two", "nowhere"], "metrics": []})
    return chosen | {"nightly": {"metrics": METRICS, "improves": "psnr", "by": 0.001, "webhook": None}}


def chosen(*benchmarks: str) -> Params:
    return parse(Params, values(*benchmarks), "test")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a benchmark of two small images, another one that is absent, and a store of its own."""
    (tmp_path / "params.yaml").write_text(json.dumps(values()))
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


def measured(run: nightly.NightlyRun, role: str, benchmark: str, psnr: float) -> None:
    """What an evaluation of both images writes."""
    rows = [{"picture": name, "psnr": psnr + i, "ssim": 0.5} for i, name in enumerate("ab")]
    result = {"benchmark": {"sha256": run.images[benchmark]}, "rows": rows, "failed": [], "absent": {}}
    (run.folder / f"{role}-{benchmark}.json").write_text(json.dumps(result))


def aliases() -> tuple[str | None, str]:
    """The champion's number and the newest one."""
    champion, newest = registry.champion(), registry.newest()
    assert newest
    return champion and str(champion.version), str(newest.version)


def a_night(
    psnr: dict[str, float], *, accept: bool = False, benchmarks: Sequence[str] = ()
) -> tuple[nightly.NightlyRun, Verdict]:
    """A night whose evaluations gave these figures, by role, on all images, as the flow ends it."""
    run = nightly.begin(chosen(*benchmarks), accept)
    for role, value in psnr.items():
        for benchmark in run.images:
            measured(run, role, benchmark, value)
    verdict = nightly.judge(run, chosen(*benchmarks))
    nightly.save(run, verdict)
    if verdict.outcome == "promoted":
        verdict = nightly.promote(run, verdict)
        nightly.save(run, verdict)
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
    assert verdict.outcome == "promoted" and aliases() == (number, number)
    version(project, 0.5)
    _, verdict = a_night({"champion": 31.04, "candidate": 32})
    assert verdict.outcome == "promoted"
    assert {c.against for c in verdict.comparisons if c.model == "champion"} == {run.name}
    registry.promote(version(project, 0.3))
    version(project, 0.2)
    _, verdict = a_night({"champion": 30.9, "candidate": 31.94})  # its predecessor had 32
    assert verdict.outcome == "rejected" and any("psnr gains -0.06" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("first", [True, False])
def test_a_night_that_was_killed_before_or_in_its_promotion_raises_no_alarm(
    project: Path, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a first champion and of a later one: the next night promotes, or holds the new champion against that night."""
    if not first:
        registry.promote(version(project, 0.4))
        a_night({"champion": 30})
    number = version(project, 0.5)
    figures = {"bicubic" if first else "champion": 30, "candidate": 31}
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(nightly, "promote", lambda *_: sys.exit(137))
        a_night(figures)
    assert aliases()[0] != number
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        save = nightly.save
        patch.setattr(nightly, "save", lambda run, verdict: sys.exit(137) if run.crowned else save(run, verdict))
        a_night(figures)
    assert aliases()[0] == number
    _, verdict = a_night({"champion": 31})
    assert (verdict.outcome, verdict.alarm) == ("no candidate", False)
    _, verdict = a_night({"champion": 30.9})
    assert verdict.alarm and "differs by 0.1000" in str(verdict)


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


def test_a_benchmark_that_came_later_is_guarded_too(project: Path, champion: str) -> None:
    shutil.copytree("data/benchmarks/two", "data/benchmarks/later")
    both = ["two", "later"]
    a_night({"champion": 30})
    _, verdict = a_night({"champion": 30}, benchmarks=both)
    assert not verdict.alarm
    run = nightly.begin(chosen(*both))
    measured(run, "champion", "two", 30)
    measured(run, "champion", "later", 20)
    assert "psnr on later differs by 10.0000" in str(nightly.judge(run, chosen(*both)))
    _, verdict = a_night({"champion": 30}, benchmarks=["two"])
    assert verdict.alarm and "later is gone" in str(verdict)


def test_a_lost_record_of_the_champions_night_is_an_alarm_until_it_is_accepted(project: Path, champion: str) -> None:
    run, _ = a_night({"champion": 30})
    shutil.rmtree(nightly.REPORTS)
    _, verdict = a_night({"champion": 20})
    assert verdict.alarm and f"{run.name}, which the champion's figures are held against, has no record" in str(verdict)
    assert not a_night({"champion": 30}, accept=True)[1].alarm
    assert not a_night({"champion": 30})[1].alarm


def test_what_changes_while_a_night_runs_is_no_evidence(project: Path, champion: str) -> None:
    number = version(project, 0.5)
    run = nightly.begin(chosen())
    for role, psnr in {"champion": 30, "candidate": 31}.items():
        measured(run, role, "two", psnr)
    assert nightly.judge(run, chosen()).outcome == "promoted"
    result = run.folder / "candidate-two.json"
    text = result.read_text()
    for broken in (text[:50], text.replace(run.images["two"], "others")):
        result.write_text(broken)
        assert nightly.judge(run, chosen()).outcome == "undecided"
    result.write_text(text)
    registry.weights_of(f"models:/upsr/{number}").write_bytes(b"others")
    assert nightly.judge(run, chosen()).outcome == "undecided"


def test_a_champion_that_somebody_changed_meanwhile_stays(project: Path, champion: str) -> None:
    other, number = version(project, 0.45), version(project, 0.5)
    run = nightly.begin(chosen())
    for role, psnr in {"champion": 30, "candidate": 31}.items():
        measured(run, role, "two", psnr)
    verdict = nightly.judge(run, chosen())
    registry.promote(other)
    assert nightly.promote(run, verdict).outcome == "undecided"
    assert aliases() == (other, number)
    registry.promote(champion)
    assert nightly.promote(run, verdict).outcome == "promoted"
    assert aliases() == (number, number)


@pytest.mark.parametrize("by", ["hand", "gate"])
def test_a_deleted_champion_is_an_alarm_and_nobody_is_crowned(by: str, project: Path, champion: str) -> None:
    if by == "gate":
        version(project, 0.5)
        assert a_night({"champion": 30, "candidate": 31})[1].outcome == "promoted"
    else:
        a_night({"champion": 30})
        version(project, 0.5)
    tracking.client().delete_registered_model_alias(registry.NAME, registry.CHAMPION)
    _, verdict = a_night({"candidate": 31, "bicubic": 20})
    assert verdict.alarm and "no version has the alias `champion`, but" in str(verdict)


def test_weights_are_those_that_were_registered(project: Path, champion: str) -> None:
    stored = registry.weights_of(f"models:/upsr/{champion}")
    stored.write_bytes(painter(project / "other.safetensors", 0.5).read_bytes())
    run = nightly.begin(chosen())
    assert nightly.evaluations(run, chosen()) == {}
    assert "has other weights than were registered" in run.lost[0]
    stored.unlink()
    assert nightly.begin(chosen()).lost[0].startswith(f"version {champion} cannot be measured")
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


def test_an_unknown_metric_is_named(project: Path, champion: str) -> None:
    own = values()
    own["nightly"]["metrics"] = METRICS | {"lipps": METRICS["psnr"]}
    assert "'lipps' is not a metric" in nightly.begin(parse(Params, own, "test")).lost[0]


def test_two_benchmarks_of_one_name_are_refused(project: Path, champion: str) -> None:
    (project / "elsewhere").mkdir()
    (project / "elsewhere/two").symlink_to(project / "data/benchmarks/two")
    run, verdict = a_night({}, benchmarks=["two", "elsewhere/two"])
    assert verdict.alarm and "two are named two" in run.lost[0]
    a_night({"champion": 30})
    _, verdict = a_night({"champion": 20})
    assert verdict.alarm, "a night that saw nothing is not what later ones are held against"


@pytest.mark.parametrize("name", ["data/benchmarks/two/", "linked"])
def test_a_benchmark_may_be_linked_and_end_in_a_slash(name: str, project: Path, champion: str) -> None:
    (project / "data/benchmarks/linked").symlink_to(project / "data/benchmarks/two")
    run = nightly.begin(chosen(name, "elsewhere/two"))
    own = Path(name).name
    assert list(nightly.evaluations(run, chosen(name))) == [f"champion-{own}"]
    assert run.folders[own].is_dir(), "the one that is absent took its place"


def test_two_nights_at_once_are_refused(project: Path, champion: str) -> None:
    code = "from pipelines import nightly\nwith nightly.alone(): print('up', flush=True); input()"
    command = [sys.executable, "-c", code]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, **streams) as other:
        assert other.stdout and other.stdout.readline() == "up\n"
        with pytest.raises(Locked, match="reports/nightly: another process is at work here"), nightly.alone():
            pass
        other.kill()
    with nightly.alone():
        pass


def test_a_second_night_of_a_date_overwrites_nothing(project: Path) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5)
    assert nightly._name(now) == "2026-01-02"
    (nightly.REPORTS / "2026-01-02").mkdir(parents=True)
    assert nightly._name(now) == "2026-01-02-030405" > "2026-01-02"
    (nightly.REPORTS / "2026-01-02-030405.json").touch()
    assert nightly._name(now) == "2026-01-02-030405000000"


# What a night shows


def test_the_first_night_shows_its_figures_and_one_line_of_absent_benchmarks(project: Path, champion: str) -> None:
    run, verdict = a_night({"champion": 30}, benchmarks=["two", "nowhere", "elsewhere"])
    text = nightly_report.markdown(run, verdict)
    assert "| model | benchmark | psnr | ssim |" in text and "| champion | two | 30.5000 | 0.5000 |" in text
    assert [line for line in text.splitlines() if "nowhere" in line] == [
        "- note: absent benchmarks: nowhere, elsewhere: `upsr doctor` says what to do"
    ]
    (line,) = [line for line in nightly_report.markdown(run, verdict, fold=True).splitlines() if "nowhere" in line]
    assert line.startswith("<details><summary>absent benchmarks: nowhere, elsewhere</summary>")
    assert "nowhere: data/benchmarks/nowhere: no such folder" in line


@pytest.fixture
def page(project: Path, champion: str) -> str:
    """The page of nights that were completed, drifted, and promoted a candidate, and of two damaged records."""
    a_night({"champion": 30})
    a_night({"champion": 29})
    version(project, 0.5)
    a_night({"champion": 30, "candidate": 31})
    (nightly.REPORTS / "2001-01-01.json").write_text('{"name": "2001')
    (nightly.REPORTS / "2001-01-02.damaged").write_text("")
    return nightly_report.write().read_text()


def test_the_page_shows_figures_drift_promotions_and_names_damaged_records(page: str) -> None:
    _, first, second, third = sorted(path.stem for path in nightly.REPORTS.glob("*.json"))
    assert f"<title>{first}: champion 1: 30.5000</title>" in page and f"{third}: candidate 2: 31.5000" in page
    assert f"<title>{second}: alarm: drift: the champion&#39;s psnr on two differs by 1.0000" in page
    assert f"<title>{third}: promoted: psnr gains +1.0000 over champion" in page
    assert page.count('<circle class="drift" cx="150.0"') == 1, "in the second of three nights, on PSNR alone"
    assert f"champion: version 2, crowned {third}" in page
    assert "<code>2001-01-01.json</code>, <code>2001-01-02.damaged</code>" in page
    for name in (first[5:10], f"{second[5:10]} {second[11:13]}:{second[13:15]}"):
        assert f'text-anchor="middle">{name}</text>' in page, "nights of one date have labels of their own"
    assert " drift</span>" in page and " bicubic</span>" not in page, "the legend has what is drawn"


def test_a_promoted_candidate_goes_on_as_the_champion(project: Path, champion: str) -> None:
    """The line of the champions ends at the old one, and goes on from the candidate that replaced it."""
    a_night({"champion": 30})
    version(project, 0.5)
    a_night({"champion": 30, "candidate": 31})
    a_night({"champion": 31})
    psnr = nightly_report.write().read_text().partition("</figure>")[0]
    dots = re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="2.4"><title>[\d-]+: (\w+ \d)', psnr)
    before, old, new = (
        f"{x},{y}" for x, y, name in sorted(dots, key=lambda dot: float(dot[0])) if name.startswith("champion")
    )
    (candidate,) = (f"{x},{y}" for x, y, name in dots if name == "candidate 2")
    lines = re.findall(r'<polyline class="champion" points="(.*?)"', psnr.partition("<figure")[2])
    assert lines == [f"{before} {old}", f"{candidate} {new}"]


def test_drift_on_several_benchmarks_is_one_line(project: Path, champion: str) -> None:
    shutil.copytree("data/benchmarks/two", "data/benchmarks/later")
    for psnr in (30, 29):
        a_night({"champion": psnr}, benchmarks=["two", "later"])
    page = nightly_report.write().read_text()
    folded = re.findall(r"<summary>drift: 2 of the champion's figures differ.*?</details>", page, re.DOTALL)
    assert len(folded) == 2, "at the head and in the table"
    assert all(f"psnr on {name} differs by 1.0000" in lines for lines in folded for name in ("two", "later"))
    assert page.count("<li>drift: ") == 4 and "<td>drift: " not in page


def test_the_page_needs_no_network(page: str) -> None:
    assert "http:" not in page and "https:" not in page and "<script" not in page and "url(" not in page


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not on PATH")
def test_the_page_fits_a_phone(page: str, project: Path) -> None:
    with browser(project / "profile") as (call, errors):
        call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=2, mobile=True)
        call("Page.navigate", url=(project / nightly.REPORTS / nightly_report.PAGE).as_uri())
        js = partial(script, call)
        js("new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))")
        assert js("document.querySelectorAll('figure.chart').length") == 2
        assert js("document.documentElement.scrollWidth") == 400
        assert errors == []


@contextmanager
def webhook_server(answer: str) -> Iterator[tuple[str, list[Any]]]:
    """A server on 127.0.0.1: its address, and the JSON it received. It answers 200 or 500, sends bytes without end, or
    nothing."""
    received: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if answer.isdigit():
                self.send_response(int(answer))
                self.end_headers()
                return
            for _ in range(100):
                time.sleep(0.1)
                self.wfile.write(b"X" if answer == "trickles" else b"")

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/secret", received
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("200", None),
        ("500", "it answered 500"),
        ("302", "it answered 302"),
        ("hangs", "no answer within 1 seconds"),
        ("trickles", "no answer within 1 seconds"),
        ("refuses", "ConnectionError"),
    ],
)
def test_a_webhook_takes_json_and_whatever_it_does_is_a_reason(
    answer: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "SECONDS", 1.0)
    started = time.monotonic()
    with webhook_server(answer) as (url, received):
        url = f"http://127.0.0.1:{free_port()}" if answer == "refuses" else url
        assert webhook.post(url, {"name": "a"}) in (reason, "ReadTimeout" if answer == "hangs" else reason)
        assert received == ([] if answer == "refuses" else [{"name": "a"}])
    assert time.monotonic() - started < 5


# The flow, against a Prefect server


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
    assert any("**rejected**" in page and "absent benchmarks: nowhere" in page for page in pages)
    assert any("**promoted**" in page and "| candidate | champion | psnr | two |" in page for page in pages)
    nights = [path.stem for path in nightly.REPORTS.glob("*.json")]
    names = {f"{what} {night}" for what in ("nightly", "evaluations of") for night in nights}
    assert names <= {run.name for run in api.read_flow_runs()}
    page = (nightly.REPORTS / "index.html").read_text()
    assert all(f'id="{night}"' in page for night in nights)


@pytest.mark.slow
def test_changed_images_are_accepted_by_the_command(
    project: Path, champion: str, api, monkeypatch: pytest.MonkeyPatch
) -> None:
    flows.nightly(root=str(project))
    path = project / "data/benchmarks/two/HR/a.png"
    images.write(path, 255 - images.read(path))
    monkeypatch.setattr(flows, "ROOT", project)
    monkeypatch.setattr(sys, "argv", ["flows", "nightly", "--accept"])
    flows.main()
    flows.nightly(root=str(project))


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


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["200", "hangs"])
def test_a_failed_night_calls_the_webhook_and_its_outcome_stands(
    answer: str, project: Path, champion: str, api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "SECONDS", 2.0)
    stored = registry.weights_of(f"models:/upsr/{champion}")
    kept = stored.read_bytes()
    with webhook_server(answer) as (url, received):
        own = values()
        own["nightly"]["webhook"] = url
        (project / "params.yaml").write_text(json.dumps(own))
        flows.nightly(root=str(project))
        assert received == [], "of a night that did not fail"
        stored.write_bytes(painter(project / "other.safetensors", 0.5).read_bytes())
        with pytest.raises(nightly.Alarm, match="has other weights"):
            flows.nightly(root=str(project))
        stored.write_bytes(kept)
        with nightly.alone(), pytest.raises(Locked):
            flows.nightly(root=str(project))
    alarm, locked = received
    night = max(path.stem for path in nightly.REPORTS.glob("*.json"))
    assert (alarm["name"], alarm["outcome"]) == (f"nightly {night}", "undecided")
    assert "has other weights than were registered" in alarm["reasons"][0]
    assert locked["outcome"] == "failed" and "another process is at work here" in locked["reasons"][0]
    if answer == "hangs":
        newest = partial(api.read_logs, sort=LogSort.TIMESTAMP_DESC)
        until(lambda: any("nightly.webhook: was not told" in entry.message for entry in newest()))
