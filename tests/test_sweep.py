"""Sweeps: combinations as DVC experiments, side by side, and only those that are not done yet."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, params, processes_that_mention, settings
from services import PATIENCE, until
from test_compare import record

from pipelines import executor, flows, sweep

CROSS = {"uncertainty.variant": ["isotropic", "residual"], "unet.dim": [16, 32]}
NAMES = [f"variant-{variant}-dim-{dim}" for variant in ("isotropic", "residual") for dim in (16, 32)]


def crossed(cross: dict[str, list]) -> dict:
    return settings() | {"sweep": {"cross": cross}}


def test_every_combination_is_an_experiment() -> None:
    planned = sweep.experiments(CROSS)
    assert list(planned) == NAMES
    assert planned["variant-residual-dim-16"] == {"uncertainty.variant": "residual", "unet.dim": 16}
    assert len(sweep.experiments(params().sweep.cross)) == 16
    assert list(sweep.experiments({"train.init": ["models/a"]})) == ["init-models-a"]  # a git ref and a folder


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with the settings of a sweep."""
    monkeypatch.chdir(tmp_path)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "t")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "t@t")
    (tmp_path / "params.yaml").write_text(json.dumps(crossed(CROSS)))
    subprocess.run(["git", "init", "-q"], check=True)
    commit()
    return tmp_path


def commit() -> None:
    subprocess.run(["git", "add", "-A"], check=True)
    subprocess.run(["git", "commit", "-qm", "x", "--allow-empty"], check=True)


def test_what_no_stage_makes_is_linked_and_nothing_else(repository: Path) -> None:
    stages = "stages: {a: {cmd: x, outs: [data/hr, data/benchmarks/holdout, {data/weights: {persist: true}}]}}"
    (repository / "dvc.yaml").write_text(stages)
    for name in ("hr", "weights", "archives", "benchmarks/holdout", "benchmarks/Set5"):
        (repository / "data" / name).mkdir(parents=True)
    linked = sweep._untracked(settings(data={"folder": "photos"}))
    assert {str(path) for path in linked} == {"data/archives", "data/benchmarks/Set5", "photos"}


@pytest.mark.slow
def test_a_worktree_differs_in_the_values_of_its_experiment_alone(repository: Path) -> None:
    shutil.copy(ROOT / "params.yaml", repository)
    (repository / "dvc.yaml").write_text("stages: {a: {cmd: x}}")
    subprocess.run([*executor.DVC, "init", "-q"], check=True)
    commit()
    worktree = sweep._worktree("a")
    sweep._prepare(worktree, {"unet.dim": 32, "train.init": "none"})
    shown = subprocess.check_output(["git", "diff", "-U0"], cwd=worktree, text=True).splitlines()
    changed = [line for line in shown[4:] if line[0] in "+-"]
    assert changed == ["-  dim: 48", "+  dim: 32", "-  init: starter", "+  init: none"]


def test_what_no_run_could_have_is_refused_before_any_work(repository: Path) -> None:
    def plan(cross: dict[str, list]) -> list[str]:
        (repository / "params.yaml").write_text(json.dumps(crossed(cross)))
        commit()
        return sweep.remaining(sweep.load_params())

    assert plan(CROSS) == NAMES
    with pytest.raises(ValueError, match=r"sweep.cross: dim-17: unet.dim 17 is not a multiple of 16"):
        plan({"unet.dim": [16, 17]})
    with pytest.raises(ValueError, match=r"unknown key `unet.width`"):
        plan({"unet.width": [16]})
    (repository / "params.yaml").write_text(json.dumps(crossed(CROSS), indent=1))
    with pytest.raises(ValueError, match=r"uncommitted changes in params.yaml: commit"):
        sweep.remaining(sweep.load_params())


