"""MLflow runs. An unavailable store never stops a training.

The main checkout, its git worktrees and DVC's temporary copies share one store. A run holds a lock as long as its
process lives: whoever starts a run ends those as KILLED whose lock is free. Only this file and registry.py import
mlflow. They are separate files, so that a change of the registry makes no training stale.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import yaml

from pipelines.moved import mend
from upsr.files import DataError
from upsr.locks import Locked, locked

if TYPE_CHECKING:
    from mlflow import MlflowClient

FLUSH_SECONDS = 5.0
MAX_RETRY_SECONDS = 600.0
PROCESS = "upsr.process"  # tag: the name of the file that a run's process has locked
METRICS_PER_CALL = 1000  # limits of the store
PARAMS_PER_CALL = 100
DIGEST_LENGTH = 36
VIEW = "mlflow.sharedViewState."  # start of an experiment's tag
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # `Tracker` retries without blocking the training
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}

log = logging.getLogger(__name__)
Call = Callable[["MlflowClient", str], object]
Connect = Callable[[str | None], tuple["MlflowClient", str, ExitStack]]
"""A run's id, or None for a new run -> the store, the run's id, and what holds its lock."""


class Tracker:
    """One run. No method raises. Metrics are sent in batches every `FLUSH_SECONDS`.

    While the store cannot be reached, calls are kept in memory and retried at growing intervals. This is logged once.
    """

    def __init__(self, connect: Connect, run_id: str | None) -> None:
        self.run_id = run_id
        """Passed to a later `start`, continues this run. None until the store was reached once."""
        self._connect = connect
        self._client: MlflowClient | None = None
        self._lock = ExitStack()
        self._metrics: list[tuple[str, float, int, int]] = []
        self._calls: list[Call] = []
        self._next_flush = 0.0
        self._retry_seconds = FLUSH_SECONDS
        self._warned = False

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        """Metrics of one step. Names such as `Set5/psnr` form groups in MLflow."""
        now = time.time_ns() // 1_000_000
        self._metrics += [(re.sub(r"[^\w./ :-]", "_", k), float(v), now, step or 0) for k, v in values.items()]
        self._flush()

    def dataset(self, name: str, digest: str, source: Path, use: str) -> None:
        """Logs data that the run reads: MLflow's column Dataset. `use` is `training` or `evaluation`."""
        self.send(partial(_log_dataset, name, digest, source, use))

    def view(self, key: str, state: dict[str, Any]) -> None:
        """Saves a view of the experiment's table, as MLflow's page does; its address has `viewStateShareKey=KEY`."""
        self.send(partial(_save_view, key, state))

    def image(self, path_in_run: str, image: np.ndarray) -> None:
        """Logs an image, (H, W, 3) uint8, as the artifact `path_in_run`; its suffix is the format."""
        self.send(lambda client, run: client.log_image(run, image, path_in_run))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Logs a file or a folder, below `folder` of the run's artifacts."""
        self.send(lambda client, run: client.log_artifact(run, str(path), folder or None))

    def grid(self, key: str, image: np.ndarray) -> None:
        """Logs an image, (H, W, 3) uint8. MLflow's charts show images of the same key side by side."""
        self.send(lambda client, run: client.log_image(run, image, key=key, step=0))

    def table(self, rows: list[dict[str, Any]], name: str) -> None:
        """Logs rows as the table `name`.json, which MLflow can compare between runs. Rows may have different keys."""
        columns = {key: [row.get(key) for row in rows] for row in rows for key in row}
        self.send(lambda client, run: client.log_table(run, columns, f"{name}.json"))

    def describe(self, params: dict[str, Any], tags: dict[str, str]) -> None:
        """Logs params and tags. Nested params get dotted names."""
        flat = list(flatten(params).items())
        for first in range(0, len(flat), PARAMS_PER_CALL):
            self.send(partial(_log_params, flat[first : first + PARAMS_PER_CALL]))
        self.send(partial(_log_tags, tags))

    def close(self, status: str) -> None:
        """Ends the run as FINISHED, FAILED or KILLED, after a last attempt to send pending calls."""
        self._flush(last=lambda client, run: client.set_terminated(run, status))
        if self._calls:
            log.warning("MLflow: %d calls of this run were never delivered: its record is incomplete", len(self._calls))
        self._lock.close()

    def send(self, call: Call) -> None:
        """Runs `call(client, run_id)` as soon as the store can be reached."""
        self._calls.append(call)
        self._flush()

    def _flush(self, last: Call | None = None) -> None:
        if not last and time.monotonic() < self._next_flush:
            return
        for first in range(0, len(self._metrics), METRICS_PER_CALL):
            self._calls.append(partial(_log_metrics, self._metrics[first : first + METRICS_PER_CALL]))
        self._metrics = []
        self._calls += [last] if last else []
        try:
            self._deliver()
            self._retry_seconds = FLUSH_SECONDS
        except Exception as error:
            self._postpone(error)
        self._next_flush = time.monotonic() + self._retry_seconds

    def _deliver(self) -> None:
        if self._client is None or self.run_id is None:
            self._client, self.run_id, self._lock = self._connect(self.run_id)
        while self._calls:
            try:
                self._calls[0](self._client, self.run_id)
            except Exception as error:
                if may_pass(error):
                    raise
                log.warning("MLflow: a call was rejected and is dropped: %s", one_line(error))
            del self._calls[0]

    def _postpone(self, error: Exception) -> None:
        self._retry_seconds = min(2 * self._retry_seconds, MAX_RETRY_SECONDS)
        if not self._warned:
            text = "MLflow at %s: %s: the run continues; its record is kept in memory and retried until the run ends"
            log.warning(text, store_address()[0], one_line(error))
        self._warned = True


