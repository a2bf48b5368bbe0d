"""MLflow's runs. A store that is down, or absent, never stops a training.

Runs of the main checkout, of its git worktrees and of DVC's temporary copies land in one store. Only this file and
registry.py (MLflow's models) import mlflow: two, so that a change to the registry makes no training stale.
"""

import fcntl
import logging
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

if TYPE_CHECKING:
    from mlflow import MlflowClient

FLUSH_SECONDS = 5.0
LONGEST_PAUSE = 600.0
METRICS_A_CALL = 1000  # the store's limits
PARAMS_A_CALL = 100
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # `Tracker` tries again itself, without holding up the training
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}

log = logging.getLogger(__name__)
Call = Callable[["MlflowClient", str], object]


class Tracker:
    """One run. No call raises; figures leave in batches, every few seconds.

    While the store cannot be reached, which is said once, everything is kept and tried again, ever less often.
    """

    def __init__(self, connect: Callable[[str | None], tuple["MlflowClient", str]], run_id: str | None) -> None:
        self.run_id = run_id
        """Resumes this run when handed to `start` later; None until the store was reached once."""
        self._connect = connect
        self._client: MlflowClient | None = None
        self._figures: list[tuple[str, float, int, int]] = []
        self._calls: list[Call] = []
        self._due = 0.0
        self._pause = FLUSH_SECONDS
        self._told = False

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        """Figures of one moment; a name like `Set5/psnr` makes a group."""
        now = time.time_ns() // 1_000_000
        self._figures += [(re.sub(r"[^\w./ :-]", "_", k), float(v), now, step or 0) for k, v in values.items()]
        self._flush()

    def picture(self, path_in_run: str, image: np.ndarray) -> None:
        """An image (H, W, 3), uint8, as `path_in_run`, whose suffix names the format."""
        self.send(lambda client, run: client.log_image(run, image, path_in_run))

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file, or a folder and all in it, below `folder` of the run."""
        self.send(lambda client, run: client.log_artifact(run, str(path), folder or None))

    def grid(self, key: str, image: np.ndarray) -> None:
        """An image (H, W, 3), uint8, that MLflow's charts show beside those of other runs with the same key."""
        self.send(lambda client, run: client.log_image(run, image, key=key, step=0))

    def table(self, rows: list[dict[str, Any]], name: str) -> None:
        """Rows, which need not have the same keys, as the table `name`.json, which MLflow shows run beside run."""
        columns = {key: [row.get(key) for row in rows] for row in rows for key in row}
        self.send(lambda client, run: client.log_table(run, columns, f"{name}.json"))

    def describe(self, params: dict[str, Any], tags: dict[str, str]) -> None:
        """What the run was started with. Nested params get dotted names."""
        flat = list(flatten(params).items())
        for first in range(0, len(flat), PARAMS_A_CALL):
            self.send(partial(_log_params, flat[first : first + PARAMS_A_CALL]))
        self.send(partial(_log_tags, tags))

    def close(self, status: str) -> None:
        """Ends the run as FINISHED, FAILED or KILLED, after a last try to deliver what is waiting."""
        self._flush(last=lambda client, run: client.set_terminated(run, status))
        if self._calls:
            log.warning("MLflow: %d calls of this run were never delivered: its record ends early", len(self._calls))

    def send(self, call: Call) -> None:
        """Any other call, with the client and the run's id, as soon as the store can be reached."""
        self._calls.append(call)
        self._flush()

    def _flush(self, last: Call | None = None) -> None:
        if not last and time.monotonic() < self._due:
            return
        for first in range(0, len(self._figures), METRICS_A_CALL):
            self._calls.append(partial(_log_metrics, self._figures[first : first + METRICS_A_CALL]))
        self._figures = []
        self._calls += [last] if last else []
        try:
            self._deliver()
            self._pause = FLUSH_SECONDS
        except Exception as error:
            self._postpone(error)
        self._due = time.monotonic() + self._pause

    def _deliver(self) -> None:
        if self._client is None or self.run_id is None:
            self._client, self.run_id = self._connect(self.run_id)
        while self._calls:
            try:
                self._calls[0](self._client, self.run_id)
            except Exception as error:
                if may_pass(error):
                    raise
                log.warning("MLflow: a call was refused and is left out: %s", one_line(error))
            del self._calls[0]

    def _postpone(self, error: Exception) -> None:
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        if not self._told:
            text = "MLflow at %s: %s. The run goes on; its record is kept in memory and tried again until the end"
            log.warning(text, store_address()[0], one_line(error))
        self._told = True


class Silent(Tracker):
    """Stands where nothing is recorded: another rank than 0, or a machine without MLflow."""

    def _flush(self, last: Call | None = None) -> None:
        self._figures, self._calls = [], []


@contextmanager
def start(
    experiment: str, name: str, params: dict[str, Any], tags: dict[str, str], run_id: str | None = None
) -> Iterator[Tracker]:
    """A run of `experiment`; `run_id` continues an earlier one, or begins anew where the store does not know it.

    The run ends FAILED when the block raises, KILLED on Ctrl-C or `SystemExit(128 + signal)`. `tags` override the
    tags that are found here: commit, DVC experiment, hash of the packed data, device.
    """
    tracker = _tracker(experiment, name, run_id)
    tracker.describe(params, _own_tags() | tags)
    status = "FINISHED"
    try:
        yield tracker
    except BaseException as error:
        status = _status(error)
        raise
    finally:
        tracker.close(status)


