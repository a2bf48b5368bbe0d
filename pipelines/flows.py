"""Prefect: the only file that imports it. When stages and other jobs run, on which device, and how often again.

Stage order is defined in dvc.yaml; each job is a command in a child process.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.futures import wait
from prefect.settings import get_current_settings
from prefect.states import Completed, State
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from pipelines import executor, registry
from pipelines import nightly as night_logic
from pipelines import sweep as sweep_logic
from upsr.config import Jobs, Params, load_params

ROOT = Path(__file__).resolve().parents[1]
GPU_STAGES = ("train", "evaluate")  # how their names begin
RETRIES = {"download": 2}


class Job(NamedTuple):
    """A command that wants a device of its own."""

    name: str
    command: list[str]


@flow
def pipeline(force: bool = False, root: str | None = None) -> None:
    """All stages of dvc.yaml in order, each a task; `force` runs even those that are up to date."""
    with _project(root) as (folder, params):
        for stage in executor.in_order(executor.graph(folder)):
            where = params.jobs if stage.startswith(GPU_STAGES) else None
            job = Job(stage, executor.repro(stage, force))
            run_job.with_options(task_run_name=stage, retries=RETRIES.get(stage, 0))(job, folder, where)


@task(retry_delay_seconds=10)
def run_job(job: Job, folder: Path, where: Jobs | None) -> None:
    """Runs a command on a device of its own; without `where`, on what it finds, beside whatever else runs there."""
    with _device(where) if where else nullcontext() as device:
        executor.run(job.command, cwd=folder, log=get_run_logger().info, device=device)


@flow(name="jobs")
def run_jobs(jobs: Sequence[Job], folder: Path, where: Jobs) -> list[str]:
    """Runs all jobs, as many at once as there are devices. One that fails stops no other; returns their names."""
    devices = None if where.cluster else where  # Ray shows a job one GPU of its node's
    with _ray_resources() if where.cluster else nullcontext():
        futures = [run_job.with_options(task_run_name=job.name).submit(job, folder, devices) for job in jobs]
    try:
        wait(futures)
    except BaseException:
        executor.stop()
        raise
    return [job.name for job, future in zip(jobs, futures, strict=True) if not future.state.is_completed()]


def fan_out(jobs: Sequence[Job], folder: Path, where: Jobs) -> list[str]:
    """`run_jobs` over this machine's devices or over a Ray cluster's."""
    return run_jobs.with_options(task_runner=_runner(where))(jobs, folder, where)


def _runner(where: Jobs) -> TaskRunner[Any]:
    if where.cluster is None:
        return ThreadPoolTaskRunner(max_workers=max(1, len(executor.gpus(where.devices))))
    try:
        from prefect_ray import RayTaskRunner
    except ImportError:
        raise ValueError("jobs.cluster needs Ray: install the extra `cluster`, or set it to null") from None
    # A task brings Prefect's settings along, but not the place of its code.
    return RayTaskRunner(where.cluster, init_kwargs={"runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}}})


def _ray_resources() -> Any:
    """One GPU a job, where the cluster has any; else one CPU."""
    import ray
    from prefect_ray.context import remote_options

    return remote_options(num_cpus=1, num_gpus=int("GPU" in ray.cluster_resources()))


@contextmanager
def _project(root: str | None) -> Iterator[tuple[Path, Params]]:
    """The project's folder, which the block runs in, and its settings."""
    folder = Path(root).resolve() if root else ROOT
    with chdir(folder):
        yield folder, load_params()


@contextmanager
def _device(where: Jobs) -> Iterator[executor.Device]:
    """Waits for a device and holds it. Its lock file alone decides, whichever flow, process or server wants it."""
    with executor.device(executor.gpus(where.devices), _locks(), get_run_logger().info) as device:
        yield device


def _locks() -> Path:
    return get_current_settings().home / "devices"


@flow
def nightly(root: str | None = None) -> State[None]:
    """Evaluates champion and candidate on every benchmark at hand. Fails on a regression, and the champion stays;
    on an improvement by the rule of params.yaml the candidate becomes champion.
    """
    with _project(root) as (folder, params):
        night = night_logic.begin(params)
        if not executor.gpus(params.jobs.devices):
            night.told.append("no GPU was found: evaluated on the CPU")
        commands = night_logic.evaluations(night, params)
        failed = fan_out([Job(*job) for job in commands.items()], folder, params.jobs)
        night_logic.judge(night, params.nightly)
        record = night_logic.keep(night)
        get_run_logger().info("%s\n%s", record, night_logic.markdown(night))
        create_markdown_artifact(night_logic.markdown(night), key="nightly", description=f"Night of {night.name}")
        if night.worse:
            raise night_logic.Regression(night_logic.verdict(night))
        if night.promotes:
            registry.promote(night.promotes)
        if failed:
            raise executor.JobsFailed(failed)
        return Completed(message=night_logic.verdict(night))


@flow
def sweep(root: str | None = None) -> State[None]:
    """Runs the experiments of params.yaml's `sweep` that the commit at hand does not have, as many at once as there are
    devices."""
    with _project(root) as (folder, params):
        names = sweep_logic.remaining(params)
        if not names:
            return Completed(message="all experiments are done; `dvc exp show` lists them")
        with sweep_logic.recorded(params) as parent:
            failed = fan_out([Job(name, sweep_logic.command(name, parent)) for name in names], folder, params.jobs)
            if failed:
                raise executor.JobsFailed(failed)
        return Completed(message=f"{len(names)} experiments were run; `dvc exp show` lists them")


def nightly_cron() -> str:
    """The nightly schedule, which stands in prefect.yaml alone."""
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    return next(d["schedules"][0]["cron"] for d in deployments if d["name"] == "nightly")


def serve_nightly() -> None:
    if get_current_settings().api.url is None:
        # The embedded server has no scheduler: it would wait for ever, and look well.
        sys.exit(
            "error: a schedule needs a standing server: run `prefect server start --host 127.0.0.1 --background`, "
            "set PREFECT_API_URL=http://127.0.0.1:4200/api and try again"
        )
    nightly.serve(name="nightly", cron=nightly_cron())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.flows", description="Runs a flow here, or serves one.")
    commands = parser.add_subparsers(dest="command", required=True)
    once = commands.add_parser("pipeline", help="all stages, in order")
    once.add_argument("--force", action="store_true", help="run the stages that are up to date too")
    commands.add_parser("sweep", help="the experiments of params.yaml that are not done yet")
    commands.add_parser("nightly", help="evaluate champion and candidate and compare")
    commands.add_parser("serve", help="stay and run `nightly` on its schedule")
    arguments = parser.parse_args()
    try:
        match arguments.command:
            case "pipeline":
                pipeline(force=arguments.force)
            case "sweep":
                sweep()
            case "nightly":
                nightly()
            case "serve":
                serve_nightly()
    except (ValueError, RuntimeError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
