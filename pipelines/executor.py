"""Runs commands and DVC stages as child processes, and locks the devices they run on."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import IO

from upsr.files import DataError

DVC = [sys.executable, "-m", "dvc"]
GRACE_SECONDS = 20.0  # time for a training to save; Prefect kills a flow 30 s after it is cancelled
TAIL_LINES = 15

Log = Callable[[str], None]


class CommandError(RuntimeError):
    """A command failed. The message has the command, its exit code or signal, and its last lines of output."""

    def __init__(self, command: list[str], code: int, tail: list[str]) -> None:
        how = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
        super().__init__("\n".join([f"`{' '.join(command)}` ended with {how}", *tail]))


class JobsFailed(RuntimeError):
    """Some jobs failed. Their errors are in the logs of their tasks."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"{len(names)} failed: {', '.join(names)}")


@dataclass(frozen=True)
class Device:
    """The device of a job: the visible `gpu`, or several as `0,1` (None: no restriction), and their locked files."""

    gpu: str | None
    locks: list[IO[str]]


def run(command: list[str], *, cwd: Path, log: Log, device: Device | None = None, grace: float = GRACE_SECONDS) -> None:
    """Runs a command and passes each line of its output to `log` immediately.

    However the call ends, the command and its child processes are gone: terminated, and killed after `grace` seconds.
    Raises `CommandError` if the command fails, and `InterruptedError` after `stop`.
    """
    # A new session: signals reach the whole process group, and Ctrl-C reaches it only through this process. The child
    # inherits the device's lock: if this process is killed, the device stays locked until the job has ended.
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=_environment(device),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=[lock.fileno() for lock in device.locks] if device else [],
    )
    _running.add(process)
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    try:
        if _stopped.is_set():
            raise InterruptedError(f"`{' '.join(command)}` was not started: this process is stopping")
        assert process.stdout is not None
        for line in _lines(process.stdout):
            tail.append(line)
            log(line)
        code = process.wait()
    finally:
        _end(process, grace)
        _running.discard(process)
    if code:
        raise CommandError(command, code, list(tail))


_running: set[subprocess.Popen[bytes]] = set()
_stopped = threading.Event()


def stop() -> None:
    """Terminates the commands of all threads, which receive no signals themselves, and prevents new ones."""
    _stopped.set()
    for process in list(_running):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while _running and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in list(_running):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def gpus(configured: Sequence[str] | None) -> tuple[str, ...]:
    """The ids of the GPUs for jobs: those configured, or else those visible to this process. May be empty."""
    if configured is not None:
        return tuple(configured)
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    return tuple(visible[:count]) if visible != [""] else tuple(map(str, range(count)))


@contextmanager
def device(gpus: Sequence[str], locks: Path, log: Log = lambda _: None) -> Iterator[Device]:
    """Locks one item of `gpus`, or the whole machine if there are none. Waits until one is free.

    Each GPU has a lock file below `locks`, locked with flock: the kernel releases it when its process dies. Raises
    `DataError` where it cannot be opened.
    """
    with ExitStack() as files:
        devices = [
            Device(gpu, [files.enter_context(_lock(name, locks)) for name in (gpu or "cpu").split(",")])
            for gpu in gpus or (None,)
        ]
        yield _first_free(devices, log)


def _lock(name: str, locks: Path) -> IO[str]:
    path = locks / name.replace("/", "-")
    try:
        locks.mkdir(parents=True, exist_ok=True)
        return open(path, "a")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be opened as a lock file ({error.strerror}): make {locks} a folder that you can write to, "
            "or set PREFECT_HOME to another"
        ) from None


def _first_free(devices: list[Device], log: Log) -> Device:
    logged = False
    while True:
        for candidate in devices:
            if _locked(candidate):
                return candidate
        if not logged:
            log(f"waiting for a device: other jobs hold {', '.join(d.gpu or 'this machine' for d in devices)}")
            logged = True
        time.sleep(0.5)


def _locked(device: Device) -> bool:
    """Locks all GPUs of a device; none if one of them is held."""
    try:
        for lock in device.locks:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        for lock in device.locks:
            fcntl.flock(lock, fcntl.LOCK_UN)
        return False
    return True


def mend_locks(root: Path) -> None:
    """Removes DVC's record of its locks below `root` where a kill cut it: DVC would refuse to run for ever."""
    record = root / ".dvc" / "tmp" / "rwlock"
    if _is_cut(record):
        time.sleep(1)  # another process may be writing it just now
        if _is_cut(record):
            record.unlink()


def _is_cut(record: Path) -> bool:
    try:
        json.loads(record.read_bytes())
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return False


def in_order(graph: dict[str, set[str]]) -> list[str]:
    """The stages of a graph in topological order."""
    return list(TopologicalSorter(graph).static_order())


def graph(root: Path) -> dict[str, set[str]]:
    """Stage -> the stages it depends on, from `dvc dag`. Raises `CommandError` where DVC fails."""
    edges: dict[str, set[str]] = {}
    lines: list[str] = []
    run([*DVC, "dag", "--dot"], cwd=root, log=lines.append)
    for line in lines:
        if found := re.fullmatch(r'\s*"([^"]+)"(?: -> "([^"]+)")?;', line):
            upstream, downstream = found.groups()
            edges.setdefault(upstream, set())
            edges.setdefault(downstream or upstream, set()).update({upstream} if downstream else set())
    return edges


def repro(stage: str, force: bool = False) -> list[str]:
    """The command that runs only this stage if it is stale; with `force`, always."""
    return [*DVC, "repro", "--single-item", *["--force"] * force, stage]


def _environment(device: Device | None) -> dict[str, str]:
    """This process's environment, with its Python's `dvc` and `python` first in PATH, and unbuffered output."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    pinned = {"CUDA_VISIBLE_DEVICES": device.gpu} if device and device.gpu is not None else {}
    return os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1"} | pinned


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """The non-empty lines; of a progress bar, which redraws one line, only the last state."""
    for raw in stream:
        line = raw.decode(errors="replace").rstrip().rpartition("\r")[2]
        if line:
            yield line


def _end(process: subprocess.Popen[bytes], grace: float) -> None:
    """Ends what remains of the process group: SIGTERM, then SIGKILL after `grace` seconds."""
    for signal_number, timeout in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal_number)
        deadline = time.monotonic() + timeout
        while _alive(process) and time.monotonic() < deadline:
            time.sleep(0.05)
    if process.stdout:
        process.stdout.close()


def _alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # an exited leader would count as alive until it is reaped
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True