class NullTracker(Tracker):
    """Records nothing: used on ranks other than 0 and without MLflow."""

    def _flush(self, last: Call | None = None) -> None:
        self._metrics, self._calls = [], []


@contextmanager
def start(
    experiment: str,
    name: str,
    params: dict[str, Any],
    tags: dict[str, str],
    run_id: str | None = None,
    parent: str | None = None,
) -> Iterator[Tracker]:
    """A run of `experiment`, named `name`, below the run `parent`. With `run_id` it continues that run if it exists.

    The run ends FAILED if the block raises, KILLED on Ctrl-C or `SystemExit(128 + signal)`. `tags` override the
    automatic ones: commit, DVC experiment, hash of the packed data, device.
    """
    tracker = _tracker(experiment, name, run_id)
    tracker.describe(params, _default_tags() | tags | ({"mlflow.parentRunId": parent} if parent else {}))
    status = "FINISHED"
    try:
        yield tracker
    except BaseException as error:
        status = _status(error)
        raise
    finally:
        tracker.close(status)


def flatten(values: dict[str, Any], prefix: str = "", separator: str = ".") -> dict[str, Any]:
    """Nested dictionaries as one; names are joined by `separator`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}{separator}", separator) if isinstance(value, dict) else {name: value}
    return flat


def _tracker(experiment: str, name: str, run_id: str | None) -> Tracker:
    missing = find_spec("mlflow") is None
    if missing:
        log.warning("MLflow is not installed: the run `%s` is not recorded", name)
    kind = NullTracker if missing or os.environ.get("RANK", "0") != "0" else Tracker
    return kind(partial(_connect, experiment, name), run_id)


def _status(error: BaseException) -> str:
    killed = isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128
    return "KILLED" if killed or isinstance(error, KeyboardInterrupt) else "FAILED"


def client(create: bool = True) -> "MlflowClient":
    """A client of the store, after a test call.

    While the store is down, raises an error for which `may_pass` is true. Raises `DataError` for a local store that
    does not exist, unless `create`, and for one of a moved checkout that cannot be written.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    uri, folder = store_address()
    database = Path(uri.removeprefix("sqlite:///"))
    if folder and not create and not database.is_file():
        raise DataError(f"{database}: no MLflow store: go to a checkout with runs, or set MLFLOW_TRACKING_URI")
    with _locked(folder) if folder else nullcontext():
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
        if folder:
            mend(database, folder / "mlartifacts")
    return client


def _connect(experiment: str, name: str, run_id: str | None) -> tuple["MlflowClient", str, ExitStack]:
    from mlflow.tracking.context.registry import resolve_tags

    store = client()
    folder = store_address()[1]
    with _locked(folder or main_checkout()) as running:
        _end_killed_runs(store, running)
        experiment_id = _experiment(store, experiment, folder)
        with ExitStack() as lock:
            mark = running / uuid4().hex  # locked before there is a run: a kill in between leaves nothing
            mark.touch()
            try:
                lock.enter_context(locked(mark))
            except OSError:  # without locks nobody can tell whether the run is alive
                mark.unlink()
            if not (run_id and _reopened(store, run_id, mark.name)):
                tags = resolve_tags({PROCESS: mark.name})  # user, source and commit, as in other runs of MLflow
                run_id = store.create_run(experiment_id, tags=tags, run_name=name).info.run_id
            return store, run_id, lock.pop_all()


