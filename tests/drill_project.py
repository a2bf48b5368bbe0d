"""What a drill does with a tiny project: commands and their processes, and digests of what the stages wrote."""

import csv
import hashlib
import io
import json
import os
import re
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from conftest import ROOT
from tiny_project import ENVIRONMENT, Project

MARK = "UPSR_DRILL"  # an environment variable of every process that a drill starts


class Command:
    """A running command, whose output goes to a file: children that outlive it would keep a pipe open."""

    def __init__(self, project: Project, command: list[str], **environment: str) -> None:
        self.command, self.output = command, tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with this object)
        own = {"PYTHONPATH": str(project.root), MARK: str(os.getpid())}
        own["PREFECT_HOME"] = str(project.root.with_name(f"{project.root.name}-prefect"))
        self.process = subprocess.Popen(
            command, cwd=project.root, env=ENVIRONMENT | own | environment, start_new_session=True,
            stdout=self.output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def ended(self, seconds: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
            return True
        return False

    def text(self) -> str:
        file = self.output.fileno()  # its position is the command's too: `seek` would move where that writes
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")

    def last_line(self) -> str:
        lines = [line.rpartition("\r")[2].strip() for line in self.text().splitlines()]
        return next((line for line in reversed(lines) if line), "")

    def traceback(self) -> str:
        """The last lines of a traceback in the output; empty without one."""
        _, found, rest = self.text().rpartition("Traceback (most recent call last)")
        return " / ".join(rest.splitlines()[-3:])[-500:] if found else ""


def ours() -> list[psutil.Process]:
    """Every living process that this drill started, directly or not."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != "zombie" and process.environ().get(MARK) == str(os.getpid()):
                found.append(process)
    return found


def kill_all() -> None:
    while processes := ours():
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, 1)


# Results


def outs(stage: str) -> list[str]:
    entry = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    names = [*entry["outs"], *entry.get("metrics", [])]
    return [next(iter(name)) if isinstance(name, dict) else name for name in names]


def files(root: Path, *names: str) -> list[Path]:
    """All files of these outs but the metrics' weights, which no stage here writes."""
    found = [p for n in names for p in ([root / n] if (root / n).is_file() else (root / n).rglob("*"))]
    return sorted(p for p in found if p.is_file() and p.relative_to(root).parts[1] != "metric_weights")


def figures(path: Path) -> bytes:
    """A file without what differs between two uninterrupted runs: seconds per image, peak memory, the commit.

    Everything else is bit-identical. Of the page, which repeats the tables, the text between the figures is left.
    """
    match path.suffix:
        case ".json" if path.parent.name == "evaluate":
            return json.dumps(timeless(json.loads(path.read_text()))).encode()
        case ".csv" if path.parent.name == "evaluate":
            rows = list(csv.DictReader(io.StringIO(path.read_text())))
            return json.dumps([timeless(row) for row in rows if row.get("metric") != "seconds"]).encode()
        case ".html":
            return re.sub(rb"\b[0-9a-f]{10,40}\b|[\d.,]+", b"", path.read_bytes())
    return path.read_bytes()


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "peak_memory_mb", "git_commit")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def digests(root: Path, *names: str) -> dict[str, str]:
    """File -> digest of its figures, for all files of these outs."""
    return {str(p.relative_to(root)): hashlib.sha256(figures(p)).hexdigest() for p in files(root, *names)}
