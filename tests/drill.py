"""Breaks a tiny copy of the project on purpose and counts what is lost: `make drill`. Not a test.

kills: SIGKILL at random moments of every stage, `dvc repro`, a sweep and a night; a quarter of them hit the top process
    alone, whose children live on. Started again, each must end like an uninterrupted run.
disk: every stage on a full disk ends with one line and loses nothing; with free space it ends as ever. A full disk of
    MLflow's store stops no training.
files: 200 hostile files, each opened as a user's file would be (tests/hostile_files.py).

Prints each problem as it is found, then a table for docs/operations.md. Exits with 1 if anything was lost, executed,
hung, or ended with a traceback. Takes about 90 minutes on 2 CPU cores, of which the disks take 8 and the files 6, and
several times as long on a busy machine. The disks need root or user namespaces.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hostile_entries
import psutil
import torch
import yaml
from conftest import ROOT, settings
from drill_project import MARK, Command, digests, figures, files, kill_all, ours, outs, timeless
from tiny_project import Project

from pipelines.nightly import Record
from pipelines.sweep import experiments
from upsr.acquisition.metric_weights import prepare

PARTS = ("kills", "disk", "files")
STAGES = ("download", "crop", "pack", "train_atd", "train_unet", "evaluate", "report")
SHARES = {  # of 100 kills
    "download": 6, "crop": 4, "pack": 4, "train_atd": 22, "train_unet": 22, "evaluate": 10, "report": 4,
    "repro": 10, "sweep": 12, "nightly": 6,
}  # fmt: skip
GOOD = ("tries", "restarts", "accepted", "refused")
BAD = ("losses", "tracebacks", "hangs", "leftovers", "executions", "escapes")
TOP_ONLY = 0.25  # of the kills
PATIENCE = 1800  # seconds for a command that is not killed
ORPHAN_SECONDS = 300  # for the children of a killed process to end
EMBEDDED = "prefect.server"  # in the command of the server that Prefect starts for a flow: it outlives a killed flow
DISK = 400 << 20  # bytes, of which the project takes half
CROSS = {"uncertainty.variant": ("isotropic", "residual")}
NIGHTLY = {
    "metrics": {"psnr": {"better": "higher", "tolerance": 0.05}},
    "improves": "psnr",
    "by": 0.001,
    "webhook": None,
}


class Report:
    """Counts by item. Prints each problem at once."""

    def __init__(self) -> None:
        self.rows: dict[str, Counter[str]] = {}

    def add(self, item: str, what: str, text: str = "") -> None:
        self.rows.setdefault(item, Counter())[what] += 1
        if what in BAD:
            print(f"{item}: {what}: {text}", flush=True)

    def table(self) -> str:
        columns = (*GOOD, *BAD)
        lines = [f"| item | {' | '.join(columns)} |", f"| --- |{' --: |' * len(columns)}"]
        total = sum(self.rows.values(), Counter[str]())
        for item, counts in {**self.rows, "**all**": total}.items():
            lines.append(f"| {item} | {' | '.join(str(counts[c]) for c in columns)} |")
        return "\n".join(lines)

    def failed(self) -> bool:
        return any(counts[what] for counts in self.rows.values() for what in BAD)


def compare(report: Report, item: str, found: dict[str, str], expected: dict[str, str]) -> None:
    """Reports each file that differs, is lost, or should not be there."""
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            how = "differs" if name in found and name in expected else "is lost" if name in expected else "is left over"
            report.add(item, "leftovers" if name not in expected else "losses", f"{name} {how}")


def await_orphans(report: Report, item: str, seconds: float) -> None:
    """Waits for the processes that a killed command left. Reports and kills those that do not end."""
    deadline = time.monotonic() + seconds
    while _orphans() and time.monotonic() < deadline:
        time.sleep(0.2)
    for name in _orphans():
        report.add(item, "leftovers", f"process `{name[:200]}`")
    kill_all()


def _orphans() -> list[str]:
    """The commands of the processes of this drill, without Prefect's server."""
    names = []
    for process in ours():
        with suppress(psutil.Error):  # it has ended meanwhile
            names.append(" ".join(process.cmdline()))
    return [name for name in names if EMBEDDED not in name]


