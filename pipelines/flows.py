"""Prefect: the only file that imports it. When the stages run, on which GPU slot, and how often again.

What follows what stands in dvc.yaml; each stage runs in a child process.
"""

import argparse
import fcntl
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import date
from pathlib import Path

import yaml
from prefect import flow, get_client, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import get_current_settings

from pipelines import executor
from pipelines.tracking import flatten

ROOT = Path(__file__).resolve().parents[1]
GPU = "gpu"
GPU_STAGES = ("train", "evaluate")  # how their names begin
RETRIES = {"download": 2}


@flow
def pipeline(force: bool = False, root: str | None = None) -> None:
    """All stages of dvc.yaml in order, each a task; `force` runs even those that are up to date."""
    folder = Path(root) if root else ROOT
    prepare_gpu_slots()
    for stage in executor.stages(folder):
        run_stage.with_options(retries=RETRIES.get(stage, 0))(stage, folder, force)


@flow
def nightly(root: str | None = None) -> None:
    """Evaluates the models again and holds the figures against those of the night before."""
    folder = Path(root) if root else ROOT
    prepare_gpu_slots()
    tonight = folder / "reports" / "nightly" / date.today().isoformat()
    evaluate_again(folder, tonight)
    table = comparison(figures(night_before(tonight)), figures(tonight))
    create_markdown_artifact(table, key="nightly", description=f"Night of {tonight.name}")


@task(task_run_name="{stage}", retry_delay_seconds=10)
def run_stage(stage: str, folder: Path, force: bool) -> None:
    with gpu_slot() if stage.startswith(GPU_STAGES) else nullcontext():
        executor.repro(stage, root=folder, log=get_run_logger().info, force=force)


@task(task_run_name="evaluate")
def evaluate_again(folder: Path, out: Path) -> None:
    # Not by DVC: a night's figures are no output of the chain, and leave what it tracks alone.
    options = ["--out", str(out.relative_to(folder)), "--experiment", "nightly"]
    with gpu_slot():
        executor.run([sys.executable, "-m", "pipelines.evaluate", *options], cwd=folder, log=get_run_logger().info)


def prepare_gpu_slots() -> None:
    """Creates the GPU limit where the server has none, and frees slots that nobody holds any more.

    A standing server frees a killed run's slot when its lease ends; an embedded one never does.
    """
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(GPU)
        except ObjectNotFound:
            _create_limit(client)
        if get_current_settings().api.url is None:
            _free_slots(client)


def _create_limit(client: SyncPrefectClient) -> None:
    """As many slots as GPUs; one on a machine without."""
    import torch

    slots = max(1, torch.cuda.device_count())
    with suppress(ObjectAlreadyExists):  # another flow that starts at this moment
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU, limit=slots))


def _free_slots(client: SyncPrefectClient) -> None:
    with open(_lock_path(), "a") as lock, suppress(BlockingIOError):  # blocked: a living run holds a slot
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        client.update_global_concurrency_limit(GPU, GlobalConcurrencyLimitUpdate(active_slots=0))


@contextmanager
def gpu_slot() -> Iterator[None]:
    """Waits for a GPU slot and holds it. A server that is lost meanwhile does not end a training."""
    with open(_lock_path(), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # the sign of life that `_free_slots` looks for
        with concurrency(GPU, strict=True, lease_duration=60, raise_on_lease_renewal_failure=False):
            yield


def _lock_path() -> Path:
    home = get_current_settings().home
    home.mkdir(parents=True, exist_ok=True)
    return home / "gpu.lock"


def night_before(night: Path) -> Path | None:
    """The last night before this one that has figures; None for the first."""
    nights = sorted(path.parent for path in night.parent.glob("*/metrics.json") if path.parent.name < night.name)
    return nights[-1] if nights else None


def figures(night: Path | None) -> dict[str, float]:
    """Every number of a night's metrics.json, by its dotted name."""
    values = flatten(json.loads((night / "metrics.json").read_text())) if night else {}
    return {name: float(v) for name, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def comparison(before: dict[str, float], now: dict[str, float]) -> str:
    """A markdown table of all figures of two nights; a dash where one has none."""
    lines = ["| figure | night before | tonight | change |", "| --- | ---: | ---: | ---: |"]
    for name in sorted(before | now):
        old, new = before.get(name), now.get(name)
        change = f"{new - old:+.4f}" if old is not None and new is not None else "–"
        lines.append(f"| {name} | {_cell(old)} | {_cell(new)} | {change} |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


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
    commands.add_parser("nightly", help="evaluate once more and compare with the night before")
    commands.add_parser("serve", help="stay and run `nightly` on its schedule")
    arguments = parser.parse_args()
    try:
        if arguments.command == "pipeline":
            pipeline(force=arguments.force)
        elif arguments.command == "nightly":
            nightly()
        else:
            serve_nightly()
    except executor.CommandError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
