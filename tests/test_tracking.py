"""Runs as MLflow's own client sees them, in a store of each test's own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from services import free_port, listens, mlflow, until
from test_report import browser, script

from pipelines import tracking, views
from pipelines.evaluate_runs import headline, models_by_lpips

ROOT = Path(__file__).parents[1]


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where no store is yet; its name has a space and a letter that an address must escape."""
    folder = tmp_path / "für alle"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    return folder


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with its tables, which take MLflow seconds to make."""
    database = tmp_path_factory.mktemp("tables") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
        runs("Default")
    return database


@pytest.fixture
def store(fresh: Path, tables: Path) -> Path:
    fresh.mkdir()
    shutil.copy(tables, fresh)
    return fresh


def client():
    from mlflow import MlflowClient

    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def runs(experiment: str):
    return client().search_runs([client().get_experiment_by_name(experiment).experiment_id])


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    """Another process that has this project's code and runs a few lines."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_everything_arrives(store: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("seen")
    params = {"seed": 0, "unet": {"dim": 48, "condition": ["sr", "bicubic"]}, "wide": {f"k{i}": i for i in range(150)}}
    with tracking.start("train-unet", "first", params, {"data.hash": "abc"}) as tracker:
        for step in range(1, 2001):
            tracker.metrics({"loss": 1 / step, "Set5/psnr": 30.0}, step)
        tracker.image("previews/000001.png", np.full((8, 6, 3), 200, np.uint8))
        tracker.artifact(tmp_path / "notes.txt", "texts")
        tracker.grid("Set5/baby", np.full((8, 6, 3), 200, np.uint8))
        tracker.table([{"image": "a", "psnr": 30.5}, {"image": "b", "lpips": 0.2}], "images")

    (run,) = runs("train-unet")
    history = client().get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(step, 1 / step) for step in range(1, 2001)]
    assert run.data.metrics["Set5/psnr"] == 30.0
    assert run.data.params["unet.dim"] == "48" and run.data.params["wide.k149"] == "149"
    assert run.data.tags["data.hash"] == "abc" and run.data.tags["device"] and run.data.tags["git.commit"]
    assert run.info.status == "FINISHED" and run.info.run_name == "first"
    kept = store / "mlartifacts" / "train-unet" / run.info.run_id / "artifacts"
    assert (kept / "previews/000001.png").read_bytes().startswith(b"\x89PNG")
    assert (kept / "texts/notes.txt").read_text() == "seen"
    table = {"columns": ["image", "psnr", "lpips"], "data": [["a", 30.5, None], ["b", None, 0.2]]}
    assert json.loads((kept / "images.json").read_text()) == table


