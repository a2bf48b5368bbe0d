"""Prefect flows; the only file that imports Prefect. They decide when jobs run, on which device, and the retries.

Stage order is defined in dvc.yaml. Each job is a command in a child process.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager, nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import yaml
from prefect import flow, get_client, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.futures import wait
from prefect.settings import get_current_settings
from prefect.states import Completed, State
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from pipelines import executor, nightly_report, server, webhook
from pipelines import nightly as nightly_logic
from pipelines import sweep as sweep_logic
from upsr.config import Jobs, Params, load_params
from upsr.files import one_line

ROOT = Path(__file__).resolve().parents[1]
GPU_STAGES = ("train", "evaluate")  # prefixes of stage names
RETRIES = {"download": 2}
HEARTBEAT = "prefect.flow-run.heartbeat"  # an event every `tool.prefect.flows.heartbeat_frequency` seconds
SILENCE = 300  # seconds; a server that restarts hears no heartbeats meanwhile
STOPPED = "Stopped: no more nights are started."
START_SECONDS = 180  # for a server's first start on a new machine


class Job(NamedTuple):
    """A command, and its name in Prefect."""

    name: str
    command: list[str]


def _dated() -> str:
    """FLOW DATE, the name of a run until its flow knows a better one."""
    return f"{runtime.flow_run.flow_name} {datetime.now():%Y-%m-%d}"


def _rename(name: str) -> None:
    """Names the current flow run."""
    context = FlowRunContext.get()
    if context and context.flow_run:
        with get_client(sync_client=True) as client:
            client.set_flow_run_name(context.flow_run.id, name)
        context.flow_run.name = name


@flow(flow_run_name=_dated)
def pipeline(force: bool = False, root: str | None = None) -> None:
    """Runs all stages of dvc.yaml in order, each as a task. `force` also runs stages that are up to date."""
    with _project(root) as (folder, params):
        executor.mend_locks(folder)
        for stage in executor.in_order(executor.graph(folder)):
            devices = params.jobs if stage.startswith(GPU_STAGES) else None
            job = Job(stage, executor.repro(stage, force))
            run_job.with_options(task_run_name=stage, retries=RETRIES.get(stage, 0))(job, folder, devices)


@task(retry_delay_seconds=10)
def run_job(job: Job, folder: Path, devices: Jobs | None) -> None:
    """Runs a job on a device locked for it, or without a lock where `devices` is None."""
    with _device(devices) if devices else nullcontext() as device:
        executor.run(job.command, cwd=folder, log=get_run_logger().info, device=device)


@flow(name="jobs")
def run_jobs(jobs: Sequence[Job], folder: Path, settings: Jobs) -> list[str]:
    """Runs all jobs, one per device at a time. Returns the names of failed jobs, which do not stop the others."""
    devices = None if settings.cluster else settings  # Ray assigns each job a GPU of its node
    with _ray_resources() if settings.cluster else nullcontext():
        futures = [run_job.with_options(task_run_name=job.name).submit(job, folder, devices) for job in jobs]
    try:
        wait(futures)
    except BaseException:
        executor.stop()
        raise
    return [job.name for job, future in zip(jobs, futures, strict=True) if not future.state.is_completed()]


def fan_out(name: str, jobs: Sequence[Job], folder: Path, settings: Jobs) -> list[str]:
    """`run_jobs` on this machine's devices or on a Ray cluster, as a flow run of this name.

    Raises `ValueError` if `settings` names a cluster and Ray is not installed.
    """
    return run_jobs.with_options(flow_run_name=name, task_runner=_runner(settings))(jobs, folder, settings)


def _runner(settings: Jobs) -> TaskRunner[Any]:
    if settings.cluster is None:
        return ThreadPoolTaskRunner(max_workers=max(1, len(executor.gpus(settings.devices))))
    try:
        from prefect_ray import RayTaskRunner
    except ImportError:
        raise ValueError("jobs.cluster: Ray is not installed: install the extra `cluster`, or set it to null") from None
    # Prefect's settings reach the cluster with the task; the path of this code does not.
    return RayTaskRunner(settings.cluster, init_kwargs={"runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}}})


def _ray_resources() -> Any:
    """One GPU per job if the cluster has GPUs, otherwise one CPU."""
    import ray
    from prefect_ray.context import remote_options

    return remote_options(num_cpus=1, num_gpus=int("GPU" in ray.cluster_resources()))


@contextmanager
def _project(root: str | None) -> Iterator[tuple[Path, Params]]:
    """The project's folder and settings. It is the working directory inside the block."""
    folder = Path(root).resolve() if root else ROOT
    with chdir(folder):
        yield folder, load_params()


