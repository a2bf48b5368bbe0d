"""The flows against a real Prefect server, on tiny DVC projects."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import ROOT, processes_that_mention, settings
from prefect.client.schemas.sorting import LogSort
from prefect.states import Cancelling
from services import PATIENCE, free_port, until

from pipelines import executor, flows
from pipelines.server import answers
from upsr.files import DataError

SLEEPER = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {!r}]); print('up'); time.sleep(600)"


# The executor


def idle(gpus: list[str], locks: Path) -> bool:
    """Whether nobody holds any of the devices."""
    with ExitStack() as files:
        for gpu in gpus or ["cpu"]:
            lock = files.enter_context(open(locks / gpu.replace("/", "-"), "a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
    return True


def test_lines_come_as_they_are_printed_and_a_bar_as_its_last_state(tmp_path: Path) -> None:
    code = r"print('first'); print('10 %\r 50 %\rdone'); print(); import sys; print('é', file=sys.stderr)"
    lines: list[str] = []
    executor.run([sys.executable, "-c", code], cwd=tmp_path, log=lines.append)
    assert lines == ["first", "done", "é"]


def test_a_command_sees_its_gpu_and_the_environments_dvc(tmp_path: Path) -> None:
    code = "import os, shutil; print(os.environ['CUDA_VISIBLE_DEVICES'], shutil.which('dvc'))"
    lines: list[str] = []
    with executor.device(["3"], tmp_path) as device:
        executor.run([sys.executable, "-c", code], cwd=tmp_path, device=device, log=lines.append)
    assert lines == [f"3 {Path(sys.executable).parent / 'dvc'}"]


def test_a_failure_says_what_how_and_the_last_lines(tmp_path: Path) -> None:
    code = "import sys; [print('line', i) for i in range(100)]; sys.exit('disk is full')"
    with pytest.raises(executor.CommandError) as failure:
        executor.run([sys.executable, "-c", code], cwd=tmp_path, log=lambda line: None)
    assert "ended with exit code 1" in str(failure.value) and str(failure.value).endswith("line 99\ndisk is full")
    with pytest.raises(executor.CommandError, match="ended with signal SIGKILL"):
        executor.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], cwd=tmp_path, log=print)


def test_whatever_ends_a_run_no_process_survives(tmp_path: Path) -> None:
    """Not even a grandchild that does not listen to SIGTERM."""
    deaf = f"import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600) # {tmp_path}"

    def cancelled(line: str) -> None:
        until(lambda: processes_that_mention(f"# {tmp_path}"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        executor.run([sys.executable, "-c", SLEEPER.format(deaf)], cwd=tmp_path, log=cancelled, grace=1.0)
    assert not processes_that_mention(str(tmp_path))


def test_each_holder_gets_a_device_of_its_own(tmp_path: Path) -> None:
    with executor.device(["0", "GPU-a/1"], tmp_path) as first, executor.device(["0", "GPU-a/1"], tmp_path) as second:
        assert (first.gpu, second.gpu) == ("0", "GPU-a/1")
        assert not idle(["0"], tmp_path)
    assert idle(["0", "GPU-a/1"], tmp_path)
    with executor.device([], tmp_path) as machine:
        assert machine.gpu is None and not idle([], tmp_path)


def test_a_job_on_two_gpus_waits_for_both_and_holds_none_meanwhile(tmp_path: Path) -> None:
    said: list[str] = []
    with executor.device(["1"], tmp_path) as held:

        def log(line: str) -> None:
            said.append(line)
            assert idle(["0"], tmp_path)
            held.locks[0].close()

        with executor.device(["0,1"], tmp_path, log) as both:
            assert both.gpu == "0,1" and not idle(["0"], tmp_path) and not idle(["1"], tmp_path)
    assert said == ["waiting for a device: other jobs hold 0,1"] and idle(["0", "1"], tmp_path)


@pytest.mark.parametrize("made", ["file", "file/devices", "folder"])
def test_locks_that_cannot_be_held_are_one_line(tmp_path: Path, made: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder/0").mkdir(parents=True)
    message = rf"{tmp_path / made}/0: cannot be opened as a lock file .*: make .* a folder that you can write to"
    with pytest.raises(DataError, match=message), executor.device(["0"], tmp_path / made):
        pass


def test_a_killed_flows_device_is_free_when_its_job_has_ended(tmp_path: Path) -> None:
    """The job may outlive the flow: until then a second one on the same device would crash both."""
    code = f"""