@pytest.mark.parametrize(
    "error, status",
    [
        (ValueError("x"), "FAILED"),
        (SystemExit(2), "FAILED"),
        (SystemExit(143), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_the_status_says_how_a_run_ended(store: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), tracking.start("evaluate", "ends", {}, {}) as tracker:
        tracker.metrics({"seen": 1.0})
        raise error
    (run,) = runs("evaluate")
    assert (run.info.status, run.data.metrics) == (status, {"seen": 1.0})


def test_a_resumed_training_continues_its_run(store: Path) -> None:
    with pytest.raises(KeyboardInterrupt), tracking.start("train-atd", "long", {"seed": 0}, {}) as tracker:
        tracker.metrics({"loss": 2.0}, 1)
        raise KeyboardInterrupt
    with tracking.start("train-atd", "long", {"seed": 0}, {}, run_id=tracker.run_id) as second:
        second.metrics({"loss": 1.0}, 2)
    (run,) = runs("train-atd")
    assert [m.step for m in client().get_metric_history(run.info.run_id, "loss")] == [1, 2]
    assert run.info.status == "FINISHED"
    with tracking.start("train-atd", "new", {}, {}, run_id="0" * 32) as unknown:
        pass
    assert unknown.run_id not in (None, "0" * 32, run.info.run_id)


def test_a_run_whose_process_was_killed_ends_as_killed_when_the_next_one_starts(store: Path) -> None:
    """A living run stays as it is, and a killed one that is resumed is continued."""
    code = """
        import time
        from pipelines import tracking
        with tracking.start("train-atd", {name!r}, {{}}, {{}}) as tracker:
            tracker.metrics({{"loss": 1.0}}, 1)
            print("up", flush=True)
            time.sleep(600)
    """
    processes = {name: python(code.format(name=name)) for name in ("killed", "resumed", "alive")}
    for process in processes.values():
        assert process.stdout and process.stdout.readline() == "up\n"
    ids = {run.info.run_name: run.info.run_id for run in runs("train-atd")}
    for name in ("killed", "resumed"):
        processes[name].kill()
        processes[name].wait()
    with tracking.start("train-atd", "resumed", {}, {}, run_id=ids["resumed"]) as tracker:
        found = {run.info.run_name: run.info.status for run in runs("train-atd")}
        assert found == {"killed": "KILLED", "resumed": "RUNNING", "alive": "RUNNING"}
    assert tracker.run_id == ids["resumed"]
    processes["alive"].terminate()
    processes["alive"].wait()
    with tracking.start("evaluate", "next", {}, {}):
        found = {run.info.run_name: run.info.status for run in runs("train-atd")}
        assert found == {"killed": "KILLED", "resumed": "FINISHED", "alive": "KILLED"}


KILLED_WITH_A_NEW_RUN = """
    import os
    from mlflow import MlflowClient
    from pipelines import tracking
    create = MlflowClient.create_run
    MlflowClient.create_run = lambda *a, **k: (create(*a, **k), os.kill(os.getpid(), 9))
    with tracking.start("train-atd", "short", {}, {}):
        pass
"""


@pytest.mark.parametrize("deleted", [False, True])
def test_a_process_that_is_killed_as_soon_as_its_run_exists_leaves_no_running_run(store: Path, deleted: bool) -> None:
    """A person may have deleted the run meanwhile: that stops no later one."""
    assert python(KILLED_WITH_A_NEW_RUN).wait() == -9
    (run,) = runs("train-atd")
    assert run.info.status == "RUNNING"
    if deleted:
        client().delete_run(run.info.run_id)
    with tracking.start("evaluate", "next", {}, {}, run_id=run.info.run_id if deleted else None) as tracker:
        assert [run.info.status for run in runs("train-atd")] == ([] if deleted else ["KILLED"])
    assert tracker.run_id not in (None, run.info.run_id)


def test_a_refused_call_is_told_and_the_others_arrive(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tracking.start("evaluate", "odd", {}, {}) as tracker:
        tracker.artifact(store / "missing.png")
        tracker.metrics({"Übung (1)/psnr": 1.0, "nan": float("nan")})
    (run,) = runs("evaluate")
    assert run.info.status == "FINISHED" and run.data.metrics["Übung _1_/psnr"] == 1.0
    assert len(caplog.records) == 1 and "missing.png" in caplog.text


@pytest.mark.slow
def test_two_that_start_at_once_on_a_fresh_store(fresh: Path) -> None:
    code = """
        from pipelines import tracking
        with tracking.start("train-atd", "one of many", {}, {}) as tracker:
            tracker.metrics({"loss": 1.0}, 1)
    """
    starters = [python(code) for _ in range(2)]
    assert [p.communicate()[0] for p in starters] == [""] * 2
    assert [(run.info.status, run.data.metrics) for run in runs("train-atd")] == [("FINISHED", {"loss": 1.0})] * 2


def test_a_dead_server_does_not_stop_a_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    begun = time.monotonic()
    with tracking.start("train-unet", "alone", {"seed": 0}, {}) as tracker:
        for step in range(1000):
            tracker.metrics({"loss": 1.0}, step)
        tracker.image("a.png", np.zeros((4, 4, 3), np.uint8))
    assert time.monotonic() - begun < 15
    told, lost = (record.getMessage() for record in caplog.records if record.name == "pipelines.tracking")
    assert "http://127.0.0.1" in told and "kept in memory" in told
    assert "never delivered" in lost


@pytest.mark.slow
def test_what_was_logged_while_the_server_was_down_arrives(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with ExitStack() as servers:
        with tracking.start("train-unet", "early", {"seed": 0}, {}) as tracker:
            tracker.metrics({"loss": 1.0}, 1)
            tracker.image("a.png", np.zeros((4, 4, 3), np.uint8))
            servers.enter_context(mlflow(tmp_path, tmp_path, f"sqlite:///{shutil.copy(tables, tmp_path)}", port))
        (run,) = runs("train-unet")
        assert run.info.status == "FINISHED" and run.data.metrics == {"loss": 1.0}
        assert [a.path for a in client().list_artifacts(run.info.run_id)] == ["a.png"]
    assert len([r for r in caplog.records if r.name == "pipelines.tracking"]) == 1


def test_a_machine_without_mlflow_and_another_rank_record_nothing(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def train() -> str | None:
        with tracking.start("train-atd", "bare", {"seed": 0}, {}) as tracker:
            tracker.metrics({"loss": 1.0}, 1)
            tracker.image("a.png", np.zeros((4, 4, 3), np.uint8))
        return tracker.run_id

    with monkeypatch.context() as patch:
        patch.setenv("RANK", "1")
        assert train() is None and not caplog.records
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as Python marks a module that cannot be imported
    assert train() is None
    assert [r.getMessage() for r in caplog.records] == ["MLflow is not installed: the run `bare` is not recorded"]
    assert not fresh.exists()


def test_copies_and_worktrees_share_the_main_checkouts_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main, worktree, copy = tmp_path / "main", tmp_path / "worktree", tmp_path / "copy"
    (main / "inner").mkdir(parents=True)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    (main / "inner" / "kept").touch()
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"], ["worktree", "add", "-q", str(worktree)]):
        subprocess.run([*git, *command], cwd=main, check=True)
    subprocess.run(["git", "clone", "-q", str(main), str(copy)], check=True)

    for folder, expected in ((main, main), (worktree, main), (worktree / "inner", main / "inner"), (copy, copy)):
        monkeypatch.chdir(folder)
        assert tracking.main_checkout() == expected
    monkeypatch.setenv("DVC_ROOT", str(main))  # as DVC sets it in a temporary copy
    assert tracking.main_checkout() == main


def test_logging_costs_little(store: Path) -> None:
    """A step of 10 ms that logged six figures each time would still lose under 2 %."""
    with tracking.start("train-unet", "busy", {}, {}) as tracker:
        begun = time.monotonic()
        for step in range(1000):
            tracker.metrics({f"m{i}": float(step) for i in range(6)}, step)
        spent = time.monotonic() - begun
    assert spent < 0.2


@pytest.mark.slow
def test_make_ui_and_mlflow_ui_show_this_checkout_and_models_line_up(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By MLflow's own page in a browser; one worker answers, and more would time out on a busy machine."""
    monkeypatch.chdir(shutil.copy(tables, tmp_path / "mlflow.db").parent)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")  # MLflow's four workers take long to start
    with tracking.start("evaluate", "residual-48", {}, {}) as parent:
        parent.view(views.VIEW, models_by_lpips(["Set5"]))
        for model, psnr in (("bicubic", 25.5), ("upsr", 26.5)):
            tags = {"model": model, "variant": "residual", "width": "48", "steps": "90", "seed": "0"}
            with tracking.start("evaluate", f"{model}-run", {}, tags, parent=parent.run_id) as tracker:
                values = {"Set5/dists": 0.1, "Set5/psnr": psnr + 1e-9, "Set5/lpips": 30 - psnr}
                tracker.metrics(headline(values) | values)
    ports = {"-m pipelines.ui": free_port(), "-m mlflow ui": free_port()}
    with ExitStack() as ends, (tmp_path / "out").open("w") as out:
        for command, port in ports.items():
            words = [sys.executable, *command.split(), "--port", str(port)]
            server = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
            ends.callback(os.killpg, server.pid, signal.SIGKILL)
            until(partial(listens, port))
            assert MlflowClient(f"http://127.0.0.1:{port}").get_experiment_by_name("evaluate"), command
            said = (tmp_path / "out").read_text()
            if command == "-m pipelines.ui":
                assert said.count("Started server process") == 1
                (address,) = re.findall(r"evaluate +(http\S+)", said)
                if shutil.which("chromium"):
                    columns, table, charts = shown(address, tmp_path / "profile")
                    assert {"PSNR", "LPIPS", "variant", "width", "steps", "seed"} <= set(columns)
                    assert re.search(r"upsr-run(?s:.)*bicubic-run", table) and "residual-48" not in table
                    assert {"26.5", "25.5"} <= set(table.splitlines())
                    order = ["Headline", "PSNR", "LPIPS", "Set5", "Set5/psnr", "Set5/lpips", "Set5/dists"]
                    assert [line for line in charts.splitlines() if line in order] == order


COLUMNS = """(() => {
    const right = element => element.getBoundingClientRect().right, edge = right(document.querySelector(".ag-root"))
    return [...document.querySelectorAll(".ag-header-cell")].filter(c => right(c) <= edge).map(c => c.innerText.trim())
})()"""


def shown(address: str, profile: Path) -> tuple[list[str], str, str]:
    """At 1400 pixels, beside MLflow's assistant: the columns of runs that are within, and the texts of both views."""
    text = "document.body.innerText"
    with browser(profile) as (call, _):
        call("Emulation.setDeviceMetricsOverride", width=1400, height=1800, deviceScaleFactor=1, mobile=False)
        call("Page.navigate", url=address)
        until(lambda: {"MLflow Assistant", "26.5"} <= set(str(script(call, text)).splitlines()))
        columns, table = script(call, COLUMNS), str(script(call, text))
        call("Page.navigate", url=f"{address}&compareRunsMode=CHART")
        until(lambda: "Set5/dists" in str(script(call, text)))
        return columns, table, str(script(call, text))