@contextmanager
def _device(settings: Jobs) -> Iterator[executor.Device]:
    """Waits for a free device and locks it. The lock file excludes all flows, processes and Prefect servers."""
    with executor.device(executor.gpus(settings.devices), _locks(), get_run_logger().info) as device:
        yield device


def _locks() -> Path:
    return get_current_settings().home / "devices"


@contextmanager
def _reported(params: Params) -> Iterator[None]:
    """Posts to `nightly.webhook` that the block failed. The error goes on, whatever the webhook does."""
    try:
        yield
    except Exception as error:
        if params.nightly.webhook:
            body = {"name": runtime.flow_run.name, **nightly_logic.failure(error)}
            if reason := webhook.post(str(params.nightly.webhook), body):
                get_run_logger().warning("nightly.webhook: was not told of the failure: %s", reason)
        raise


@flow(flow_run_name=_dated)
def nightly(root: str | None = None, accept: bool = False) -> State[None]:
    """Evaluates the champion and the newest candidate on every available benchmark; gate.py judges them.

    A promoted candidate becomes the champion. `accept` takes the champion's figures of this night as those to be
    reproduced, after a benchmark was changed on purpose. Raises `Alarm` where the champion's figures could not be
    reproduced.
    """
    with _project(root) as (folder, params), _reported(params), nightly_logic.alone():
        run = nightly_logic.begin(params, accept)
        _rename(f"nightly {run.name}")
        if not executor.gpus(params.jobs.devices):
            run.told.append("no GPU was found: evaluated on the CPU")
        commands = nightly_logic.evaluations(run, params)
        jobs = [Job(*job) for job in commands.items()]
        failed = fan_out(f"evaluations of {run.name}", jobs, folder, params.jobs)
        run.told += [f"the job {name} failed" for name in failed]
        verdict = nightly_logic.judge(run, params)
        record = nightly_logic.save(run, verdict)
        if verdict.outcome == "promoted":
            verdict = nightly_logic.promote(run, verdict)
            record = nightly_logic.save(run, verdict)
        nightly_logic.publish(run, verdict, record)
        get_run_logger().info("%s\n%s", record, nightly_report.markdown(run, verdict))
        _write_page()  # first: it needs no server
        page = nightly_report.markdown(run, verdict, fold=True)
        create_markdown_artifact(page, key="nightly", description=f"Nightly evaluation {run.name}")
        if verdict.alarm:
            raise nightly_logic.Alarm(verdict)
        return Completed(message=str(verdict))


def _write_page() -> None:
    try:
        get_run_logger().info("All nights: %s", nightly_report.write())
    except Exception as error:  # the night is judged, whatever the page lacks
        get_run_logger().warning("no page of all nights: %s", one_line(error))


@flow(flow_run_name=_dated)
def sweep(root: str | None = None) -> State[None]:
    """Runs the experiments of `sweep` in params.yaml that HEAD does not have yet, one per device at a time.

    Raises `JobsFailed` where experiments failed.
    """
    with _project(root) as (folder, params):
        names = sweep_logic.remaining(params)
        if names:
            _rename(f"sweep {sweep_logic.short(params, names)}")
        with sweep_logic.recorded(params) as parent:
            jobs = [Job(name, sweep_logic.command(name, parent)) for name in names]
            failed = fan_out(f"experiments of {runtime.flow_run.name}", jobs, folder, params.jobs) if jobs else []
            if failed:
                raise executor.JobsFailed(failed)
        return Completed(message=f"{len(names)} experiments were run: `make experiments` lists them")