def note_traceback(report: Report, item: str, ended: Command) -> None:
    if ended.traceback():
        report.add(item, "tracebacks", f"`{' '.join(ended.command[-3:])}`: {ended.traceback()}")


def completed(report: Report, item: str, project: Project, command: list[str], **environment: str) -> Command:
    """Runs a command to its end, and reports a traceback or hang."""
    started = Command(project, command, **environment)
    if not started.ended(PATIENCE):
        report.add(item, "hangs", f"`{' '.join(command)}` ran for {PATIENCE} s: {started.last_line()}")
        kill_all()
    note_traceback(report, item, started)
    return started


# Kills


def command(item: str, rng: random.Random, force: bool) -> list[str]:
    """A command that runs an item; a stage by DVC or by its script."""
    if item in STAGES:
        by_dvc = ["dvc", "repro", "--single-item", *["--force"] * force, item]
        return rng.choice([by_dvc, [sys.executable, "-m", f"pipelines.{item}"]])
    flow = [sys.executable, "-m", "pipelines.flows", item]
    return ["dvc", "repro", *["--force"] * force] if item == "repro" else flow


def finishing(item: str) -> list[str]:
    return ["dvc", "repro", "--single-item", item] if item in STAGES else command(item, random.Random(0), False)


def attack(report: Report, item: str, project: Project, kills: int, seconds: float, rng: random.Random) -> None:
    """Kills an item at random moments of its `seconds`, starts it again each time, and at last lets it finish."""
    once_done = False
    for _ in range(4 * kills):  # some end before their moment
        if report.rows.get(item, Counter())["tries"] == kills:
            break
        if item in report.rows:
            report.add(item, "restarts")
        if item == "sweep" and once_done:
            project("dvc", "exp", "remove", "--all-commits")
        started = Command(project, command(item, rng, once_done))
        if started.ended(rng.uniform(0, seconds)):
            once_done |= started.process.returncode == 0
            if started.process.returncode:
                report.add(item, "losses", f"`{' '.join(started.command)}` failed: {started.last_line()}")
        elif rng.random() < TOP_ONLY:
            started.process.kill()
            started.process.wait()  # DVC takes a zombie for a process that holds its lock
            once_done |= overlap(report, item, project, started.command)
            report.add(item, "tries")
        else:
            kill_all()
            report.add(item, "tries")
        note_traceback(report, item, started)
    finish(report, item, project)


def overlap(report: Report, item: str, project: Project, again: list[str]) -> bool:
    """Starts a command whose top process was killed, beside its orphans. It may refuse; then waits for the orphans."""
    report.add(item, "restarts")
    second = completed(report, item, project, again)
    if second.process.returncode:
        report.add(item, "refused")
    await_orphans(report, item, ORPHAN_SECONDS)
    return second.process.returncode == 0


def finish(report: Report, item: str, project: Project) -> None:
    report.add(item, "restarts")
    ended = completed(report, item, project, finishing(item))
    if ended.process.returncode:
        report.add(item, "losses", f"`{' '.join(ended.command)}` does not finish after the kills: {ended.last_line()}")
    await_orphans(report, item, 10)


def check(report: Report, item: str, project: Project, reference: Project) -> None:
    """Compares what an item left with the reference."""
    stages = [item] if item in STAGES else STAGES if item == "repro" else ()
    for stage in stages:
        compare(report, item, digests(project.root, *outs(stage)), digests(reference.root, *outs(stage)))
    hidden = [p for folder in ("data", "models", "reports") for p in (project.root / folder).rglob(".*")]
    for path in [*(p for p in hidden if p.name != ".gitignore"), *(project.root / "models").rglob("state-*")]:
        report.add(item, "leftovers", str(path.relative_to(project.root)))
    if stages and completed(report, item, project, ["dvc", "status", "--quiet", *stages]).process.returncode:
        report.add(item, "losses", f"`dvc status` is not clean: {project('dvc', 'status')}")
    if (project.root / "mlflow.db").is_file():
        for (name,) in project.mlflow("select name from runs where status = 'RUNNING'"):
            report.add(item, "leftovers", f"the MLflow run `{name}` is RUNNING")
    if item == "sweep":
        compare(report, item, swept(project), swept(reference))
        for path in (project.root / ".dvc" / "tmp" / "sweep").glob("*/variant-*/"):
            report.add(item, "leftovers", f"the worktree {path.name} of a finished experiment")
    if item == "nightly":
        records = list((project.root / "reports" / "nightly").glob("*.json"))
        if not records:
            report.add(item, "losses", "no record of a night")
        for path in records:
            try:
                Record.model_validate_json(path.read_bytes())
            except ValueError as error:
                report.add(item, "losses", f"{path}: {error}")