def _end_killed_runs(client: "MlflowClient", running: Path) -> None:
    """Ends the runs whose process was killed: it can no longer say so, and the kernel has released its lock."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for mark in running.iterdir():
        with suppress(Locked, OSError), locked(mark):
            alive = f"attributes.status = 'RUNNING' and tags.`{PROCESS}` = '{mark.name}'"
            for run in client.search_runs(experiments, alive):
                client.set_terminated(run.info.run_id, "KILLED")
            mark.unlink()


def store_address() -> tuple[str, Path | None]:
    """The store's URI, and the folder of a local store; None for a server, which stores artifacts itself."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if not uri.startswith("sqlite:///"):
        return uri, None
    database = main_checkout() / uri.removeprefix("sqlite:///")
    return f"sqlite:///{database}", database.parent


def main_checkout() -> Path:
    """The root of the main checkout, also from one of its worktrees or a DVC experiment's temporary copy."""
    folder = Path(os.environ.get("DVC_ROOT", ".")).resolve()
    output = _git("rev-parse", "--path-format=absolute", "--git-common-dir", "--show-prefix", folder=folder)
    git_dir, _, prefix = output.partition("\n")
    return Path(git_dir).parent / prefix if Path(git_dir).name == ".git" else folder


@contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """One process at a time: a local store's first user creates the tables, and two concurrent ones would crash.

    Yields the folder of this store's locked files, one for each process that has a run.
    """
    running = folder / "mlartifacts" / ".running" / hashlib.sha256(store_address()[0].encode()).hexdigest()[:16]
    running.mkdir(parents=True, exist_ok=True)
    with open(folder / "mlartifacts" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield running


def _experiment(client: "MlflowClient", name: str, folder: Path | None) -> str:
    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    # The default location is the working directory, which DVC deletes after an experiment.
    return client.create_experiment(name, (folder / "mlartifacts" / name).as_uri() if folder else None)


def _reopened(client: "MlflowClient", run_id: str, process: str) -> bool:
    """Reopens an earlier run. False if it does not exist or is deleted."""
    try:
        client.set_tag(run_id, PROCESS, process)
        client.update_run(run_id, status="RUNNING")
    except Exception as error:
        if may_pass(error):
            raise
        return False
    return True


def _log_metrics(metrics: list[tuple[str, float, int, int]], client: "MlflowClient", run: str) -> None:
    from mlflow.entities import Metric

    client.log_batch(run, metrics=[Metric(*metric) for metric in metrics])


def _log_params(params: list[tuple[str, Any]], client: "MlflowClient", run: str) -> None:
    from mlflow.entities import Param

    client.log_batch(run, params=[Param(key, str(value)) for key, value in params])


def _log_tags(tags: dict[str, str], client: "MlflowClient", run: str) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run, tags=[RunTag(key, value) for key, value in tags.items()])


def _log_dataset(name: str, digest: str, source: Path, use: str, client: "MlflowClient", run: str) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = Dataset(name, digest[:DIGEST_LENGTH], "local", json.dumps({"uri": str(source)}))
    client.log_inputs(run, [DatasetInput(data, [InputTag("mlflow.data.context", use)])])


def _save_view(key: str, state: dict[str, Any], client: "MlflowClient", run: str) -> None:
    view = {"name": key.capitalize(), "createdAt": 0, "state": json.dumps(state)}
    client.set_experiment_tag(client.get_run(run).info.experiment_id, VIEW + key, json.dumps(view))


def may_pass(error: Exception) -> bool:
    """True if a retry may help: no connection, a server error, a busy database."""
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.get_http_status_code() >= 500
    return isinstance(error, requests.ConnectionError | requests.Timeout)


def one_line(error: Exception) -> str:
    """The error's text in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def git_commit() -> str:
    """The hash of HEAD, with `-dirty` appended if tracked files differ; empty without git."""
    commit = _git("rev-parse", "HEAD")
    # `dvc repro` rewrites dvc.lock after every stage, which is no change of the code.
    dirty = commit and _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    return f"{commit}-dirty" if dirty else commit


def _default_tags() -> dict[str, str]:
    tags = {
        "git.commit": git_commit(),
        "dvc.experiment": os.environ.get("DVC_EXP_NAME", ""),
        "data.hash": _data_hash(),
        "device": device_name(),
    }
    return {key: value for key, value in tags.items() if value}


def _data_hash() -> str:
    """DVC's hash of data/train.lmdb; the stage `pack` writes it before a training starts."""
    lock = Path("dvc.lock")
    stages = yaml.safe_load(lock.read_text())["stages"] if lock.is_file() else {}
    outs = [out for stage in stages.values() for out in stage.get("outs", [])]
    return next((out["md5"] for out in outs if out["path"] == "data/train.lmdb"), "")


def device_name() -> str:
    """The GPU's name, or `cpu`."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _git(*arguments: str, folder: Path | None = None) -> str:
    """The output of a git command; empty without git or outside a repository."""
    try:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
