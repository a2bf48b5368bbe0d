"""Training in processes of their own: killed at any moment, many at once, on many machines."""

import csv
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, merged
from test_training import Run, store  # noqa: F401 (a fixture)
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
