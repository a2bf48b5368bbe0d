"""Opens hostile files as a user's files would be: the part `files` of tests/drill.py.

`attack` runs this file as a child process for each kind. The child makes the files, then opens one after the other.
"""

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from conftest import ROOT, params, save_model
from hostile_files import COUNTS, STATE, Maker, image

from pipelines import nightly, stage, train_atd
from upsr.__main__ import main as upsr
from upsr.acquisition.archives import Archive, prepare
from upsr.acquisition.transfer import Remote
from upsr.config import load_params
from upsr.data.benchmarks import open_benchmark
from upsr.data.lmdb_store import Reader, verify
from upsr.data.subimages import crop

SECONDS = 20  # for one file
MEMORY = 3 << 30  # bytes above those of the imports
LONGEST = 500  # characters of an error line


class Outcome(NamedTuple):
    """What became of one file: accepted | refused | traceback | out of memory | hang | killed by SIGNAL."""

    name: str
    what: str
    message: str


def opened(kind: str, number: int, folder: Path, name: str) -> None:
    """Opens the file `name` in `folder`, as a user's file of this kind would be. The entry alternates by `number`."""
    path, tiny = folder / name, folder.parent / "tiny.png"
    result = str(folder / "result")
    download = [Archive(Remote(name, ("http://127.0.0.1:9/",), None, None), "*/*.png", 2, 10 << 20, "", "")]
    match kind:
        case "weights":
            upsr(["upscale", str(tiny), "-o", result, "--model", str(path)])
        case "pickles" if name.endswith("-weights.pth") and number % 2:
            upsr(["upscale", str(tiny), "-o", result, "--model", str(path)])
        case "pickles" if name.startswith("unet-"):
            good = str(folder.parent / "good.pth")
            upsr(["import-official", "--atd", good, "--unet", str(path), "-o", result, "--category-size", "32"])
        case "pickles":
            upsr(["import-official", "--atd", str(path), "-o", result, "--category-size", "32"])
        case "states":
            shutil.rmtree(train_atd.FOLDER)
            shutil.copytree(folder.parent / "unfinished", train_atd.FOLDER)
            shutil.copy(path, STATE)
            stage.run(train_atd.main)
        case "archives":
            prepare(download, folder)
        case "images" if number % 2:
            options = {"size": 64, "step": 64, "threshold": 0, "min_gradient": 0}
            crop(folder, Path(result), **options, on_corrupt="fail")
        case "images":
            upsr(["upscale", str(path), "-o", result, "--model", str(folder.parent / "base"), "--tile", "64"])
        case "yaml":
            load_params(path)
        case "json" if name == "manifest.json":
            shutil.copy(tiny, folder)
            open_benchmark(folder, 4)
        case "json":
            shutil.rmtree(nightly.REPORTS, ignore_errors=True)
            nightly.REPORTS.mkdir(parents=True)
            shutil.copy(path, nightly.REPORTS)
            run = nightly.begin(params())
            if notes := [note for note in run.told if name in note]:
                raise nightly.DataError(notes[0])
        case "lmdb":
            store = folder / "x.lmdb"
            store.mkdir()
            path.rename(store / "data.mdb")
            reader = Reader(store)
            for i in range(len(reader)):
                reader.read(i)
            verify(store)


def placed(folder: Path, name: str, data: bytes) -> None:
    """Writes a file, or makes the FIFO, folder or link that its name says."""
    folder.mkdir()
    path = folder / name
    match path.stem:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
        case _:
            path.write_bytes(data)


def judged(call: Callable[[], None], names: tuple[str, ...]) -> tuple[str, str]:
    """(what, message) of a call. Every error must be the project's own, in short lines with one of the file's names."""
    printed = io.StringIO()
    try:
        with redirect_stderr(printed), redirect_stdout(io.StringIO()):
            call()
        return "accepted", ""
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = next(
            (f for f in reversed(frames) if f.filename.startswith((f"{ROOT}/upsr", f"{ROOT}/pipe"))), frames[-1]
        )
        text = f"{printed.getvalue()}{' '.join(str(error).split())}"  # commands print it so
        where = f"{Path(place.filename).name}:{place.lineno}"
        message = f"{type(error).__name__}: {' / '.join(text.splitlines())[:300]} ({where})"
        if isinstance(error, MemoryError) or "allocate" in str(error):
            return "out of memory", message
        ours = type(error).__module__.startswith(("upsr", "pipelines")) or (
            isinstance(error, ValueError | OSError) and frames[-1] == place
        )
        if ours and any(known in text for known in names) and all(len(line) <= LONGEST for line in text.splitlines()):
            return "refused", message
        return "traceback", message


def child(kind: str, seed: int, count: int, first: int, folder: Path) -> None:
    """Makes `count` files and opens those from number `first` on. Prints the name before and the outcome after each."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ["UPSR_DEBUG"] = "1"  # the errors as they were raised
    sys.argv = [kind]
    maker = Maker(folder, seed)
    (folder / "tiny.png").write_bytes(image(".png"))
    save_model(folder / "base", params())
    files = list(islice(getattr(maker, kind)(), count))
    used = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))
    for number, (name, data) in list(enumerate(files))[first:]:
        home = folder / f"{number:03d}"
        placed(home, name, data)
        print(f"{number:03d}/{name}", file=results, flush=True)
        signal.alarm(SECONDS)  # without a handler, it ends this process even inside of C code
        what, message = judged(partial(opened, kind, number, home, name), (name, str(home), STATE.name))
        signal.alarm(0)
        print(json.dumps((what, message)), file=results, flush=True)


def attack(kind: str, seed: int, folder: Path, cwd: Path, log: Path) -> Iterator[Outcome]:
    """Opens the files of one kind in child processes, which work in `cwd`; yields the outcome of each file."""
    count, first = COUNTS[kind], 0
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    while first < count:
        command = [sys.executable, __file__, kind, str(seed), str(count), str(first), str(folder)]
        with log.open("a") as errors:
            process = subprocess.Popen(
                command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
            )
            assert process.stdout is not None
            name = ""
            for line in process.stdout:
                if line.startswith("["):
                    yield Outcome(name, *json.loads(line))
                    name, first = "", first + 1
                else:
                    name = line.strip()
            code = process.wait()
        if first < count:
            if not name or code >= 0:
                raise RuntimeError(f"the child for {kind} ended without opening all files: see {log}")
            number = signal.Signals(-code)
            yield Outcome(name, "hang" if number == signal.SIGALRM else f"killed by {number.name}", "")
            first += 1


if __name__ == "__main__":
    kind, seed, count, first, folder = sys.argv[1:]
    child(kind, int(seed), int(count), int(first), Path(folder))
