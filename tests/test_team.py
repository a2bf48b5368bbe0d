"""A team's services, each for real on 127.0.0.1: MLflow on PostgreSQL with an artifact store, a DVC remote."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import free_port
from test_registry import painter, register
from test_tracking import wait_for

from pipelines import executor, registry
from upsr import images

pytestmark = pytest.mark.slow


def binary(name: str) -> str:
    """Debian keeps PostgreSQL's programs off the path."""
    found = shutil.which(name) or next(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), None)
    return found or pytest.skip("PostgreSQL is not installed here (Debian: apt-get install postgresql)")


@contextmanager
def postgres() -> Iterator[str]:
    """A database cluster of its own; the address of an empty database."""
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed here")
    initdb, server = binary("initdb"), binary("postgres")
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        if user:
            shutil.chown(folder, user)
        create = [initdb, "-D", f"{folder}/data", "-U", "upsr", "-A", "trust"]
        subprocess.run(create, user=user, cwd="/", check=True)
        options = ["-h", "127.0.0.1", "-p", str(port), "-k", folder]
        process = subprocess.Popen([server, "-D", f"{folder}/data", *options], user=user, cwd="/")
        try:
            wait_for(port)
            yield f"postgresql://upsr@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)  # its "fast" shutdown
            process.wait()


@contextmanager
def mlflow(folder: Path, database: str) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts")]
    calm = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen([*command, *stores], cwd=folder, env=calm, start_new_session=True)
    try:
        wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_a_team_shares_its_champion_through_mlflow_on_postgresql(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = painter(tmp_path / "weights.safetensors", 0.5)
    images.write(tmp_path / "lr.png", np.zeros((8, 8, 3), np.uint8))
    with postgres() as database, mlflow(tmp_path, database) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert register(weights, tmp_path / "lr.png") == "1"
        registry.promote("1")
        assert (tmp_path / "artifacts").is_dir(), "the artifacts went past the server's store"
        monkeypatch.setenv("HOME", str(tmp_path / "another member"))
        fetched = registry.weights_of("models:/upsr@champion")
        assert fetched.read_bytes() == weights.read_bytes() and fetched.is_relative_to(tmp_path / "another member")
        before = fetched.stat().st_mtime_ns
        assert registry.weights_of("models:/upsr/1").stat().st_mtime_ns == before, "fetched once more"
        fetched.write_bytes(b"damaged")
        assert registry.weights_of("models:/upsr@champion").read_bytes() == weights.read_bytes()


def test_a_team_shares_what_stages_made_through_a_dvc_remote(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "dvc.yaml").write_text("stages:\n  train: {cmd: cp source model, deps: [source], outs: [model]}\n")
    (first / "source").write_text("weights")
    (first / ".gitignore").write_text("/model\n")

    def run(place: Path, *commands: str) -> list[str]:
        said: list[str] = []
        for command in commands:
            words = [*executor.DVC, *command.split()[1:]] if command.startswith("dvc ") else command.split()
            executor.run(words, cwd=place, log=said.append)
        return said

    identity = "git -c user.name=t -c user.email=t@t"
    run(
        first, "git init -q", "dvc init -q", f"dvc remote add -q -d team {tmp_path / 'remote'}", "dvc repro", "dvc push"
    )
    run(first, "git add -A", f"{identity} commit -qm first", f"git clone -q {first} {second}")
    said = run(second, "dvc pull", "dvc repro")
    assert (second / "model").read_text() == "weights"
    assert any("didn't change, skipping" in line for line in said), "the second member trained again"
