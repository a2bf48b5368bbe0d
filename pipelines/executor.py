"""Commands and DVC stages as child processes that leave nothing behind, and the devices they run on."""

import fcntl
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

DVC = [sys.executable, "-m", "dvc"]
GRACE_SECONDS = 20.0  # for a training to save; Prefect kills the flow 30 s after a cancel
TAIL_LINES = 15

Log = Callable[[str], None]


class CommandError(RuntimeError):
    """A command that failed: what, how, and the last lines it printed."""

    def __init__(self, command: list[str], code: int, tail: list[str]) -> None:
        how = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
        super().__init__("\n".join([f"`{' '.join(command)}` ended with {how}", *tail]))


class JobsFailed(RuntimeError):
    """Some of many jobs failed; what each said stands in its own task."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"{len(names)} failed: {', '.join(names)}")


@dataclass(frozen=True)
class Device:
    """What a job runs on: `gpu` is the only one it sees (None: whatever there is), `lock` keeps others away."""

    gpu: str | None
    lock: IO[str]


def run(command: list[str], *, cwd: Path, log: Log, device: Device | None = None, grace: float = GRACE_SECONDS) -> None:
    """Runs a command, each line it prints handed to `log` at once.

    Raises `CommandError` if it fails. Whatever ends the call, the command and all it started are gone afterwards, if
    need be killed after `grace` seconds.
    """
    # A session of its own, so that a signal reaches the whole group, and Ctrl-C reaches it only through here. It
    # inherits the device's lock: if this process is killed, the device stays taken until the job has ended, too.
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=_environment(device),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=[device.lock.fileno()] if device else [],
    )
    _running.add(process)
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    try:
        if _stopped.is_set():
            raise InterruptedError(f"`{' '.join(command)}` was not started: this process is ending")
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
    """Ends what this process's threads, which hear no signal, are running, and lets them start nothing more."""
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
    """The ids of the GPUs that jobs are given: those configured, else those that this process sees; maybe none."""
    if configured is not None:
        return tuple(configured)
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    return tuple(visible[:count]) if visible != [""] else tuple(map(str, range(count)))


@contextmanager
def device(gpus: Sequence[str], locks: Path, log: Log = lambda _: None) -> Iterator[Device]:
    """Holds one of the GPUs, waiting for one that no other process holds; without any, the machine as such.

    A lock file each below `locks`, held by the kernel: a process that dies gives its device back, and no server is
    asked.
    """
    with ExitStack() as files:
        yield _first_free([Device(gpu, files.enter_context(_lock(gpu, locks))) for gpu in gpus or (None,)], log)


def _lock(gpu: str | None, locks: Path) -> IO[str]:
    locks.mkdir(parents=True, exist_ok=True)
    return open(locks / (gpu or "cpu").replace("/", "-"), "a")


def _first_free(devices: list[Device], log: Log) -> Device:
    told = False
    while True:
        for one in devices:
            with suppress(BlockingIOError):
                fcntl.flock(one.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return one
        if not told:
            log(f"waiting for a device: other jobs hold {', '.join(one.gpu or 'this machine' for one in devices)}")
            told = True
        time.sleep(0.5)


def in_order(graph: dict[str, set[str]]) -> list[str]:
    """The stages of a graph, each after those it depends on."""
    return list(TopologicalSorter(graph).static_order())


def graph(root: Path) -> dict[str, set[str]]:
    """Stage -> the stages that it depends on, as DVC sees them."""
    edges: dict[str, set[str]] = {}
    lines: list[str] = []
    run([*DVC, "dag", "--dot"], cwd=root, log=lines.append)
    for line in lines:
        if found := re.fullmatch(r'\s*"([^"]+)"(?: -> "([^"]+)")?;', line):
            first, then = found.groups()
            edges.setdefault(first, set())
            edges.setdefault(then or first, set()).update({first} if then else set())
    return edges


def repro(stage: str, force: bool = False) -> list[str]:
    """The command that brings one stage up to date, and no other; `force` runs it even if nothing has changed."""
    return [*DVC, "repro", "--single-item", *["--force"] * force, stage]


def _environment(device: Device | None) -> dict[str, str]:
    """This process's, with its Python's commands (`dvc`, `python`) found first and output not held back."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    pinned = {"CUDA_VISIBLE_DEVICES": device.gpu} if device and device.gpu is not None else {}
    return os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1"} | pinned


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """The lines that are not empty; of a progress bar, which redraws itself in one line, the last state."""
    for raw in stream:
        line = raw.decode(errors="replace").rstrip().rpartition("\r")[2]
        if line:
            yield line


def _end(process: subprocess.Popen[bytes], grace: float) -> None:
    """Ends what is left of the process's group: asked first, then killed."""
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + patience
        while _alive(process) and time.monotonic() < deadline:
            time.sleep(0.05)
    if process.stdout:
        process.stdout.close()


def _alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # a dead leader counts as alive until it is waited for
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True