TRAIN = """
import json, os, pathlib, sys, time, yaml
place, log = {place!r}, {log!r}
params = yaml.safe_load(open("params.yaml"))
name = f"{{params['uncertainty']['variant']}}-{{params['unet']['dim']}}"
state = pathlib.Path("models/unet/state")
state.parent.mkdir(parents=True, exist_ok=True)
did = "resumed" if state.exists() else "started"
state.touch()
with open(log, "a") as file: print(did, name, os.environ["CUDA_VISIBLE_DEVICES"], file=file)
while params["unet"]["dim"] == 32 and not pathlib.Path(place, "go").exists(): time.sleep(0.1)
state.unlink()
pathlib.Path("models/unet/weights").write_text(name)
os.makedirs("reports/evaluate")
pathlib.Path("reports/evaluate/metrics.json").write_text(json.dumps({{"Set5/psnr": 30.5}}))
"""
STAGES = """
stages:
  train_atd: {{cmd: 'echo atd >> {log}; cp source g', deps: [source], params: [atd], outs: [g: {{persist: true}}]}}
  train_unet:
    cmd: python train.py
    deps: [g, train.py]
    params: [unet, uncertainty]
    outs: [models/unet: {{persist: true}}]
    metrics: [reports/evaluate/metrics.json]
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)  # some forty commands of DVC
def test_a_sweep_that_was_stopped_finishes_only_the_rest(
    repository: Path, server: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    log = outside / "log"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{outside}/mlflow.db")
    subprocess.run([*executor.DVC, "init", "-q"], check=True)
    subprocess.run([*executor.DVC, "config", "cache.type", "reflink,hardlink,symlink,copy"], check=True)
    cross = {"uncertainty.variant": ["residual"], "unet.dim": [16, 32]}
    values = crossed(cross) | {"jobs": {"devices": ["3", "5"], "cluster": None}}
    (repository / "params.yaml").write_text(json.dumps(values))
    (repository / "source").write_text("80 GB")
    (repository / "train.py").write_text(TRAIN.format(place=str(outside), log=str(log)))
    (repository / "dvc.yaml").write_text(STAGES.format(log=log))
    (repository / ".gitignore").write_text("/g\n/models\n/reports\n")
    commit()

    def start() -> subprocess.Popen[bytes]:
        code = f"from pipelines.flows import sweep; sweep(root={str(repository)!r})"
        return subprocess.Popen([sys.executable, "-c", code], env=os.environ | server | {"PYTHONPATH": str(ROOT)})

    def lines() -> list[str]:
        return sorted(log.read_text().splitlines()) if log.exists() else []

    flow = start()
    until(lambda: len(lines()) == 3 and saved() and len(worktrees(repository)) == 1)
    cached = {path.stat().st_ino for path in (repository / ".dvc" / "cache").rglob("*") if path.is_file()}
    (worktree,) = worktrees(repository)
    assert worktree.name == "variant-residual-dim-32"
    assert (worktree / "g").stat().st_ino in cached, "the data were copied"
    flow.send_signal(signal.SIGTERM)
    assert flow.wait(PATIENCE) != 0
    assert not processes_that_mention(str(repository))

    (outside / "go").touch()
    record("residual", 0, psnr=20.0, lpips=0.5)
    record("dynamic", 0, psnr=21.5, lpips=0.4)
    assert start().wait(2 * PATIENCE) == 0
    did = [line.rpartition(" ") for line in lines()]
    assert [what for what, *_ in did[1:]] == ["resumed residual-32", "started residual-16", "started residual-32"]
    assert lines()[0] == "atd" and {gpu for *_, gpu in did[1:]} == {"3", "5"}
    assert not worktrees(repository) and len(saved()) == 2

    table = subprocess.check_output([*executor.DVC, "exp", "show", "--json"], text=True)
    assert all(f"variant-residual-dim-{dim}" in table for dim in (16, 32)) and "30.5" in table
    from mlflow import MlflowClient

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    runs = client.search_runs([client.get_experiment_by_name("sweep").experiment_id])
    children = [run for run in runs if run.info.run_name in NAMES]
    (parent,) = (run for run in runs if run not in children)
    assert len(children) == 2 and parent.info.status == "FINISHED"
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children)
    assert all(run.data.metrics == {"Set5/psnr": 30.5} for run in children)
    plots = {Path(file.path).name for file in client.list_artifacts(parent.info.run_id, "compare")}
    assert plots == {"compare.html", "variants.md", "variants.png", "variants-forest.png"}


@pytest.mark.slow
def test_a_sweeps_run_is_named_by_its_first_experiment(
    repository: Path, api, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Here it fails, since this is no project of DVC."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")
    cross = {"uncertainty.variant": ["residual"], "unet.dim": [16, 32], "seed": [0]}
    (repository / "params.yaml").write_text(json.dumps(crossed(cross)))
    commit()
    with pytest.raises(executor.JobsFailed):
        flows.sweep(root=str(repository))
    name = "sweep residual-16-0 and 1 more"
    assert {name, f"experiments of {name}"} <= {run.name for run in api.read_flow_runs()}


def worktrees(repository: Path) -> list[Path]:
    return list(repository.glob(".dvc/tmp/sweep/*/variant-*"))


def saved() -> list[str]:
    found = subprocess.check_output(["git", "for-each-ref", "--format=%(refname)", "refs/exps"], text=True).split()
    return [ref for ref in found if ref.rpartition("/")[2] in NAMES]
