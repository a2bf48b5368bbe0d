"""Rehearses a team on this machine: `make team`. Not a test.

Two machines on loopback, `first` and `second`: each a checkout with a home folder of its own. `first` runs the services
of docs/operations.md: PostgreSQL, MLflow, Prefect's server, a worker for nights, the head of a Ray cluster. `second`
trains: a worker for everything else, and another node of the cluster. Both see one folder: the git repository, the DVC
remote and MLflow's artifacts.

A tiny pipeline and a sweep run on `second`, a night on `first`, their jobs on both nodes. Then `first` gets the models
by `dvc pull` and by MLflow. Prints what ran where, and the seconds. Whatever happens, no process and no port is left.
Exits with 1 if a service or a check fails, with its last lines. Without the extra `cluster`, there is no Ray.
"""

import argparse
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex

import numpy as np
import psutil
from conftest import ROOT, settings
from drill import CROSS, NIGHTLY
from drill_project import MARK, kill_all, ours
from services import RAY, Failed, Service, listens, mlflow, no_postgres, postgres, prefect, ray, running, tail, until
from tiny_project import ENVIRONMENT, Project

from pipelines.server import reach_loopback
from pipelines.sweep import experiments
from upsr import images
from upsr.acquisition.metric_weights import prepare
from upsr.files import sha256

MODELS = ("models/atd/weights.safetensors", "models/unet/weights.safetensors")
JOBS = {  # of a deployment's flow: what is in the command of a job, with its name
    "pipeline": r"-m pipelines\.(train_\w+)",
    "sweep": r"-m pipelines\.sweep (\S+)",
    "nightly": r"--json \S*/(\S+)\.json",
}
CHAMPION = "models:/upsr@champion"


class Machine:
    """A checkout, and the environment of its commands."""

    def __init__(self, name: str, scratch: Path, environment: dict[str, str]) -> None:
        self.name, self.root, self.home = name, scratch / name / "upsr", scratch / name / "home"
        self.home.mkdir(parents=True)
        self.environment = ENVIRONMENT | environment | {"HOME": str(self.home), "PYTHONPATH": str(self.root)}


class Team:
    """Two machines, their running services, and the table of what ran where."""

    def __init__(self, scratch: Path) -> None:
        reach_loopback()
        names = ("NO_PROXY", "no_proxy", MARK)
        environment = {name: os.environ[name] for name in names if name in os.environ}
        environment |= RAY | {"DO_NOT_TRACK": "1", "RAY_AUTH_TOKEN": token_hex(32)}
        environment["CUDA_VISIBLE_DEVICES"] = ""  # two machines with one CPU each
        self.scratch, self.shared, self.logs = scratch, scratch / "shared", scratch / "logs"
        self.first, self.second = (Machine(name, scratch, environment) for name in ("first", "second"))
        for folder in (self.shared, self.logs):
            folder.mkdir()
        self.services: list[Service] = []
        self.rows: list[tuple[str, str, float]] = []
        self._jobs, self._seen = "", dict[str, str]()

    @property
    def mlflow(self) -> str:
        return self.first.environment["MLFLOW_TRACKING_URI"]

    def set(self, **environment: str) -> None:
        for machine in (self.first, self.second):
            machine.environment |= environment

    @contextmanager
    def step(self, what: str, where: str = "") -> Iterator[None]:
        """Adds a line to the table; without `where`, with the machines that jobs were seen on."""
        start = time.monotonic()
        yield
        where = where or ", ".join(f"{job} on {machine}" for job, machine in self._seen.items())
        self.rows.append((what, where, time.monotonic() - start))
        print(f"{what}: {where}: {self.rows[-1][2]:.0f} s", flush=True)

    def run(self, machine: Machine, *commands: str) -> str:
        """Runs commands in a checkout; returns the output of the last. Raises `Failed` if one of them fails."""
        for command in commands:
            name = f"{len(list(self.logs.iterdir())):02}-{machine.name}-{re.sub(r'[^a-z]+', '-', command)[:30]}"
            words = shlex.split(command)
            with running(name, words, self.logs, cwd=machine.root, env=machine.environment) as job:
                while job.process.poll() is None:
                    self.watch()
            if code := job.process.returncode:
                raise Failed(f"`{command}` on {machine.name} ended with exit code {code}:\n{tail(job.log)}")
        return job.log.read_text()

    def flow(self, name: str) -> dict[str, str]:
        """Runs a deployment on a worker. Returns job -> the machine that it ran on."""
        self._jobs, self._seen = JOBS[name], {}
        with self.step(f"the flow `{name}`"):
            try:
                self.run(self.first, f"prefect deployment run {name}/{name} --watch")
            except Failed as error:
                logs = [f"{s.name}:\n{tail(s.log)}" for s in self.services if "worker" in s.name]
                raise Failed("\n\n".join([str(error), *logs])) from None
        return self._seen

    def watch(self) -> None:
        """A second later: do all services run, and where do the jobs run? The home of a job's process tells."""
        time.sleep(1)
        for service in self.services:
            service.check()
        for process in ours() if self._jobs else ():
            with suppress(psutil.Error):
                if job := re.search(self._jobs, " ".join(process.cmdline())):
                    self._seen[job[1]] = Path(process.environ()["HOME"]).parent.name

    def table(self) -> str:
        lines = [f"| {what} | {where} | {seconds:.0f} |" for what, where, seconds in self.rows]
        return "\n".join(["| what | where | seconds |", "| --- | --- | --: |", *lines])