def flatten(values: dict[str, Any], prefix: str = "", separator: str = ".") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}{separator}", separator) if isinstance(value, dict) else {name: value}
    return flat


def _tracker(experiment: str, name: str, run_id: str | None) -> Tracker:
    missing = find_spec("mlflow") is None
    if missing:
        log.warning("MLflow is not installed here: the run `%s` is not recorded", name)
    kind = Silent if missing or os.environ.get("RANK", "0") != "0" else Tracker
    return kind(partial(_connect, experiment, name), run_id)


def _status(error: BaseException) -> str:
    killed = isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128
    return "KILLED" if killed or isinstance(error, KeyboardInterrupt) else "FAILED"


def client() -> "MlflowClient":
    """A client of the store, which has answered. While the store is down it raises what `may_pass` tells."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    uri, folder = store_address()
    with _alone(folder):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def _connect(experiment: str, name: str, run_id: str | None) -> tuple["MlflowClient", str]:
    store = client()
    folder = store_address()[1]
    with _alone(folder):
        experiment_id = _experiment(store, experiment, folder)
    if run_id and _continued(store, run_id):
        return store, run_id
    return store, store.create_run(experiment_id, run_name=name).info.run_id


def store_address() -> tuple[str, Path | None]:
    """The store's address, and the folder of a local one (None: a server, which keeps its artifacts itself)."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if not uri.startswith("sqlite:///"):
        return uri, None
    database = main_checkout() / uri.removeprefix("sqlite:///")
    return f"sqlite:///{database}", database.parent


def main_checkout() -> Path:
    """The main checkout's root, seen from it, from a worktree of it or from a DVC experiment's temporary copy."""
    here = Path(os.environ.get("DVC_ROOT", ".")).resolve()
    places = _git("rev-parse", "--path-format=absolute", "--git-common-dir", "--show-prefix", folder=here)
    common, _, prefix = places.partition("\n")
    return Path(common).parent / prefix if Path(common).name == ".git" else here


@contextmanager
def _alone(folder: Path | None) -> Iterator[None]:
    """A local store's first user creates its tables; two that do it at the same moment crash each other."""
    if folder is None:
        yield
        return
    (folder / "mlartifacts").mkdir(parents=True, exist_ok=True)
    with open(folder / "mlartifacts" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _experiment(client: "MlflowClient", name: str, folder: Path | None) -> str:
    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    # Without a location it would be the working folder, which DVC deletes after an experiment.
    return client.create_experiment(name, (folder / "mlartifacts" / name).as_uri() if folder else None)


def _continued(client: "MlflowClient", run_id: str) -> bool:
    """Opens an earlier run again; False where the store has none, or a deleted one."""
    try:
        client.update_run(run_id, status="RUNNING")
    except Exception as error:
        if may_pass(error):
            raise
        return False
    return True


def _log_metrics(figures: list[tuple[str, float, int, int]], client: "MlflowClient", run: str) -> None:
    from mlflow.entities import Metric

    client.log_batch(run, metrics=[Metric(*figure) for figure in figures])


def _log_params(params: list[tuple[str, Any]], client: "MlflowClient", run: str) -> None:
    from mlflow.entities import Param

    client.log_batch(run, params=[Param(key, str(value)) for key, value in params])


def _log_tags(tags: dict[str, str], client: "MlflowClient", run: str) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run, tags=[RunTag(key, value) for key, value in tags.items()])


def may_pass(error: Exception) -> bool:
    """Whether a later try may do: no connection, a server's own error, a busy database."""
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.get_http_status_code() >= 500
    return isinstance(error, requests.ConnectionError | requests.Timeout)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def git_commit() -> str:
    """The commit at hand, marked where files differ from it; empty outside of git."""
    commit = _git("rev-parse", "HEAD")
    # `dvc repro` rewrites dvc.lock after every stage: that is no change of the code.
    dirty = commit and _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    return f"{commit}-dirty" if dirty else commit


def _own_tags() -> dict[str, str]:
    tags = {
        "git.commit": git_commit(),
        "dvc.experiment": os.environ.get("DVC_EXP_NAME", ""),
        "data.hash": _data_hash(),
        "device": _device(),
    }
    return {key: value for key, value in tags.items() if value}


def _data_hash() -> str:
    """DVC's hash of the packed pictures; `pack` has written it before a training starts."""
    lock = Path("dvc.lock")
    stages = yaml.safe_load(lock.read_text())["stages"] if lock.is_file() else {}
    outs = [out for stage in stages.values() for out in stage.get("outs", [])]
    return next((out["md5"] for out in outs if out["path"] == "data/train.lmdb"), "")


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _git(*arguments: str, folder: Path | None = None) -> str:
    """What a git command prints; nothing where there is no git or no repository."""
    try:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
