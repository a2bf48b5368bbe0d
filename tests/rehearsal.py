"""Rehearses the paper's scale with small images: `make rehearsal`. Not a test.

A server on 127.0.0.1 has archives with DF2K's layout, names and number of images, made from the sample photographs. In
a copy of the project, `upsr scale df2k` and tests/rehearsal.yaml, which changes the size of images and networks and the
number of steps, are run by

- `dvc repro`, killed once in the middle of each stage;
- `make flow`, after a change of `train_unet.steps`;
- a night;
- a sweep of two.

Prints `upsr doctor --plan` for the whole scale, and a table of counts, seconds and memory for docs/operations.md. Exits
with 1 where a count is not DF2K's, a training did not resume, a file was left over, or memory grew. Takes about 40
minutes on 2 CPU cores.
"""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import signal
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import lmdb
import numpy as np
import psutil
from conftest import ROOT
from drill_project import MARK, Command, kill_all, ours
from tiny_project import Project
from tqdm import tqdm
from web_server import Answer, Server

from upsr.acquisition import archives
from upsr.acquisition.metric_weights import prepare
from upsr.acquisition.sources import find
from upsr.config import read_yaml
from upsr.images import read_rgb

SIZE = (204, 136)  # of an image: a tenth of DF2K's typical 2040 × 1356, which gives as many sub-images
SUBIMAGES = 8 * 5  # of an image
STAGES = ("download", "crop", "pack", "train_atd", "train_unet", "evaluate", "report")
GROWTH = 1.2  # of memory, from the first to the second half of a stage
PATIENCE = 3600  # seconds for a command
MAKE = ("make", "--old-file=.venv/ready")  # the environment is there
MEMBERS = {  # archive -> folder and names of its images
    "DIV2K_train_HR.zip": ("DIV2K_train_HR", [f"{n:04d}.png" for n in range(1, 801)]),
    "DIV2K_valid_HR.zip": ("DIV2K_valid_HR", [f"{n:04d}.png" for n in range(801, 901)]),
    "Flickr2K.tar": ("Flickr2K/Flickr2K_HR", [f"{n:06d}.png" for n in range(1, 2651)]),
}
# What the copy's code is told of the small archives.
SMALL_ARCHIVES = """
import json
from dataclasses import replace

def _small(archive: Archive) -> Archive:
    told = json.loads(Path("rehearsal.json").read_text())[archive.remote.name]
    return replace(archive, remote=Remote(**told["remote"]), unpacked=told["unpacked"])


DIV2K_TRAIN, DIV2K_VALID, FLICKR2K = map(_small, (DIV2K_TRAIN, DIV2K_VALID, FLICKR2K))
DF2K = (DIV2K_TRAIN, FLICKR2K)
"""


# The archives


def photographs() -> list[np.ndarray]:
    return [read_rgb(photo.path) for photo in find("sample", None, {})]


def small_image(rng: np.random.Generator, photographs: list[np.ndarray]) -> bytes:
    """A PNG of a random part of a photograph."""
    width, height = SIZE
    photo = photographs[rng.integers(len(photographs))]
    enlarged = rng.uniform(max(width / photo.shape[1], height / photo.shape[0]), 1.0)
    photo = cv2.resize(photo, None, fx=enlarged, fy=enlarged, interpolation=cv2.INTER_AREA)
    top, left = rng.integers(photo.shape[0] - height + 1), rng.integers(photo.shape[1] - width + 1)
    return cv2.imencode(".png", photo[top : top + height, left : left + width, ::-1])[1].tobytes()


def archive(name: str, images: dict[str, bytes]) -> bytes:
    """A zip or tar of images by path."""
    out = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(out, "w") as packed:
            for path, data in images.items():
                packed.writestr(path, data)
    else:
        with tarfile.open(fileobj=out, mode="w") as packed:
            for path, data in images.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(data)
                packed.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def serve_archives() -> tuple[Server, dict[str, dict]]:
    """The server, and what is told of each archive: where it is, and its unpacked size."""
    server, told = Server(), {}
    rng, sources = np.random.default_rng(0), photographs()
    for name, (folder, files) in MEMBERS.items():
        images = {f"{folder}/{file}": small_image(rng, sources) for file in tqdm(files, desc=name, disable=None)}
        body = archive(name, images)
        server.files[f"/{name}"] = body
        remote = {"name": name, "urls": [server.url(f"/{name}")], "size": len(body)}
        remote["sha256"] = hashlib.sha256(body).hexdigest()
        told[name] = {"remote": remote, "unpacked": sum(map(len, images.values()))}
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server, told


