"""A team's services, each for real on 127.0.0.1: MLflow on PostgreSQL with an artifact store, a DVC remote."""

import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT
from drill_project import MARK
from services import PATIENCE, mlflow, no_postgres, postgres, until
from test_registry import painter, register

from pipelines import executor, registry
from upsr import images

pytestmark = pytest.mark.slow


def test_a_team_shares_its_champion_through_mlflow_on_postgresql(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = painter(tmp_path / "weights.safetensors", 0.5)
    images.write(tmp_path / "lr.png", np.zeros((8, 8, 3), np.uint8))
    if reason := no_postgres():
        pytest.skip(reason)
    with postgres(tmp_path) as database, mlflow(tmp_path, tmp_path, database.address) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
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


def of_team(pid: int, text: str = "") -> list[psutil.Process]:
    """The processes that a rehearsal started, with `text` in their command."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == str(pid) and text in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.parametrize(("moment", "code"), [("MLflow: first", 130), ("Prefect's server: first", 1)])
def test_a_rehearsal_that_is_stopped_or_loses_a_service_leaves_nothing(moment: str, code: int, tmp_path: Path) -> None:
    """It is stopped by Ctrl-C while it brings the services up. Later, its MLflow is killed."""
    if reason := no_postgres():
        pytest.skip(reason)
    command = [sys.executable, str(ROOT / "tests" / "team.py"), "--services", "--no-ray"]
    out = tmp_path / "out"
    with out.open("w") as output:
        team = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    until(lambda: moment in out.read_text() or team.poll() is not None)
    if code == 130:
        team.send_signal(signal.SIGINT)
    else:
        for process in of_team(team.pid, "mlflow server"):
            process.kill()
    assert team.wait(PATIENCE) == code, out.read_text()
    assert not of_team(team.pid)
    assert ("error: mlflow ended with exit code -9:" in out.read_text()) == (code == 1)
    (logs,) = re.findall("The logs: (.*)", out.read_text())
    assert "ready to accept connections" in Path(logs, "postgres.log").read_text()
    shutil.rmtree(Path(logs).parent)