def nightly_cron() -> str:
    """The cron expression of the nightly deployment in prefect.yaml."""
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    return next(d["schedules"][0]["cron"] for d in deployments if d["name"] == "nightly")


def serve_nightly(start: bool = False, patience: float = START_SECONDS) -> None:
    """Runs `nightly` on its schedule until Ctrl-C. `start` starts a server on this machine if none answers.

    Raises `server.NoServer` if the server does not answer within `patience` seconds, and exits with an error if none
    is set.
    """
    url = _standing_server()
    try:
        if start:
            server.start(url)
        print(f"Waiting for the Prefect server at {url}, at most {patience:g} seconds", flush=True)
        server.wait(url, patience)
        crash_silent_runs()
        nightly.serve(name="nightly", cron=nightly_cron())
    except KeyboardInterrupt:  # before the schedule; Prefect catches it later
        pass
    except httpx.TransportError as error:  # Prefect would pause the schedule on a server that is gone
        raise SystemExit(f"{STOPPED} {server.farewell(url, get_current_settings().home)}") from error
    print(f"{STOPPED} {server.farewell(url, get_current_settings().home)}")


def crash_silent_runs(silence: int | None = None) -> None:
    """Makes the server mark flow runs as Crashed whose process or machine died; else they would be Running for ever.

    `silence`: after how many seconds without a heartbeat; None keeps what the server has, or means `SILENCE`. Raises
    `ValueError` below 60, and exits with an error without a standing Prefect server.
    """
    seconds = SILENCE if silence is None else silence
    if seconds < 60:
        raise ValueError(f"--silence {seconds}: give 60 or more, since flow runs send a heartbeat every 30 seconds")
    _standing_server()
    automation = Automation(
        name="crash silent runs",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            for_each={"prefect.resource.id"},
            after={HEARTBEAT},
            expect={HEARTBEAT, *(f"prefect.flow-run.{end}" for end in ("Completed", "Failed", "Cancelled", "Crashed"))},
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"no sign of life for {seconds} seconds: its process or machine died",
            )
        ],
    )
    with get_client(sync_client=True) as client:
        known = client.read_automations_by_name(automation.name)
    if not known:
        automation.create()
    elif silence is not None:
        automation.id = known[0].id
        automation.update()


def _standing_server() -> str:
    """The address of the server's API. Exits with an error if none is set."""
    url = get_current_settings().api.url
    if url is None:
        # The embedded server has no scheduler: no run would ever start.
        sys.exit(
            "error: this needs a standing server: run `prefect server start --host 127.0.0.1 --background`, "
            "set PREFECT_API_URL=http://127.0.0.1:4200/api and try again"
        )
    return url


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.flows", description="Run a flow, or serve it.")
    commands = parser.add_subparsers(dest="command", required=True)
    once = commands.add_parser("pipeline", help="run all stages in order")
    once.add_argument("--force", action="store_true", help="also run stages that are up to date")
    commands.add_parser("sweep", help="run the experiments of params.yaml that are not done yet")
    night = commands.add_parser("nightly", help="evaluate and compare the champion and the candidate")
    night.add_argument(
        "--accept", action="store_true", help="take the champion's figures of this night as those to be reproduced"
    )
    schedule = commands.add_parser("serve", help="run `nightly` on its schedule until Ctrl-C")
    schedule.add_argument("--start", action="store_true", help="start a Prefect server on this machine if none answers")
    schedule.add_argument(
        "--patience", type=float, default=START_SECONDS, help="seconds to wait for the server (default: %(default)s)"
    )
    watch = commands.add_parser("watch", help="let the Prefect server mark the flow runs of dead workers as crashed")
    watch.add_argument("--silence", type=int, help=f"after how many seconds without a heartbeat (default: {SILENCE})")
    arguments = parser.parse_args()
    server.reach_loopback()
    try:
        match arguments.command:
            case "pipeline":
                pipeline(force=arguments.force)
            case "sweep":
                sweep()
            case "nightly":
                nightly(accept=arguments.accept)
            case "serve":
                serve_nightly(arguments.start, arguments.patience)
            case "watch":
                crash_silent_runs(arguments.silence)
    except (ValueError, RuntimeError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
