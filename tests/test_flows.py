"""The flows against a real Prefect server, on tiny DVC projects."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipelines import executor, flows

ROOT = Path(__file__).parents[1]
PATIENCE = 120.0  # on a busy machine everything here takes many times what it takes alone
SLEEPER = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {!r}]); print('up'); time.sleep(600)"


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def processes_that_mention(text: str) -> list[psutil.Process]:
    found = psutil.process_iter(["cmdline", "status"])
    return [p for p in found if text in " ".join(p.info["cmdline"] or []) and p.info["status"] != "zombie"]


# The executor


def test_lines_come_as_they_are_printed_and_a_bar_as_its_last_state(tmp_path: Path) -> None:
    code = r"print('first'); print('10 %\r 50 %\rdone'); print(); import sys; print('é', file=sys.stderr)"
    lines: list[str] = []
    executor.run([sys.executable, "-c", code], cwd=tmp_path, log=lines.append)
    assert lines == ["first", "done", "é"]


def test_a_command_sees_its_gpu_and_the_environments_dvc(tmp_path: Path) -> None:
    code = "import os, shutil; print(os.environ['CUDA_VISIBLE_DEVICES'], shutil.which('dvc'))"
    lines: list[str] = []
    executor.run([sys.executable, "-c", code], cwd=tmp_path, gpu="3", log=lines.append)
    assert lines == [f"3 {Path(sys.executable).parent / 'dvc'}"]


def test_a_failure_says_what_how_and_the_last_lines(tmp_path: Path) -> None:
    code = "import sys; [print('line', i) for i in range(100)]; sys.exit('disk is full')"
    with pytest.raises(executor.CommandError) as failure:
        executor.run([sys.executable, "-c", code], cwd=tmp_path, log=lambda line: None)
    assert "ended with exit code 1" in str(failure.value) and str(failure.value).endswith("line 99\ndisk is full")
    with pytest.raises(executor.CommandError, match="ended with signal SIGKILL"):
        executor.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], cwd=tmp_path, log=print)


def test_whatever_ends_a_run_no_process_survives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a grandchild that does not listen to SIGTERM."""
    monkeypatch.setattr(executor, "GRACE_SECONDS", 1.0)
    deaf = f"import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600) # {tmp_path}"

    def cancelled(line: str) -> None:
        until(lambda: processes_that_mention(f"# {tmp_path}"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        executor.run([sys.executable, "-c", SLEEPER.format(deaf)], cwd=tmp_path, log=cancelled)
    assert not processes_that_mention(str(tmp_path))


# DVC projects of a few stages


def project(folder: Path, dvc_yaml: str) -> Path:
    folder.mkdir()
    (folder / "dvc.yaml").write_text(dvc_yaml)
    for command in (["git", "init", "-q"], [*executor.DVC, "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True)
    return folder


def says(text: str, then: str = "") -> str:
    """A stage's command, quoted for YAML: prints, and adds a line to order.txt."""
    return json.dumps(f"""python -c "print('said {text}'); open('order.txt', 'a').write('{text}\\n'); {then}" """)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three stages, written in another order than they depend on each other."""
    return project(
        tmp_path_factory.mktemp("chain") / "project",
        f"""
stages:
  evaluate: {{cmd: {says("evaluate")}, deps: [model]}}
  train_atd: {{cmd: {says("train_atd", "open('model', 'w').write('m')")}, deps: [data], outs: [model]}}
  download: {{cmd: {says("download", "open('data', 'w').write('d')")}, outs: [data]}}
""",
    )


def test_the_stages_come_from_dvc_in_order(chain: Path) -> None:
    assert executor.stages(chain) == ["download", "train_atd", "evaluate"]


# Prefect


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real server; its address and a home of its own as environment variables."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = {"PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")), "PREFECT_SERVER_UI_ENABLED": "false"}
    environment = home | {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ | environment, start_new_session=True)
    try:
        until(lambda: _listens(port))
        yield environment
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def api(server: dict[str, str]) -> Iterator:
    """A client of the server, which flows called in this process use too."""
    from prefect import get_client
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    ours = {PREFECT_API_URL: server["PREFECT_API_URL"], PREFECT_HOME: server["PREFECT_HOME"]}
    with temporary_settings(updates=ours), get_client(sync_client=True) as client:
        yield client


@pytest.mark.slow
def test_the_pipeline_runs_stages_in_order_as_tasks(chain: Path, api) -> None:
    flows.pipeline(root=str(chain))
    assert (chain / "order.txt").read_text().split() == ["download", "train_atd", "evaluate"]
    tasks = {run.name: run for run in api.read_task_runs()}
    assert set(tasks) == {"download", "train_atd", "evaluate"}
    assert all(run.state_name == "Completed" for run in tasks.values())
    until(lambda: "said train_atd" in [entry.message for entry in api.read_logs()])

    flows.pipeline(root=str(chain))
    assert len((chain / "order.txt").read_text().split()) == 3, "what is up to date was run again"
    flows.pipeline(root=str(chain), force=True)
    assert len((chain / "order.txt").read_text().split()) == 6

    limit = api.read_global_concurrency_limit_by_name("gpu")
    assert limit.limit >= 1 and limit.active_slots == 0
    with flows.gpu_slot():
        assert api.read_global_concurrency_limit_by_name("gpu").active_slots == 1


@pytest.mark.slow
def test_a_failing_stage_fails_its_task_with_its_last_lines(tmp_path: Path, api) -> None:
    stages = f"""
stages:
  crop: {{cmd: {says("crop", "raise SystemExit('corrupt picture: a.png')")}, outs: [tiles]}}
  pack: {{cmd: {says("pack")}, deps: [tiles]}}
"""
    folder = project(tmp_path / "broken", stages)
    with pytest.raises(executor.CommandError, match=r"corrupt picture: a\.png"):
        flows.pipeline(root=str(folder))
    assert (folder / "order.txt").read_text().split() == ["crop"]
    failed = next(run for run in api.read_task_runs() if run.name == "crop")
    assert failed.state_name == "Failed" and "corrupt picture: a.png" in failed.state.message


@pytest.mark.slow
def test_a_flow_that_is_told_to_stop_leaves_no_process(tmp_path: Path, server: dict[str, str]) -> None:
    sleeper = json.dumps(f'python -c "import time; time.sleep(600) # {tmp_path}"')
    folder = project(tmp_path / "endless", f"stages:\n  train_unet: {{cmd: {sleeper}}}\n")
    code = f"from pipelines.flows import pipeline; pipeline(root={str(folder)!r})"
    flow = subprocess.Popen([sys.executable, "-c", code], env=os.environ | server | {"PYTHONPATH": str(ROOT)})
    until(lambda: processes_that_mention(f"# {tmp_path}"))
    flow.send_signal(signal.SIGTERM)
    assert flow.wait(PATIENCE) != 0
    assert not processes_that_mention(f"# {tmp_path}")


@pytest.mark.slow
def test_a_night_is_compared_with_the_one_before(tmp_path: Path, api) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "evaluate.py").write_text(
        "import pathlib, sys; out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1]); out.mkdir(parents=True);"
        """(out / "metrics.json").write_text('{"upsr": {"Set5": {"psnr": 29.5, "lpips": 0.2}}, "protocol": "upsr"}')"""
    )
    earlier = tmp_path / "reports" / "nightly" / "2001-01-01"
    earlier.mkdir(parents=True)
    (earlier / "metrics.json").write_text('{"upsr": {"Set5": {"psnr": 30.0, "niqe": 4.0}}}')
    flows.nightly(root=str(tmp_path))
    (artifact,) = (a for a in api.read_artifacts() if a.key == "nightly")
    assert artifact.data.splitlines()[2:] == [
        "| upsr.Set5.lpips | – | 0.2000 | – |",
        "| upsr.Set5.niqe | 4.0000 | – | – |",
        "| upsr.Set5.psnr | 30.0000 | 29.5000 | -0.5000 |",
    ]


@pytest.mark.slow
def test_deployments_are_scheduled_and_a_worker_runs_them(chain: Path, server: dict[str, str], api) -> None:
    """The scheduled runs are what fails, in silence, with a SQLAlchemy that is too new."""

    def prefect(*arguments: str) -> None:
        executor.run([sys.executable, "-m", "prefect", *arguments], cwd=ROOT, log=print)

    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.items():
            patch.setenv(name, value)
        prefect("work-pool", "create", "gpu", "--type", "process")
        prefect("deploy", "--all")
        deployments = {d.name: d for d in api.read_deployments()}
        assert set(deployments) == {"pipeline", "nightly"}
        assert [s.schedule.cron for s in deployments["nightly"].schedules] == [flows.nightly_cron()]
        assert not deployments["pipeline"].schedules and str(ROOT) not in (ROOT / "prefect.yaml").read_text()
        until(lambda: [r for r in api.read_flow_runs() if r.deployment_id == deployments["nightly"].id])

        started = api.create_flow_run_from_deployment(deployments["pipeline"].id, parameters={"root": str(chain)})
        prefect("worker", "start", "--pool", "gpu", "--run-once", "--limit", "1")
        until(lambda: api.read_flow_run(started.id).state.is_final())
        assert api.read_flow_run(started.id).state_name == "Completed"


@pytest.mark.slow
def test_an_embedded_server_frees_the_slot_of_a_run_that_was_killed(tmp_path: Path) -> None:
    """Without it, `make flow` after a power cut would wait for ever."""
    code = """
from pipelines.flows import *
with get_client(sync_client=True) as client:
    prepare_gpu_slots()
    print("free", client.read_global_concurrency_limit_by_name(GPU).active_slots, flush=True)
    with gpu_slot():
        prepare_gpu_slots()
        print("held", client.read_global_concurrency_limit_by_name(GPU).active_slots, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""
    home = {"PREFECT_HOME": str(tmp_path), "DO_NOT_TRACK": "1", "PYTHONPATH": str(ROOT)}
    clean = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    for _ in range(2):
        with open(tmp_path / "said", "w+") as said:  # a pipe would wait for the killed run's server, which lives on
            command = [sys.executable, "-c", f"import os, signal\n{code}"]
            process = subprocess.Popen(command, env=clean | home, stdout=said, start_new_session=True)
            process.wait(PATIENCE)
            os.killpg(process.pid, signal.SIGKILL)
            said.seek(0)
            assert re.findall(r"^(?:free|held) \d$", said.read(), re.M) == ["free 0", "held 1"]


def test_a_schedule_without_a_standing_server_is_refused(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    command = [sys.executable, "-m", "pipelines.flows", "serve"]
    done = subprocess.run(
        command, cwd=ROOT, env=clean | {"PREFECT_HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.startswith("error: a schedule needs a standing server")