def stall(answer: Answer) -> None:
    """Sends a half, then nothing, so that the download is killed in its middle."""
    with suppress(OSError):
        answer.serve(cut=len(answer.server.files[answer.path]) // 2)
        answer.wfile.flush()
        time.sleep(60)


# Commands, with their memory


class Watch:
    """The memory of the running commands by stage, and the seconds that each stage takes."""

    def __init__(self, command: Command) -> None:
        self.command, self.samples, self.seconds = command, dict[str, list[float]](), dict[str, float]()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        before = time.monotonic()
        while self.command.process.poll() is None:
            time.sleep(0.5)
            stage, now = self.stage(), time.monotonic()
            self.seconds[stage] = self.seconds.get(stage, 0) + now - before
            self.samples.setdefault(stage, []).append(_memory())
            before = now

    def stage(self) -> str:
        """The stage that DVC or the flow is in; empty before the first."""
        _, found, rest = self.command.text().rpartition("Running stage '")
        return rest.partition("'")[0] if found else ""

    def ended(self) -> "Watch":
        self._thread.join()
        return self


def _memory() -> float:
    """Megabytes of all processes but DVC's, each page once and without those of files, which the kernel may drop."""
    total = 0
    for process in ours():
        with suppress(psutil.Error, OSError):
            if not any(part.endswith("bin/dvc") for part in process.cmdline()[:2]):
                told = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                total += int(told.partition("Pss_Anon:")[2].split()[0])
    return total / 1e3


def growth(samples: list[float]) -> float:
    """Peak of the second half over peak of the first, of the time that there was a process: DVC then hashes files."""
    samples = [sample for sample in samples if sample]
    middle = len(samples) // 2
    return max(samples[middle:]) / max(samples[:middle]) if middle else 1.0


def printed(stage: str, text: str) -> list[float]:
    """The peak memory that a training prints with each row, in GB; of its last phase."""
    own = text.rpartition(f"Running stage '{stage}'")[2].partition("Running stage '")[0].rpartition("\nbatch ")[2]
    return [float(row) for row in re.findall(r"^step .* memory ([\d.]+) GB$", own, re.M)]


def halfway(stage: str, root: Path, since: float) -> bool:
    """Whether a stage is in its middle, as far as its files show it; the short ones by `since`, seconds."""
    match stage:
        case "download":
            part = root / "data/archives/.Flickr2K.tar.part"
            return part.is_file() and part.stat().st_size > 1 << 20 and since > 5
        case "crop":
            folder = root / "data/.subimages.tmp/new"
            return folder.is_dir() and len(os.listdir(folder)) > 3450 * SUBIMAGES / 3
        case "pack":
            file = root / "data/.train.lmdb.tmp/new/data.mdb"
            return file.is_file() and file.stat().st_blocks * 512 > 64 << 20
        case "train_atd" | "train_unet":
            return any((root / "models" / stage.removeprefix("train_")).rglob("state-*.pt"))
    return since > (6 if stage == "evaluate" else 1)


# The rehearsal


class Rehearsal:
    """What is checked, and the rows of the table."""

    def __init__(self, project: Project) -> None:
        self.project, self.faults, self.rows = project, list[str](), list[str]()

    def check(self, holds: bool, text: str) -> None:
        if not holds:
            self.faults.append(text)
            print(f"WRONG: {text}", flush=True)

    def run(self, *command: str, kill: Callable[[str, float], bool] | None = None) -> Watch:
        """Runs a command to its end, or until `kill(stage, seconds of the stage)` holds."""
        print(f"$ {' '.join(command)}", flush=True)
        started = Command(self.project, list(command))
        watch = Watch(started)
        deadline = time.monotonic() + PATIENCE
        while started.process.poll() is None:
            time.sleep(0.2)
            stage = watch.stage()
            if kill and stage and kill(stage, watch.seconds.get(stage, 0)):
                kill_all()
                print(f"  killed in {stage}", flush=True)
            if time.monotonic() > deadline:
                kill_all()
                self.check(False, f"`{' '.join(command)}` ran for {PATIENCE} s: {started.last_line()}")
        watch.ended()
        if started.traceback():
            self.check(False, f"`{' '.join(command)}`: {started.traceback()}")
        if not kill:
            self.check(started.process.returncode == 0, f"`{' '.join(command)}` failed: {started.last_line()}")
        return watch

    def row(self, what: str, watch: Watch, counts: str, stage: str | None = None) -> None:
        """A row of the table; of one stage, or of the whole command."""
        samples = watch.samples.get(stage, []) if stage else [s for part in watch.samples.values() for s in part]
        seconds = watch.seconds.get(stage, 0.0) if stage else sum(watch.seconds.values())
        shown = ""
        if stage in STAGES[:5]:  # a training's memory is settled with its first step: before that it compiles
            rows = printed(stage, watch.command.text()) if stage.startswith("train_") else samples
            self.check(len(rows) > 1, f"{what}: its memory was not seen")
            grown = growth(rows)
            self.check(grown < GROWTH, f"{what}: memory grew {grown:.2f} times")
            shown = f"{grown:.2f}"
        self.rows.append(f"| {what} | {counts} | {seconds:.0f} | {max(samples, default=0):,.0f} | {shown} |")
        print(self.rows[-1], flush=True)


def chain(rehearsal: Rehearsal) -> None:
    """`dvc repro`, killed once in each stage."""
    killed, root, watches = list[str](), rehearsal.project.root, dict[str, Watch]()

    def kill(stage: str, since: float) -> bool:
        if stage in killed or not halfway(stage, root, since):
            return False
        killed.append(stage)
        return True

    while True:
        before = len(killed)
        watch = rehearsal.run("dvc", "repro", kill=kill)
        whole = list(watch.seconds) if len(killed) == before else list(watch.seconds)[:-1]
        watches |= {stage: watch for stage in whole}
        if len(killed) == before:
            break
    rehearsal.check(watch.command.process.returncode == 0, f"dvc repro failed: {watch.command.last_line()}")
    rehearsal.check(killed == list(STAGES), f"killed in {', '.join(killed)} alone")
    counted = counts(rehearsal)
    for stage in STAGES:
        rehearsal.row(f"`{stage}`", watches[stage], counted[stage], stage)


def counts(rehearsal: Rehearsal) -> dict[str, str]:
    """What each stage made, checked against DF2K's numbers."""
    root, check = rehearsal.project.root, rehearsal.check
    names = {path.stem for path in (root / "data/hr").glob("*.png")}
    div2k, flickr = {n for n in names if len(n) == 4}, {n for n in names if len(n) == 6}
    check((len(div2k), len(flickr)) == (800, 2650), f"data/hr has {len(div2k)} and {len(flickr)} images")
    check(not names & archives.VALIDATION, "validation images of DIV2K are trained on")
    subimages = sum(1 for entry in os.scandir(root / "data/subimages") if entry.name.endswith(".png"))
    check(subimages == 3450 * SUBIMAGES, f"{subimages} sub-images")
    with lmdb.open(str(root / "data/train.lmdb"), readonly=True, lock=False) as store:
        entries = store.stat()["entries"]
    check(entries == subimages, f"{entries} images in the LMDB")
    told = {
        "download": f"{len(div2k)} + {len(flickr)} images",
        "crop": f"{subimages:,} sub-images",
        "pack": f"{entries:,} entries",
    }
    for stage in ("train_atd", "train_unet"):
        folder = root / "models" / stage.removeprefix("train_")
        steps = [int(row["step"]) for row in csv.DictReader((folder / "log.csv").open())]
        check(steps == list(range(1, 21)), f"{folder.name}/log.csv has the steps {steps}")
        check(not list(folder.rglob("state-*.pt")), f"{folder} has the state of an unfinished training")
        kept = len(list((folder / "checkpoints").glob("*[0-9].safetensors")))
        told[stage] = f"{steps[-1]} steps, {kept} checkpoints"
    run = json.loads((root / "reports/evaluate/run.json").read_text())
    images = {row["picture"] for row in csv.DictReader((root / "reports/evaluate/per_image.csv").open())}
    check(not run["failed"] and len(images) == 10, f"{len(images)} images measured, failed: {run['failed']}")
    told["evaluate"] = f"{len(images)} images"
    told["report"] = f"{(root / 'reports/index.html').stat().st_size / 1e6:.1f} MB"
    for path in (root / "data").rglob(".*"):
        check(path.name == ".gitignore", f"{path.relative_to(root)} is left over")
    return told


def flows(rehearsal: Rehearsal) -> None:
    """`make flow`, `make nightly` and `make sweep`."""
    project = rehearsal.project
    values = read_yaml(project.root / "params.yaml")
    values["train_unet"]["steps"] += 10
    values["sweep"] = {"cross": {"uncertainty.variant": ["isotropic", "residual"]}}
    (project.root / "params.yaml").write_text(json.dumps(values))
    watch = rehearsal.run(*MAKE, "flow")
    last = list(csv.DictReader((project.root / "models/unet/log.csv").open()))[-1]
    rehearsal.check(int(last["step"]) == 30, f"the flow trained to step {last['step']}")
    rehearsal.row("`make flow`, 30 steps of the UNet", watch, f"{last['step']} steps")
    project("git", "add", "-A")
    project("git", "commit", "-qm", "more steps")

    watch = rehearsal.run(*MAKE, "nightly")
    records = list((project.root / "reports/nightly").glob("*.json"))
    rehearsal.check(len(records) == 1, f"{len(records)} records of nights")
    rehearsal.row("`make nightly`", watch, f"{len(records)} record")

    watch = rehearsal.run(*MAKE, "sweep")
    refs = [
        ref
        for ref in project("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
        if "/exec/" not in ref.lower()
    ]
    names = sorted(ref.rpartition("/")[2] for ref in refs)
    rehearsal.check(len(names) == 2, f"experiments: {', '.join(names)}")
    rehearsal.row("`make sweep` of two", watch, f"{len(names)} experiments")


def rehearse(scratch: Path) -> Rehearsal:
    weights = ROOT / "data" / "metric_weights"
    if not (weights / "manifest.json").is_file():
        weights = scratch / "metric_weights"
        prepare(weights)
    server, told = serve_archives()
    server.faults["/Flickr2K.tar"] = [stall]
    project = Project(scratch / "upsr", weights, read_yaml(ROOT / "params.yaml"))
    rehearsal = Rehearsal(project)
    project("upsr", "scale", "df2k")
    print(project("upsr", "doctor", "--plan"), flush=True)

    # small images, and their server
    shutil.copy(ROOT / "tests/rehearsal.yaml", project.root / "scales")
    print(project("upsr", "scale", "rehearsal"), flush=True)
    (project.root / "rehearsal.json").write_text(json.dumps(told))
    with (project.root / "upsr/acquisition/archives.py").open("a") as code:
        code.write(SMALL_ARCHIVES)
    with (project.root / "upsr/acquisition/space.py").open("a") as code:
        code.write(f"\nTYPICAL = {SIZE}\n")
    project("git", "add", "-A")
    project("git", "commit", "-qm", "the paper's scale in small images")

    chain(rehearsal)
    flows(rehearsal)
    asked = [span for path, span in server.asked if path == "/Flickr2K.tar"]
    rehearsal.check(len(asked) == 2 and bool(asked[1]), f"Flickr2K.tar was asked for as {asked}: not resumed")
    return rehearsal


def main() -> None:
    scratch = Path(tempfile.mkdtemp(prefix="upsr-rehearsal-"))
    os.environ[MARK] = str(os.getpid())
    os.environ["NO_PROXY"] = "127.0.0.1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        rehearsal = rehearse(scratch)
    finally:
        kill_all()
    print("\n| | made | seconds | peak memory (MB) | second half / first |\n| --- | --- | --: | --: | --: |")
    print("\n".join(rehearsal.rows))
    if rehearsal.faults:
        raise SystemExit("\n".join(["", *rehearsal.faults, f"{scratch} is kept"]))
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