# Bringing it up


def bring_up(team: Team, ends: ExitStack, with_ray: bool) -> None:
    first, second, logs = team.first, team.second, team.logs

    def started(service: Service) -> Service:
        team.services.append(service)
        return service

    with team.step("PostgreSQL", "first"):
        database = started(ends.enter_context(postgres(logs, first.environment))).address
    with team.step("MLflow", "first"):
        server = started(ends.enter_context(mlflow(team.shared, logs, database, environment=first.environment)))
        team.set(MLFLOW_TRACKING_URI=server.address)
    with team.step("Prefect's server", "first"):
        server = started(ends.enter_context(prefect(logs, first.environment)))
        team.set(PREFECT_API_URL=server.address)
    cluster = None
    if with_ray:
        with team.step("Ray's nodes", "first, second"):
            head = ray("ray-first", "127.0.0.2", logs, first.environment, temporary=team.scratch / "ray")
            cluster = started(ends.enter_context(head)).address
            started(ends.enter_context(ray("ray-second", "127.0.0.3", logs, second.environment, head=cluster)))
    with team.step("checkouts, deployments", "first, second"):
        check_out(team, cluster)
        team.run(first, "prefect work-pool create gpu --type process", "prefect deploy --all")
        team.run(first, "python -m pipelines.flows watch")
    with team.step("workers", "first, second"):
        for machine, queue in ((first, "nights"), (second, "default")):
            command = shlex.split(f"prefect worker start --pool gpu --work-queue {queue}")
            how = {"cwd": machine.root, "env": machine.environment}
            worker = started(ends.enter_context(running(f"worker-{machine.name}", command, logs, **how)))
            until(lambda worker=worker: worker.check() or "started!" in worker.log.read_text())


def check_out(team: Team, cluster: str | None) -> None:
    """One git repository and one DVC remote in the shared folder, and a clone on each machine."""
    weights = ROOT / "data" / "metric_weights"
    if not (weights / "manifest.json").is_file():
        weights = team.scratch / "metric_weights"
        prepare(weights)
    values = settings() | {"sweep": {"cross": {key: list(values) for key, values in CROSS.items()}}}
    values |= {"nightly": NIGHTLY, "jobs": {"devices": None, "cluster": cluster}}
    seed, origin = Project(team.scratch / "seed", weights, values), team.shared / "upsr.git"
    seed("git", "clone", "-q", "--bare", ".", str(origin))
    seed("git", "clone", "-q", str(origin), str(team.first.root))
    team.run(team.first, f"dvc remote add -d team {team.shared / 'dvc'}", "git commit -qam remote", "git push -q")
    seed("git", "clone", "-q", str(origin), str(team.second.root))
    shutil.copytree(weights, team.second.root / "data" / "metric_weights")  # not fetched again


# What a team does


