"""Disks and kills: a full disk is one line and the last good file stays, a kill leaves nothing for DVC to record."""

import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, settings
from safetensors.torch import save_file
from services import until
from test_training import Run, store  # noqa: F401 (a fixture)

from pipelines import evaluate
from upsr import images
from upsr.acquisition.extract import extract
from upsr.acquisition.fetch import fetch
from upsr.acquisition.metric_weights import PACKAGES, prepare
from upsr.data.lmdb_store import pack
from upsr.data.subimages import crop
from upsr.files import atomic, whole_folder
from upsr.locks import Locked
from upsr.training import state
from upsr.training.log import _append

RANDOM = np.random.default_rng(0).integers(0, 256, (400, 400, 3)).astype(np.uint8)  # half a MB: it does not compress
MIB = 2**20
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


# Full disks


def on_small_disk(disk: Path, command: str) -> subprocess.CompletedProcess[str]:
    """A shell command beside the folder `disk`, which is a disk of 2 MiB for this command."""
    disk.mkdir(parents=True)
    mount = ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o size=2m none '{disk}' && "]
    if subprocess.run([*mount[:-1], mount[-1] + "true"], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here: `unshare -rm` with `mount -t tmpfs` fails")
    return subprocess.run(
        [*mount[:-1], mount[-1] + command],
        cwd=disk.parent,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_download_refuses_a_disk_that_cannot_hold_df2k_before_it_connects(tmp_path: Path):
    df2k = {"source": "df2k", "holdout": ["0801"], "validation": ["0805", "0809"]}
    (tmp_path / "params.yaml").write_text(json.dumps(settings(data=df2k, crop={"size": 480, "step": 240})))
    done = on_small_disk(tmp_path / "data", f"{sys.executable} -m pipelines.download; find data; upsr doctor")
    assert done.stderr.splitlines()[0].startswith(
        "error: data: 171.1 GB are needed (download 44.5, crop 63.3, pack 63.3) and 0.0 GB are free: "
    )
    assert done.stdout.startswith("data\n")
    assert "--  0.0 GB of disk space free, download, crop and pack need 171.1 GB" in done.stdout


def archive() -> None:
    with tarfile.open("../archive.tar", "w") as file:
        for name in "abc":
            data = images.encode_png(RANDOM)
            info = tarfile.TarInfo(f"{name}.png")
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def torch_state(path: Path) -> None:
    state.save_state(path, {"network": torch.randn(MIB)})


def weights_file(path: Path) -> None:
    with atomic(path, durable=True) as temporary:
        save_file({"weight": torch.randn(MIB)}, temporary)


def store_of_images(path: Path) -> None:
    pack(Path("../in"), path, "png")


def sub_images(path: Path) -> None:
    crop(Path("../in"), path, size=200, step=200, threshold=0, min_gradient=0, on_corrupt="fail")


def unpacked(path: Path) -> None:
    extract(Path("../archive.tar"), path, wanted="*.png", count=3, limit=10 * MIB)


def image(path: Path) -> None:
    images.write(path, RANDOM)


def table(path: Path) -> None:
    evaluate._write_table(path, pd.DataFrame({"value": np.random.rand(50_000)}).to_dict("records"))


def log_row(path: Path) -> None:
    for step in range(100_000):
        _append(path, step, {"loss": 0.5})


WRITERS: dict[str, Callable[[Path], None]] = {
    "state-1.pt": torch_state,
    "weights.safetensors": weights_file,
    "train.lmdb": store_of_images,
    "subimages": sub_images,
    "unpacked": unpacked,
    "image.png": image,
    "per_image.csv": table,
    "log.csv": log_row,
}


def contents(path: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in [path, *path.rglob("*")] if p.is_file()}


def fill() -> None:
    """Calls every writer in the working directory, a disk of 2 MiB, when most of it is used; prints what happened."""
    archive()
    for i in range(6):
        images.write(Path(f"../in/{i}.png"), RANDOM)
    for name, write in WRITERS.items():
        path = Path(name)
        if path.suffix in ("", ".lmdb"):
            path.mkdir()
        good = path / "good" if path.is_dir() else path
        good.write_bytes(b"")
        before = contents(path)
        filler = Path("filler")
        filler.write_bytes(bytes(2 * MIB - 400_000))
        try:
            write(path)
            said = "written"
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        filler.unlink()
        print(
            json.dumps([name, said, name == "log.csv" or contents(path) == before, [p.name for p in Path().glob(".*")]])
        )
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """Writer -> what it raised, whether the last good file stayed, what else is left; on a real full disk."""
    folder = tmp_path_factory.mktemp("full")
    done = on_small_disk(folder / "disk", f"cd disk && exec {sys.executable} -c 'import test_disk; test_disk.fill()'")
    assert done.returncode == 0, done.stderr
    return {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_and_the_last_good_file_stays(outcomes: dict[str, list], name: str):
    said, stayed, left = outcomes[name]
    assert said == f"DataError: {name}: the disk is full: free some disk space and run again"
    assert stayed and left == []


def test_a_row_that_a_full_disk_cut_is_dropped_when_the_training_resumes(store: Path, tmp_path: Path):  # noqa: F811
    run = Run(store, tmp_path, train={"log_every": 1, "validate_every": 11}, train_atd={"steps": 11})
    run()
    log = tmp_path / "log.csv"
    header, *rows = log.read_bytes().splitlines(keepends=True)
    for cut, kept in (([header, *rows[:-1], b"1"], rows), ([header[:20]], rows[-1:]), ([], rows[-1:])):
        (tmp_path / "state-00000011.pt").unlink()
        log.write_bytes(b"".join(cut))
        run()
        assert log.read_bytes() == b"".join([header, *kept])


# A training in a process of its own


@pytest.fixture
def project(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A folder in which the stage `train_atd` trains without end."""
    values = settings(
        data={"validation": ["a"]},
        train={"select": {"psnr": 1, "lpips": 0}, "validate_pictures": 1, "workers": 1, "save_every": 1},
        train_atd={"steps": 100_000},
        atd={"lpips_weight": 0, "schedule": "direct_x4"},
    )
    (tmp_path / "params.yaml").write_text(json.dumps(values))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.lmdb").symlink_to(store)
    images.write(tmp_path / "data/validation/a.png", RANDOM[:64, :64])
    return tmp_path


TRAIN = [sys.executable, "-m", "pipelines.train_atd"]


@pytest.mark.slow
def test_a_training_on_a_full_disk_ends_in_one_line(project: Path):
    done = on_small_disk(project / "models", f"exec {' '.join(TRAIN)}")
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: models/atd/") and last.endswith(
        "the disk is full: free some disk space and run again"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_second_training_in_a_folder_is_refused_and_a_killed_one_does_not_block_it(project: Path):
    folder = project / "models/atd"
    with (project / "out").open("w") as out:
        first = subprocess.Popen(TRAIN, cwd=project, env=ENVIRONMENT, stdout=out, stderr=out)
        try:
            until(lambda: first.poll() is not None or any(folder.glob("state-*.pt")))
            assert first.poll() is None, (project / "out").read_text()
            run_id, _ = (folder / "run_id").read_text().split()
            for option in ([], ["--fresh"]):
                second = subprocess.run([*TRAIN, *option], cwd=project, env=ENVIRONMENT, capture_output=True, text=True)
                assert second.returncode == 2
                assert "error: models/atd: another process is at work here" in second.stderr.splitlines()[-1]
            assert first.poll() is None
            with sqlite3.connect(project / "mlflow.db") as runs:
                assert runs.execute("SELECT run_uuid, status FROM runs").fetchall() == [(run_id, "RUNNING")]
        finally:
            first.kill()
            first.wait()
    with state.alone(folder):  # at once, although the killed training's data worker lives for some seconds
        assert [p.name for p in folder.rglob(".upsr-*")] == []


def test_a_folder_is_locked_by_the_main_process_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with state.alone(tmp_path):
        with pytest.raises(Locked, match="another process is at work here"), state.alone(tmp_path):
            pass
        monkeypatch.setenv("RANK", "1")
        with state.alone(tmp_path):
            pass
    monkeypatch.delenv("RANK")
    with state.alone(tmp_path):
        assert list(tmp_path.iterdir()) == []


# Kills

KILL = """
import itertools, os, sys
count = itertools.count()
def kill(event, arguments):
    if event.startswith(("os.", "shutil.")) and next(count) == int(sys.argv[1]):
        os.kill(os.getpid(), 9)
from pathlib import Path
from upsr.files import atomic, whole_folder
sys.addaudithook(kill)
"""
FOLDER = "with whole_folder(Path('x')) as new: (new / 'a').write_text('new'); (new / 'b').write_text('new')"
FILE = "with atomic('out/sub/x.png') as path: path.write_text('new'); os.listdir('.')"


def killed(code: str, when: int, folder: Path) -> bool:
    """Runs code and kills it before the call number `when` that changes files. False where it ended before that."""
    done = subprocess.run([sys.executable, "-c", KILL + code, str(when)], cwd=folder, env=ENVIRONMENT)
    assert done.returncode in (0, -signal.SIGKILL)
    return done.returncode != 0


@pytest.mark.parametrize("fails", [False, True])
def test_a_folder_is_whole_after_a_kill_at_any_moment(tmp_path: Path, fails: bool):
    """The next run ends with the new folder and nothing else, and if it fails, an old or new one is still there."""
    when = 0
    while True:
        place = tmp_path / str(when)
        (place / "x").mkdir(parents=True)
        for name in "ab":
            (place / "x" / name).write_text("old")
        if not killed(FOLDER, when, place):
            break
        with suppress(KeyError), whole_folder(place / "x") as new:
            if fails:
                raise KeyError
            for name in "ab":
                (new / name).write_text("next")
        assert [p.name for p in place.iterdir()] == ["x"]
        texts = {p.name: p.read_text() for p in (place / "x").iterdir()}
        assert texts in [dict.fromkeys("ab", text) for text in (("old", "new") if fails else ("next",))]
        when += 1
    assert when > 5


def clean_training(folder: Path) -> None:
    with state.alone(folder):
        pass


def clean_download(folder: Path) -> None:
    images.write(folder.parent / "in/a.png", RANDOM[:64, :64])
    fetch("folder", folder.parent / "in", {"train": folder}, reserved={}, max_side=8, scale=4, on_corrupt="fail")


def clean_metric_weights(folder: Path) -> None:
    for file in (file for package in PACKAGES for metric in package.metrics for file in metric.files):
        (folder / "hub" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "hub" / file).touch()
    prepare(folder)


@pytest.mark.parametrize("clean", [clean_training, clean_download, clean_metric_weights])
def test_what_a_kill_left_is_removed_when_the_stage_starts_again(tmp_path: Path, clean: Callable[[Path], None]):
    when = left = 0
    while killed(FILE, when, tmp_path):
        left += len(list(tmp_path.glob("out/sub/.*")))
        if (tmp_path / "out").is_dir():
            clean(tmp_path / "out")
        assert [p for p in (tmp_path / "out").rglob("*") if p.name.startswith(".")] == []
        when += 1
    assert left and (tmp_path / "out/sub/x.png").read_text() == "new"
