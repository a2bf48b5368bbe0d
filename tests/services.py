"""A team's services, each for real on 127.0.0.1 in a process group of its own: PostgreSQL, MLflow, Prefect, Ray."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PATIENCE = 240.0  # seconds; on a busy machine everything takes many times what it takes alone
SETTLE_SECONDS = 10.0  # for a service to end by itself
TAIL_LINES = 15
BIN = Path(sys.executable).parent


class Failed(RuntimeError):
    """A service or a command failed. The message says which, and has the last lines of its log."""


@dataclass
class Service:
    """A running program: its name, its process, and the file that its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    port: int | None = None
    address: str = ""

    def check(self) -> None:
        """Raises `Failed` if the program has ended."""
        if (code := self.process.poll()) is not None:
            raise Failed(f"{self.name} ended with exit code {code}:\n{tail(self.log)}")


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running(
    name: str,
    command: list[str],
    logs: Path,
    port: int | None = None,
    stop: int = signal.SIGKILL,
    **how: Any,
) -> Iterator[Service]:
    """Runs a service for the block, which starts when it listens on `port`. `stop` is the signal that ends it.

    What `stop` leaves of its process group is killed. Raises `Failed` if it ends before it listens. `how` goes to
    `Popen`.
    """
    log = logs / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, **how
        )
    service = Service(name, process, log, port)
    try:
        if port is not None:
            until(lambda: service.check() or listens(port))
        yield service
    finally:
        process.send_signal(stop)
        with suppress(subprocess.TimeoutExpired):
            process.wait(SETTLE_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# PostgreSQL and MLflow


def no_postgres() -> str | None:
    """Why there can be no PostgreSQL here; None where it can."""
    if not all(map(_binary, ("initdb", "postgres", "createuser", "createdb"))):
        return "PostgreSQL is not installed here (Debian: apt-get install postgresql)"
    return None if find_spec("psycopg2") else "psycopg2 is not installed here"


def _binary(name: str) -> str:
    """Debian keeps PostgreSQL's programs off the path."""
    return shutil.which(name) or next(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), "")


@contextmanager
def postgres(logs: Path, environment: Mapping[str, str] = os.environ) -> Iterator[Service]:
    """A database cluster of its own; `address` is that of an empty database."""
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    port = free_port()
    client = {**environment, "PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "postgres"}
    with tempfile.TemporaryDirectory() as folder:
        if user:
            shutil.chown(folder, user)
        how = {"user": user, "cwd": "/", "env": client}
        create = [_binary("initdb"), "-D", f"{folder}/data", "-U", "postgres", "-A", "trust"]
        subprocess.run(create, check=True, stdout=subprocess.DEVNULL, **how)
        command = [_binary("postgres"), "-D", f"{folder}/data", "-h", "127.0.0.1", "-p", str(port), "-k", folder]
        with running("postgres", command, logs, port, signal.SIGINT, **how) as service:  # its "fast" shutdown
            for words in (["createuser", "upsr"], ["createdb", "mlflow", "--owner", "upsr"]):
                subprocess.run([_binary(words[0]), *words[1:]], check=True, **how)
            service.address = f"postgresql://upsr@127.0.0.1:{port}/mlflow"
            yield service


@contextmanager
def mlflow(
    folder: Path, logs: Path, database: str, port: int | None = None, environment: Mapping[str, str] = os.environ
) -> Iterator[Service]:
    """A tracking server with its artifacts in `folder`, without the services that only its chat features need."""
    port = port or free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts")]
    calm = {**environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with running("mlflow", [*command, *stores], logs, port, cwd=folder, env=calm) as service:
        service.address = f"http://127.0.0.1:{port}"
        yield service


# Prefect and Ray


@contextmanager
def prefect(logs: Path, environment: Mapping[str, str]) -> Iterator[Service]:
    """A Prefect server; `address` is that of its API."""
    port = free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    calm = {**environment, "PREFECT_SERVER_UI_ENABLED": "false", "DO_NOT_TRACK": "1"}
    with running("prefect", command, logs, port, env=calm) as service:
        service.address = f"http://127.0.0.1:{port}/api"
        yield service


RAY = {  # in the environment of every node and driver, with a RAY_AUTH_TOKEN
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",  # Ray listens on every address of the machine, and runs what it is sent
}
RAY_PORTS = (  # whose defaults another cluster of this machine may have
    "--dashboard-agent-grpc-port", "--dashboard-agent-listen-port", "--runtime-env-agent-port", "--metrics-export-port",
)  # fmt: skip
RAY_TRIES = 5  # a node gives its own programs 15 seconds to start, which is too short on a busy machine


@contextmanager
def ray(
    name: str, ip: str, logs: Path, environment: Mapping[str, str], *, head: str = "", temporary: Path | None = None
) -> Iterator[Service]:
    """A node of a Ray cluster with one CPU; `head` is the `address` of the first node, which has none.

    `ip` is not 127.0.0.1, which Ray replaces by an address that others reach, but 127.0.0.2 and so on. The first node
    has the cluster's `temporary` folder, with a short path: sockets have at most 107 characters.
    """
    address = head or f"{ip}:{free_port()}"
    first = ["--head", "--port", address.rpartition(":")[2], "--ray-client-server-port", str(free_port())]
    which = ["--address", address] if head else [*first, "--include-dashboard", "false", "--temp-dir", str(temporary)]
    own = ["--node-ip-address", ip, "--num-cpus", "1", "--num-gpus", "0", "--block"]
    ports = [text for option in RAY_PORTS for text in (option, str(free_port()))]
    command = [str(BIN / "ray"), "start", *which, *own, *ports]
    with ExitStack() as ends:
        for tries_left in reversed(range(RAY_TRIES)):
            service = ends.enter_context(running(name, command, logs, stop=signal.SIGTERM, env=environment))
            with suppress(Failed) if tries_left else nullcontext():
                until(lambda: service.check() or "Ray runtime started" in service.log.read_text())  # noqa: B023
                break
            ends.pop_all().close()
        service.address, service.port = address, int(address.rpartition(":")[2])
        yield service