def swept(project: Project) -> dict[str, str]:
    """Experiment -> its figures."""
    found = {}
    for ref in project("git", "for-each-ref", "--format=%(refname)", "refs/exps").split():
        if (name := ref.rpartition("/")[2]) in experiments(CROSS):
            lock = yaml.safe_load(project("git", "show", f"{ref}:dvc.lock"))["stages"]["evaluate"]["outs"]
            (md5,) = (out["md5"] for out in lock if out["path"].endswith("metrics.json"))
            path = project.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
            found[name] = json.dumps(timeless(json.loads(path.read_text())))
    return found


def kills(report: Report, make: Any, reference: Project, seconds: dict[str, float], count: int, seed: int) -> None:
    rng = random.Random(seed)
    for item in ("sweep", "nightly"):
        seconds[item] = timed(reference, finishing(item))
    shares = Counter(rng.choices(list(SHARES), list(SHARES.values()), k=count))
    stages, whole = make("stages"), make("whole")
    for item in SHARES:
        project = stages if item in STAGES else whole
        print(f"kills: {item}: {shares[item]}", flush=True)
        attack(report, item, project, shares[item], seconds[item], rng)
        check(report, item, project, reference)


# Full disks


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of its own, of `size` bytes."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "drill", str(folder)], check=True)
    try:
        yield folder
    finally:
        kill_all()
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def full(folder: Path, free: int) -> Iterator[None]:
    """Leaves `free` bytes of a disk."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - free)
    yield
    filler.unlink()


def full_disks(report: Report, make: Any, reference: Project, scratch: Path, seed: int) -> None:
    rng = random.Random(seed)
    with disk(scratch / "disk", DISK) as mounted, disk(scratch / "store", 1 << 20) as store:
        project = make("disk/upsr")
        for stage in STAGES:
            needed = sum(path.stat().st_size for path in files(reference.root, *outs(stage)))
            free = min(rng.randrange(needed // 10, needed * 9 // 10), rng.randrange(100_000, 900_000))
            print(f"disk: {stage} with {free // 1000} of {needed // 1000} kB", flush=True)
            fill_and_run(report, project, reference, stage, mounted, free)
        with full(store, 0):
            for stage in ("train_atd", "train_unet"):
                item, uri = f"full store: {stage}", f"sqlite:///{store}/mlflow.db"
                run_stage(report, item, project, reference, stage, MLFLOW_TRACKING_URI=uri)


def fill_and_run(report: Report, project: Project, reference: Project, stage: str, mounted: Path, free: int) -> None:
    item = f"full disk: {stage}"
    others = [out for other in STAGES if other != stage for out in outs(other)]
    before, expected = digests(project.root, *others), digests(reference.root, *outs(stage))
    report.add(item, "tries")
    with full(mounted, free):
        ended = completed(report, item, project, [sys.executable, "-m", f"pipelines.{stage}"])
    line = ended.last_line()
    if ended.process.returncode == 0:
        report.add(item, "losses", "exit code 0 on a full disk")
    elif re.match(r"error: .*(no space left|disk)", line, re.IGNORECASE) and re.search(r": .*\bfree\b", line):
        report.add(item, "refused")
    else:
        report.add(item, "tracebacks", f"the last line does not name the full disk and the remedy: {line[-300:]}")
    compare(report, item, digests(project.root, *others), before)
    for path in files(project.root, *outs(stage)):
        name = str(path.relative_to(project.root))
        if not any(part.startswith(".") for part in path.parts) and not _whole(path, expected.get(name)):
            report.add(item, "losses", f"{name} is there and incomplete")
    run_stage(report, item, project, reference, stage)


def _whole(path: Path, expected: str | None) -> bool:
    """Whether a file is as in the reference. States and tables of an unfinished training need only be readable."""
    if path.suffix == ".csv" and path.parts[-3] == "models":
        return path.read_bytes()[-1:] in (b"", b"\n")
    try:
        if path.name.startswith("state-"):
            return bool(torch.load(path, weights_only=True))
        return hashlib.sha256(figures(path)).hexdigest() == expected
    except Exception:  # whatever reading half a file raises
        return False


def run_stage(report: Report, item: str, project: Project, reference: Project, stage: str, **environment: str) -> None:
    """Runs a stage's script; it must succeed with the results of the reference."""
    report.add(item, "restarts")
    ended = completed(report, item, project, [sys.executable, "-m", f"pipelines.{stage}"], **environment)
    if ended.process.returncode:
        report.add(item, "losses", f"does not finish: {ended.last_line()[-300:]}")
    compare(report, item, digests(project.root, *outs(stage)), digests(reference.root, *outs(stage)))