from pathlib import Path
import sys
from pipelines import executor
with executor.device(["0"], Path({str(tmp_path)!r})) as device:
    command = [sys.executable, "-c", "import time; time.sleep(600) # {tmp_path}"]
    executor.run(command, cwd=Path(), log=print, device=device)
"""
    flow = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)})
    until(lambda: len(processes_that_mention(f"# {tmp_path}")) == 2)
    flow.kill()
    flow.wait()
    (job,) = processes_that_mention(f"# {tmp_path}")
    assert not idle(["0"], tmp_path)
    job.kill()
    until(lambda: idle(["0"], tmp_path))


# DVC projects of a few stages


def project(folder: Path, dvc_yaml: str, **jobs: object) -> Path:
    folder.mkdir()
    (folder / "dvc.yaml").write_text(dvc_yaml)
    (folder / "params.yaml").write_text(json.dumps(settings(jobs=jobs)))
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
    assert executor.in_order(executor.graph(chain)) == ["download", "train_atd", "evaluate"]


def test_a_record_of_locks_that_a_kill_cut_is_removed(chain: Path) -> None:
    record = chain / ".dvc" / "tmp" / "rwlock"
    record.parent.mkdir(exist_ok=True)
    record.write_text("")
    with pytest.raises(executor.CommandError, match="RWLock"):  # DVC itself never goes on
        executor.run(executor.repro("download"), cwd=chain, log=print)
    executor.mend_locks(chain)
    executor.run([*executor.DVC, "status"], cwd=chain, log=print)
    record.write_text("{}")
    executor.mend_locks(chain)
    assert record.read_text() == "{}"


# Prefect


@pytest.mark.slow
def test_the_pipeline_runs_stages_in_order_as_tasks(chain: Path, api) -> None:
    flows.pipeline(root=str(chain))
    assert (chain / "order.txt").read_text().split() == ["download", "train_atd", "evaluate"]
    tasks = {run.name: run.state_name for run in api.read_task_runs()}  # other tests' jobs may be among them
    assert [tasks[stage] for stage in ("download", "train_atd", "evaluate")] == ["Completed"] * 3
    until(lambda: "said train_atd" in [entry.message for entry in api.read_logs(sort=LogSort.TIMESTAMP_DESC)])

    flows.pipeline(root=str(chain))
    assert len((chain / "order.txt").read_text().split()) == 3, "what is up to date was run again"
    flows.pipeline(root=str(chain), force=True)
    assert len((chain / "order.txt").read_text().split()) == 6


MEET = """
import os, pathlib, time
(pathlib.Path({there!r}) / str(os.getpid())).mkdir()
entered = time.monotonic()
while {together} > 1 and len(os.listdir({there!r})) < {together} and time.monotonic() < entered + 60: time.sleep(0.1)
time.sleep(0.5)
with open({log!r}, "a") as log: print(os.environ["CUDA_VISIBLE_DEVICES"], entered, time.monotonic(), file=log)
"""


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [["7"], ["3", "5"]])
def test_jobs_of_several_flows_share_the_devices(gpus: list[str], tmp_path: Path, server: dict[str, str]) -> None:
    """Three flows in processes of their own; a job stays until as many as there are devices have come."""
    (tmp_path / "there").mkdir()
    job = MEET.format(there=str(tmp_path / "there"), together=len(gpus), log=str(tmp_path / "log"))
    (tmp_path / "job.py").write_text(job)
    stages = f"stages:\n  train_unet: {{cmd: python {tmp_path / 'job.py'}}}\n"
    folders = [project(tmp_path / f"project{i}", stages, devices=gpus) for i in range(3)]
    code = "import sys; from pipelines.flows import pipeline; pipeline(root=sys.argv[1])"
    environment = os.environ | server | {"PYTHONPATH": str(ROOT)}
    flows = [subprocess.Popen([sys.executable, "-c", code, str(f)], env=environment) for f in folders]
    assert [flow.wait(2 * PATIENCE) for flow in flows] == [0, 0, 0]

    rows = sorted((line.split() for line in (tmp_path / "log").read_text().splitlines()), key=lambda row: float(row[1]))
    spans = [(gpu, float(entered), float(left)) for gpu, entered, left in rows]
    assert len(spans) == 3 and {gpu for gpu, *_ in spans} == set(gpus)
    for gpu in gpus:
        mine = [span for span in spans if span[0] == gpu]
        assert all(after[1] >= before[2] for before, after in pairwise(mine)), "two jobs on one device at a time"
    if len(gpus) == 2:
        assert spans[1][1] < spans[0][2], "two devices, and the jobs ran one after another"


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
def test_deployments_fire_on_schedule_and_a_cancelled_one_leaves_no_process(
    tmp_path: Path, server: dict[str, str], api
) -> None:
    """The scheduled runs are what fails, in silence, with a SQLAlchemy that is too new. The night has neither a
    model, a benchmark, a GPU nor MLflow: it fails, and says so."""
    sleeper = json.dumps(f'python -c "import time; time.sleep(600) # {tmp_path}"')
    endless = project(tmp_path / "endless", f"stages:\n  train_unet: {{cmd: {sleeper}}}\n")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "params.yaml").write_text(json.dumps(settings(evaluate={"benchmarks": ["nowhere"]})))
    text = (ROOT / "prefect.yaml").read_text()
    assert str(ROOT) not in text and flows.nightly_cron() in text
    ours = yaml.safe_load(text)
    (nightly,) = (d for d in ours["deployments"] if d["name"] == "nightly")
    nightly["schedules"][0]["cron"], nightly["parameters"] = "* * * * *", {"root": str(bare)}
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(ours))

    environment = os.environ | server | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1", "PYTHONPATH": str(ROOT)}
    prefect = [sys.executable, "-m", "prefect"]
    create = ["work-pool", "create", "gpu", "--type", "process"]
    for command in (create, ["--no-prompt", "deploy", "--all", "--prefect-file", str(tmp_path / "prefect.yaml")]):
        subprocess.run([*prefect, *command], cwd=ROOT, env=environment, check=True)
    deployments = {d.name: d for d in api.read_deployments()}
    assert set(deployments) == {"pipeline", "sweep", "nightly"}
    assert str(ROOT) not in str([d.pull_steps for d in deployments.values()]), "every worker would use this checkout"
    assert not deployments["pipeline"].schedules and not deployments["sweep"].schedules

    command = [*prefect, "worker", "start", "--pool", "gpu"]
    worker = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        begun = api.create_flow_run_from_deployment(deployments["pipeline"].id, parameters={"root": str(endless)})
        until(lambda: processes_that_mention(f"# {tmp_path}"))
        api.set_flow_run_state(begun.id, Cancelling())
        until(lambda: api.read_flow_run(begun.id).state.is_cancelled())
        assert not processes_that_mention(f"# {tmp_path}")

        def night():
            nights = [run for run in api.read_flow_runs() if run.deployment_id == deployments["nightly"].id]
            return next((run.state for run in nights if run.auto_scheduled and run.state.is_final()), None)

        until(night)
        assert night().name == "Failed"
        record = json.loads(next(bare.glob("reports/nightly/*.json")).read_text())
        assert any("no GPU" in line for line in record["told"])
        for what in ("MLflow does not answer", "none of nowhere is available"):
            assert any(what in line for line in record["verdict"]["reasons"]) and what in night().message
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


@pytest.mark.slow
def test_the_run_of_a_killed_worker_crashes_and_the_next_one_starts(
    tmp_path: Path, server: dict[str, str], api
) -> None:
    """With `concurrency_limit: 1` a run that stays Running for ever would be the last one."""
    sleeper = json.dumps(f'python -c "import time; time.sleep(600) # {tmp_path}"')
    endless = project(tmp_path / "endless", f"stages:\n  train_unet: {{cmd: {sleeper}}}\n")
    short = project(tmp_path / "short", f"stages:\n  download: {{cmd: {says('download')}}}\n")
    environment = os.environ | server | {"PYTHONPATH": str(ROOT)}
    prefect = [sys.executable, "-m", "prefect"]
    deployments = tmp_path / "prefect.yaml"
    deployments.write_text((ROOT / "prefect.yaml").read_text().replace("name: gpu", "name: doomed"))
    names = ["--name", "pipeline", "--name", "sweep"]
    for command in (
        [*prefect, "work-pool", "create", "doomed", "--type", "process"],
        [*prefect, "--no-prompt", "deploy", *names, "--prefect-file", str(deployments)],
        [sys.executable, "-m", "pipelines.flows", "watch"],
        [sys.executable, "-m", "pipelines.flows", "watch", "--silence", "70"],
    ):
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
    assert len(api.read_automations_by_name("crash silent runs")) == 1
    (deployment,) = (d for d in api.read_deployments() if d.name == "pipeline")
    command = [*prefect, "worker", "start", "--pool", "doomed"]
    workers = [subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)]
    try:
        doomed = api.create_flow_run_from_deployment(deployment.id, parameters={"root": str(endless)})
        until(lambda: processes_that_mention(f"# {tmp_path}"))
        for process in [workers[0], *psutil.Process(workers[0].pid).children(recursive=True)]:
            process.kill()
        workers[0].wait()
        after = api.create_flow_run_from_deployment(deployment.id, parameters={"root": str(short)})
        workers.append(subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True))
        until(lambda: api.read_flow_run(doomed.id).state.is_crashed())
        assert "no sign of life" in api.read_flow_run(doomed.id).state.message
        until(lambda: api.read_flow_run(after.id).state.is_completed())
        assert (short / "order.txt").read_text().split() == ["download"]
    finally:
        for worker in workers:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


def test_a_job_that_waits_for_a_device_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    with executor.device(["0"], tmp_path) as held:

        def log(line: str) -> None:
            said.append(line)
            held.locks[0].close()  # the holder is done

        with executor.device(["0"], tmp_path, log) as mine:
            assert mine.gpu == "0"
    assert said == ["waiting for a device: other jobs hold 0"]


def test_a_schedule_without_a_standing_server_is_refused(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    command = [sys.executable, "-m", "pipelines.flows", "serve"]
    done = subprocess.run(
        command, cwd=ROOT, env=clean | {"PREFECT_HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.startswith("error: this needs a standing server")


SERVE = [sys.executable, "-m", "pipelines.flows", "serve"]
PROXY = {name: "http://127.0.0.1:9" for name in ("http_proxy", "HTTP_PROXY", "all_proxy")}


@pytest.mark.parametrize("silent", [True, False])
def test_a_server_that_does_not_answer_is_waited_for_in_vain_for_a_while(tmp_path: Path, silent: bool) -> None:
    """Neither one that is not there nor one that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1] if silent else free_port()}/api"
        environment = os.environ | {"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": url}
        done = subprocess.run(
            [*SERVE, "--patience", "1"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
    assert done.returncode == 1 and done.stdout == f"Waiting for the Prefect server at {url}, at most 1 seconds\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{url}: no Prefect server answers after 1 seconds: `prefect server stop` ends one")


def test_a_server_of_another_machine_is_not_started_here(tmp_path: Path) -> None:
    environment = os.environ | {"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": "http://server.invalid:4200/api"}
    done = subprocess.run([*SERVE, "--start"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no Prefect server answers, and it is not on this machine: start it there" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("alive", [True, False])
def test_ctrl_c_ends_the_schedule_and_says_whether_the_server_goes_on(tmp_path: Path, alive: bool) -> None:
    """Behind a proxy variable, with a server that `serve` starts itself."""
    url = f"http://127.0.0.1:{free_port()}/api"
    ours = {"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": url, "PREFECT_SERVER_UI_ENABLED": "false"}
    environment = os.environ | ours | PROXY
    log, stop = tmp_path / "log", [sys.executable, "-m", "prefect", "server", "stop"]
    with log.open("w") as output:
        serve = subprocess.Popen(
            [*SERVE, "--start"], cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        until(lambda: "is being served" in log.read_text() or serve.poll() is not None)
        if not alive:
            subprocess.run(stop, env=environment, check=True)
            until(lambda: not answers(url))
        os.killpg(serve.pid, signal.SIGINT)
        assert serve.wait(PATIENCE) == (0 if alive else 1), log.read_text()
        goes_on = "goes on: `prefect server stop` ends it." if alive else "does not answer any more."
        stopped = f"Stopped: no more nights are started. The Prefect server at {url} {goes_on}"
        assert stopped in log.read_text().splitlines()
        assert not alive or "Traceback" not in log.read_text()  # Prefect logs one of its own when its server ends
        assert answers(url) == alive
    finally:
        subprocess.run(stop, env=environment, check=alive)
    until(lambda: not answers(url))
