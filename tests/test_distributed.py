"""Training in processes of their own: killed at any moment, many at once, on many machines."""

import csv
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ROOT, documented, merged, settings
from services import PATIENCE, until
from test_training import Run, store  # noqa: F401 (a fixture)
from tiny_project import ENVIRONMENT, Project
from torch import nn

pytestmark = pytest.mark.slow
CHANGES = {
    "train_atd": {"batch": 4, "micro_batch": 2, "steps": 6},
    "train": {"log_every": 1, "save_every": 2, "validate_every": 3},
}
WORKER = ROOT / "tests" / "train_worker.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def start(*command: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(part) for part in command],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"} | environment,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def finish(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output


def job(store: Path, folder: Path, changes: dict = CHANGES) -> list[object]:  # noqa: F811
    return [WORKER, store, folder, json.dumps(changes)]


def losses(folder: Path) -> list[float]:
    with (folder / "log.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def final(folder: Path) -> dict:
    return torch.load(max(folder.glob("state-*.pt")), weights_only=True)


def alone(store: Path, folder: Path, changes: dict) -> None:  # noqa: F811
    """The training in this process, never interrupted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    Run(store, folder, **changes)()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def once(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("once")
    alone(store, folder, CHANGES)
    return folder


def test_kills_at_random_moments_leave_no_trace(store: Path, tmp_path: Path):  # noqa: F811
    """SIGKILL from outside, after a random row and then a random moment; the last start goes to the end."""
    changes = merged(CHANGES, {"train_atd": {"steps": 40}, "train": {"log_every": 2, "save_every": 3}})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    alone(store, whole, changes)
    for _ in range(3):
        process = start(sys.executable, *job(store, cut, changes))
        assert process.stdout is not None
        for _ in range(random.randint(1, 5)):
            process.stdout.readline()  # one when it resumes, one for each row of the log
        time.sleep(random.random() * 0.2)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finish(start(sys.executable, *job(store, cut, changes)))
    for name in ("log.csv", "checkpoints.csv", "weights.safetensors", "weights_raw.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert equal(final(cut), final(whole))


def equal(a: object, b: object) -> bool:
    """Of two states: networks, average, optimizer, pool, counts, table."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_a_killed_worker_restarts_and_two_processes_train_as_one(store: Path, once: Path, tmp_path: Path):  # noqa: F811
    command = [*TORCHRUN, "--nproc_per_node", 2, "--max-restarts", 1, "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0"]
    process = start(*command, *job(store, tmp_path), UPSR_TEST_DIE="1 3", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert output.count("resuming from step 2") == 1
    assert losses(tmp_path) == pytest.approx(losses(once), abs=1e-5)
    assert_a_single_process_goes_on_from_here(store, once, tmp_path)


def assert_a_single_process_goes_on_from_here(store: Path, once: Path, folder: Path) -> None:  # noqa: F811
    (folder / "state-00000006.pt").unlink()
    network: nn.Module = Run(store, folder, **CHANGES)()
    expected = final(once)["ema"]
    assert all(torch.allclose(value, expected[key], atol=1e-5) for key, value in network.state_dict().items())


def test_two_machines_train_as_one(store: Path, once: Path, tmp_path: Path):  # noqa: F811
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*TORCHRUN, "--nnodes", 2, "--nproc_per_node", 1, "--rdzv-id", "test", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", f"127.0.0.1:{port}", *job(store, tmp_path)]
    finish(start(*command), start(*command))
    assert losses(tmp_path) == pytest.approx(losses(once), abs=1e-5)
    assert [p.name for p in sorted(tmp_path.glob("*.safetensors"))] == [
        "weights.safetensors",
        "weights_raw.safetensors",
    ]


# Stages on several devices: CUDA_VISIBLE_DEVICES names them; on a machine without a GPU, each is a process on the CPU.


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Project:
    """With its data; ATD has a ×2 phase, and both trainings the paper's batch."""
    batch = {"batch": 32, "micro_batch": "auto", "steps": 2}
    x2 = {"x2": {"steps": 2}}
    values = settings(atd={"schedule": "x2_then_x4"}, train_atd=batch | x2, train_unet=batch, crop={"size": 64})
    made = Project(tmp_path_factory.mktemp("devices"), weights, values)
    made("dvc", "repro", "pack")
    return made


def test_the_documented_commands_train_the_papers_batch_in_eight_processes(project: Project):
    commands = documented("torchrun --nproc_per_node 8")
    assert len(commands) == 2
    for command, starts in zip(commands, (2, 1), strict=True):
        output = project("bash", "-c", f"export OMP_NUM_THREADS=1; {command}")
        assert output.count("batch 32 = 8 processes × 1 micro-batches × 4 samples") == starts
    assert "up to date" in project("dvc", "status", "train_atd", "train_unet")


def test_the_documented_command_of_many_machines_trains_the_stage(project: Project):
    (text,) = re.findall(r"^TORCH_DISABLE.*\\\n.*$", (ROOT / "docs/operations.md").read_text(), re.M)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        here = f"127.0.0.1:{free.getsockname()[1]}"
    text = text.replace("FIRST_MACHINE:29400", here).replace("--nproc_per_node 8", "--nproc_per_node 1")
    both = [project.start("bash", "-c", f"export OMP_NUM_THREADS=1; {text}") for _ in range(2)]
    output = "".join(process.communicate(timeout=400)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0], output
    assert output.count("batch 32 = 2 processes × 1 micro-batches × 16 samples") == 1


def stage(project: Project, name: str, steps: int, devices: str = "0,1") -> subprocess.Popen[str]:
    """A training of many steps in several processes, after its first row."""
    train = {"save_every": 1000, "log_every": 1, "validate_every": 1000, "preview_every": 1000}
    recipe = {"steps": steps, "batch": 2, "micro_batch": "auto"}
    project.set(settings(train_atd=recipe, crop={"size": 64}, train=train))
    environment = {"CUDA_VISIBLE_DEVICES": devices, "PYTHONPATH": str(project.root), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", f"pipelines.{name}"], cwd=project.root, env=ENVIRONMENT | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """What a process printed up to a line with `text`."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(seen)


def test_repro_trains_on_every_device_of_its_job_and_one_process_speaks(project: Project):
    project.set(settings(train_atd={"batch": 4, "micro_batch": "auto"}, crop={"size": 64}))
    output = project("env", "CUDA_VISIBLE_DEVICES=0,1,2", "dvc", "repro", "train_atd")
    assert "train_atd: uses 2 of 3 devices: batch 4 has no 3 equal shares" in output
    assert output.count("batch 4 = 2 processes × 1 micro-batches × 2 samples") == 1
    assert output.count("step 4/4  loss") == 1
    assert "up to date" in project("dvc", "status", "train_atd")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_in_all_processes_and_ends_the_stage_as_one(project: Project, number: int):
    """Ctrl-C reaches the whole group of a terminal; `kill` the stage alone."""
    process = stage(project, "train_atd", steps=500)
    seen = wait_for(process, "step 2/500")
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    rest = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 128 + number, seen + rest
    assert "Traceback" not in rest
    assert len(list((project.root / "models/atd").glob("state-*.pt"))) == 1
    until(lambda: not group(process))
    refused = stage(project, "train_atd", steps=501)
    output = refused.communicate(timeout=PATIENCE)[0]
    assert refused.returncode == 2
    assert output.count("recipe.steps: 500 -> 501") == output.count("error: ") == 1, output
    for state in (project.root / "models/atd").glob("state-*.pt"):
        state.unlink()


def group(process: subprocess.Popen[str]) -> list[int]:
    """The living processes of its group."""
    found = []
    for p in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):  # ended meanwhile
            if p.pid != process.pid and p.status() != psutil.STATUS_ZOMBIE and os.getpgid(p.pid) == process.pid:
                found.append(p.pid)
    return found


def test_a_killed_process_ends_the_others_and_is_named(project: Project):
    process = stage(project, "train_atd", steps=500)
    wait_for(process, "step 2/500")
    workers = [p for p in psutil.Process(process.pid).children() if "spawn_main" in " ".join(p.cmdline())]
    assert len(workers) == 2
    max(workers, key=lambda p: (p.create_time(), p.pid)).kill()
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 128 + signal.SIGKILL, output
    assert "error: process 1 ended with SIGKILL: run again to resume" in output.splitlines(), output
    until(lambda: not group(process))


def test_processes_end_with_a_killed_stage(project: Project):
    process = stage(project, "train_atd", steps=500)
    wait_for(process, "step 2/500")
    process.kill()
    process.communicate(timeout=PATIENCE)
    until(lambda: not group(process))


def test_compiled_half_precision_in_two_processes(store: Path, tmp_path: Path):  # noqa: F811
    """The settings of the paper's scale together; torch.compile sees DDP's hooks and autocast."""
    plain = CHANGES | {"atd": {"layers": 1}, "train_atd": {"batch": 4, "micro_batch": "auto", "steps": 2}}
    paper = plain | {"train": CHANGES["train"] | {"compile": True, "precision": "bf16", "channels_last": True}}
    command = [*TORCHRUN, "--standalone", "--nproc_per_node", 2, *job(store, tmp_path, paper)]
    finish(start(*command))
    alone(store, tmp_path / "plain", plain)
    assert losses(tmp_path) == pytest.approx(losses(tmp_path / "plain"), rel=0.02)