# Hostile files


def open_hostile_files(report: Report, reference: Project, scratch: Path, seed: int) -> None:
    names = {"traceback": "tracebacks", "out of memory": "tracebacks", "hang": "hangs"}
    cwd = scratch / "cwd"
    cwd.mkdir()
    (cwd / "data").symlink_to(reference.root / "data")
    shutil.copy(reference.root / "params.yaml", cwd)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{scratch}/mlflow.db"
    for kind in hostile_entries.COUNTS:
        item, folder = f"files: {kind}", scratch / f"hostile-{kind}"
        folder.mkdir()
        print(f"files: {kind}: {hostile_entries.COUNTS[kind]}", flush=True)
        for found in hostile_entries.attack(kind, seed, folder, cwd, scratch / f"{kind}.log"):
            report.add(item, "tries")
            what = found.what if found.what in GOOD else names.get(found.what, "losses")
            report.add(item, what, f"{found.name}: {found.what}: {found.message}")
        if (folder / "canary").exists():
            report.add(item, "executions", f"{folder / 'canary'} was created")
        for path in scratch.rglob("*escaped*"):
            if path.parent.name not in ("path", "link"):  # the folders that path.zip and link.tar are unpacked to
                report.add(item, "escapes", str(path))


# The whole


def timed(project: Project, command: list[str]) -> float:
    start = time.monotonic()
    ended = Command(project, command)
    if not ended.ended(PATIENCE) or ended.process.returncode:
        raise SystemExit(f"error: `{' '.join(command)}` fails without any attack: {ended.text()[-2000:]}")
    return time.monotonic() - start


def drill(report: Report, parts: list[str], count: int, seed: int, scratch: Path) -> None:
    weights = ROOT / "data" / "metric_weights"
    if not (weights / "manifest.json").is_file():
        weights = scratch / "metric_weights"
        prepare(weights)
    values = settings() | {"sweep": {"cross": CROSS}, "nightly": NIGHTLY}
    values = json.loads(json.dumps(values))  # YAML has no tuples

    def make(name: str) -> Project:
        return Project(scratch / name, weights, values)

    reference, seconds = make("reference"), {}
    for stage in STAGES:
        seconds[stage] = timed(reference, finishing(stage))
        print(f"reference: {stage}: {seconds[stage]:.0f} s", flush=True)
    seconds["repro"] = sum(seconds.values())
    if "kills" in parts:
        kills(report, make, reference, seconds, count, seed)
    if "disk" in parts:
        full_disks(report, make, reference, scratch, seed)
    if "files" in parts:
        open_hostile_files(report, reference, scratch, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; by default all")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random moment and file")
    parser.add_argument("--kills", type=int, default=100, help="number of kills")
    options = parser.parse_args()
    parts = options.parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"{', '.join(unknown)}: no such part: choose among {', '.join(PARTS)}")
    if "disk" in parts and os.geteuid():  # only root mounts; inside of a user namespace everybody is root
        os.execvp("unshare", ["unshare", "--user", "--map-root-user", "--mount", sys.executable, *sys.argv])
    report, scratch = Report(), Path(tempfile.mkdtemp(prefix="upsr-drill-"))
    os.environ[MARK] = str(os.getpid())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        drill(report, parts, options.kills, options.seed, scratch)
    finally:
        kill_all()
        print(f"\n{report.table()}")
    if report.failed():
        raise SystemExit(f"\n{scratch} is kept")  # exit code 1
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
