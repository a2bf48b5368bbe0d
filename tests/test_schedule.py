"""`atd.schedule`: ×4 from nothing, or from the body of a ×2 network that is trained first and once."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, settings

from upsr import images
from upsr.config import ConfigError, Params, parse
from upsr.data.lmdb_store import pack
from upsr.inference.upscaler import Upscaler
from upsr.pretrained import load_pretrained

STILL = 1e-30  # a rate that changes no weight


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few pictures, packed."""
    folder = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(0)
    for i in range(3):
        images.write(folder / "in" / f"{i}.png", rng.integers(0, 256, (48, 48, 3), dtype=np.uint8))
    pack(folder / "in", folder / "lmdb", "png")
    (folder / "in").rename(folder / "HR")
    return folder / "lmdb"


class Stage:
    """The stage `train_atd` at the tiny size, in a folder of its own."""

    def __init__(self, folder: Path, store: Path, schedule: str, x2: dict[str, Any], **x4: Any) -> None:
        self.folder, self.atd, self.x2 = folder, folder / "models" / "atd", folder / "models" / "atd" / "x2"
        (folder / "data").mkdir(parents=True)
        (folder / "data" / "validation").symlink_to(store.parent / "HR")
        (folder / "data" / "train.lmdb").symlink_to(store)
        self.configure(schedule, x2, **x4)

    def configure(self, schedule: str, x2: dict[str, Any], **x4: Any) -> None:
        atd = {"schedule": schedule, "lpips_weight": 0}
        values = settings(
            atd=atd,
            train_atd={"x2": {"warmup": 1, **x2}, **x4},
            train={"preview_every": 1000, "select": {"psnr": 1, "lpips": 0}},
        )
        (self.folder / "params.yaml").write_text(json.dumps(values))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        own = {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db"}
        command = [sys.executable, "-m", "pipelines.train_atd", *arguments]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, cwd=self.folder, env=os.environ | own, text=True, **streams)  # type: ignore

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Runs it to its end and returns what it printed."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == code, output
        return output

    def killed_in(self, phase: Path) -> None:
        """Runs it until the phase has saved something, and kills it there."""
        process = self.start()
        while not any(phase.glob("state-*.pt")):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        process.kill()
        process.communicate()

    def weights(self) -> dict[str, torch.Tensor]:
        return dict(load_pretrained(self.atd / "weights.safetensors").parts["atd"])


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def body(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v for k, v in weights.items() if not k.startswith("upsample.")}


@pytest.mark.slow
def test_x4_begins_with_the_body_of_x2(tmp_path: Path, store: Path):
    stage = Stage(tmp_path, store, "x2_then_x4", {"steps": 3, "lr": 1e-2}, steps=1, lr=STILL)
    stage()
    model = load_pretrained(stage.x2 / "weights.safetensors")
    assert model.scale == 2
    x2 = dict(model.parts["atd"])
    assert same(body(stage.weights()), body(x2))
    assert x2["upsample.0.weight"].shape[0] == 12
    assert Upscaler.from_pretrained(stage.atd).scale == 4
    assert Upscaler.from_pretrained(stage.x2).scale == 2
    assert [len((f / "log.csv").read_text().splitlines()) for f in (stage.x2, stage.atd)] == [3, 2]
    assert not list(stage.atd.rglob("state-*")) and not list(stage.atd.rglob("run_id"))


@pytest.mark.slow
def test_direct_x4_trains_once(tmp_path: Path, store: Path):
    stage = Stage(tmp_path, store, "direct_x4", {}, steps=1)
    stage()
    assert Upscaler.from_pretrained(stage.atd).scale == 4
    assert not stage.x2.exists()


@pytest.mark.slow
def test_a_kill_repeats_nothing_that_was_done(tmp_path: Path, store: Path):
    recipe = {"x2": {"steps": 20}, "steps": 20}
    whole, cut = (Stage(tmp_path / name, store, "x2_then_x4", **recipe) for name in ("whole", "cut"))
    assert "resuming" not in whole()
    cut.killed_in(cut.x2)
    assert not any(cut.atd.glob("state-*.pt"))
    cut.killed_in(cut.atd)
    assert (cut.x2 / "state-00000020.pt").is_file()
    output = cut()
    first, second = [line for line in output.splitlines() if line.startswith("resuming")]
    assert first == "resuming from step 20 of models/atd/x2"
    assert second.startswith("resuming from step") and second.endswith("of models/atd")
    assert same(cut.weights(), whole.weights())
    assert (cut.x2 / "log.csv").read_bytes() == (whole.x2 / "log.csv").read_bytes()


@pytest.mark.slow
def test_a_training_that_is_killed_before_it_saved_anything_goes_on_in_its_run(tmp_path: Path, store: Path):
    """Another training in the same folder has a run of its own."""
    stage = Stage(tmp_path, store, "direct_x4", {}, steps=500)
    (tmp_path / "params.yaml").write_text(
        (tmp_path / "params.yaml").read_text().replace('"save_every": 1', '"save_every": 400')
    )
    for _ in range(2):
        process = stage.start()
        while not (stage.atd / "log.csv").is_file():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        process.kill()
        process.communicate()
    assert not any(stage.atd.glob("state-*.pt"))
    stage.configure("direct_x4", {}, steps=1)
    stage()
    with sqlite3.connect(tmp_path / "mlflow.db") as runs:
        assert runs.execute("select status from runs order by start_time").fetchall() == [("KILLED",), ("FINISHED",)]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "parts"), [(2, "2 micro-batches × 2 samples"), ("auto", "1 micro-batches × 4")])
def test_a_training_goes_on_with_another_micro_batch(tmp_path: Path, store: Path, size: int | str, parts: str):
    """As docs/operations.md says of a training that ran out of memory; in the same MLflow run."""
    recipe: dict[str, Any] = {"steps": 30, "batch": 4, "micro_batch": 4}
    stage = Stage(tmp_path, store, "direct_x4", {}, **recipe)
    stage.killed_in(stage.atd)
    stage.configure("direct_x4", {}, **recipe | {"micro_batch": size})
    output = stage()
    assert "resuming from step" in output and f"batch 4 = 1 processes × {parts}" in output
    with sqlite3.connect(tmp_path / "mlflow.db") as runs:
        assert runs.execute("select status from runs").fetchall() == [("FINISHED",)]


@pytest.mark.slow
def test_another_training_is_refused_before_it_costs_anything(tmp_path: Path, store: Path):
    """Settings that changed in the second phase are refused by the first; so is a state without a first phase."""
    stage = Stage(tmp_path / "a", store, "x2_then_x4", {"steps": 1}, steps=200)
    stage.killed_in(stage.atd)
    stage.configure("x2_then_x4", {"steps": 2}, steps=200)
    assert "recipe.steps: 1 -> 2" in stage(code=2).splitlines()[-1]
    stage = Stage(tmp_path / "b", store, "direct_x4", {"steps": 1}, steps=200)
    stage.killed_in(stage.atd)
    stage.configure("x2_then_x4", {"steps": 1}, steps=1)
    assert "without a ×2 phase" in stage(code=2).splitlines()[-1]
    assert not stage.x2.exists()
    assert "resuming" not in stage("--fresh")


def test_only_x4_can_begin_with_x2():
    with pytest.raises(ConfigError, match=r"`x2_then_x4` needs scale 4, not 2: set atd\.schedule: direct_x4"):
        parse(Params, settings(scale=2, atd={"schedule": "x2_then_x4"}), "params.yaml")
    assert parse(Params, settings(scale=2), "params.yaml").scale == 2
