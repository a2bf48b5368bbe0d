"""Commands and DVC stages as child processes that leave nothing behind."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
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


def run(command: list[str], *, cwd: Path, log: Log, gpu: str | None = None) -> None:
    """Runs a command, each line it prints handed to `log` at once; `gpu` is the only device it sees.

    Raises `CommandError` if it fails. Whatever ends the call, the command and all it started are gone afterwards.
    """
    # A session of its own, so that a signal reaches the whole group, and Ctrl-C reaches it only through here.
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=_environment(gpu),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    try:
        assert process.stdout is not None
        for line in _lines(process.stdout):
            tail.append(line)
            log(line)
        code = process.wait()
    finally:
        _end(process)
    if code:
        raise CommandError(command, code, list(tail))


def stages(root: Path) -> list[str]:
    """The stages of dvc.yaml, each after those it depends on, as DVC sees them."""
    graph: TopologicalSorter[str] = TopologicalSorter()
    lines: list[str] = []
    run([*DVC, "dag", "--dot"], cwd=root, log=lines.append)
    for line in lines:
        if found := re.fullmatch(r'\s*"([^"]+)"(?: -> "([^"]+)")?;', line):
            first, then = found.groups()
            graph.add(then, first) if then else graph.add(first)
    return list(graph.static_order())


def repro(stage: str, *, root: Path, log: Log, force: bool = False) -> None:
    """Brings one stage up to date, and no other; `force` runs it even if nothing has changed."""
    run([*DVC, "repro", "--single-item", *["--force"] * force, stage], cwd=root, log=log)


def _environment(gpu: str | None) -> dict[str, str]:
    """This process's, with its Python's commands (`dvc`, `python`) found first and output not held back."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    pinned = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    return os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1"} | pinned


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """The lines that are not empty; of a progress bar, which redraws itself in one line, the last state."""
    for raw in stream:
        line = raw.decode(errors="replace").rstrip().rpartition("\r")[2]
        if line:
            yield line


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends what is left of the process's group: asked first, then killed."""
    for number, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, 5.0)):
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