def rehearse(team: Team, with_ray: bool) -> None:
    first, second = team.first, team.second
    check(set(team.flow("pipeline").values()) == {"second"}, "the pipeline did not run on `second`")
    with team.step("the model by `dvc pull`", "second to first"):
        team.run(second, "git add dvc.lock", "git commit -qm trained", "git push -q", "dvc push")
        team.run(first, "git pull -q", "dvc pull")
        for model in MODELS:
            check(sha256(first.root / model) == sha256(second.root / model), f"{model} differs after `dvc pull`")
    with team.step(f"the model by `{CHAMPION}`", "second to first"):
        images.write(first.root / "photo.png", np.zeros((16, 16, 3), np.uint8))
        team.run(first, """python -c 'from pipelines import registry; registry.promote("1")'""")
        team.run(first, f"upsr upscale photo.png -o large.png --model {CHAMPION}")
        fetched = [sha256(path) for path in (first.home / ".cache" / "upsr").rglob("weights.safetensors")]
        check(fetched == [sha256(second.root / MODELS[1])], f"{CHAMPION} is not the model that `second` trained")
    sweep(team, with_ray)
    jobs = team.flow("nightly")
    records = list(first.root.glob("reports/nightly/*.json"))
    check(len(records) == 1 and "champion-holdout" in jobs, "`first` has no record of the night, or no champion in it")


def sweep(team: Team, with_ray: bool) -> None:
    first, second = team.first, team.second
    names = sorted(experiments(CROSS))
    jobs = team.flow("sweep")
    check(sorted(jobs) == names, f"the sweep ran {sorted(jobs)}, not {names}")
    if with_ray:
        check(set(jobs.values()) == {"first", "second"}, f"both experiments ran on one node: {jobs}")
    with team.step("the sweep in MLflow", "first"):
        from mlflow import MlflowClient

        store = MlflowClient(team.mlflow)
        found = store.search_runs([store.get_experiment_by_name("sweep").experiment_id])
        parent = {run.info.run_name: run.data.tags.get("mlflow.parentRunId") for run in found}
        children = {name: parent.get(name) for name in names}
        parents = [run.info.run_id for run in found if run.info.run_name not in names]
        right = len(parents) == 1 and set(children.values()) == set(parents)
        check(right, f"MLflow has the parents {parents}, and their children {children}")
    with team.step("an experiment by `dvc exp pull`", "second to first"):
        team.run(second, f"dvc exp push origin {names[0]}")
        team.run(first, f"dvc exp pull origin {names[0]}")
        check(names[0] in team.run(first, "python -m pipelines.experiments"), f"`first` has no experiment {names[0]}")


def check(right: bool, otherwise: str) -> None:
    if not right:
        raise Failed(otherwise)


# The whole


def left(team: Team) -> list[str]:
    """What is left of a team that was taken down: processes and ports."""
    processes = [f"the process {process.pid}" for process in ours()]
    return processes + [f"the port {s.port} of {s.name}" for s in team.services if s.port and listens(s.port)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", action="store_true", help="only bring the services up, until Ctrl-C")
    parser.add_argument("--no-ray", action="store_true", help="without the nodes of Ray")
    options = parser.parse_args()
    if reason := no_postgres():
        sys.exit(f"error: {reason}")
    with_ray = not options.no_ray and bool(find_spec("ray") and find_spec("prefect_ray"))
    if not with_ray and not options.no_ray:
        print("Ray is not installed, so jobs run on the machine of their flow: uv pip install -e '.[cluster]'")
    os.environ[MARK] = str(os.getpid())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    team, code = Team(Path(tempfile.mkdtemp(prefix="upsr-team-"))), 0
    try:
        with ExitStack() as ends:
            bring_up(team, ends, with_ray)
            if options.services:
                print(f"Everything is up: MLflow is {team.mlflow}. Ctrl-C ends it.", flush=True)
                while True:
                    team.watch()
            rehearse(team, with_ray)
    except (Failed, AssertionError) as error:
        code = f"error: {error}"
    except KeyboardInterrupt:
        code = 130
    finally:
        kill_all()
        print(f"\n{team.table()}\n\nThe logs: {team.logs}", flush=True)
        if remains := left(team):
            code = f"{code or ''}\nerror: left behind: {', '.join(remains)}"
    for path in team.scratch.iterdir():
        if path != team.logs:
            shutil.rmtree(path)
    sys.exit(code)


if __name__ == "__main__":
    main()
