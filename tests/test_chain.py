"""The whole chain by DVC, at a tiny scale, in a clone of the project: what a newcomer and a daily user see."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest
from conftest import documented, settings
from skimage import data
from tiny_project import Project

from upsr.images import read, write
from upsr.pretrained import load_pretrained

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Project:
    made = Project(tmp_path_factory.mktemp("chain") / "my project", weights)
    made("dvc", "repro")
    made("git", "add", "-A")
    made("git", "commit", "-q", "-m", "results")
    return made


def read_means(project: Project) -> dict[str, dict[str, float]]:
    """Model -> metric -> mean over the benchmark `holdout`."""
    rows = pd.read_csv(project.root / "reports" / "evaluate" / "summary.csv")
    return {model: dict(zip(of.metric, of["mean"], strict=True)) for model, of in rows.groupby("model")}


def test_the_chain_leaves_what_it_promises(project: Project):
    means = read_means(project)
    headline = project.json("reports/evaluate/metrics.json")
    assert headline == {f"holdout/{name}": means["upsr"][name] for name in ("psnr", "ssim", "lpips")}
    assert set(means) == {"bicubic", "atd", "upsr"}
    assert all({"psnr", "ssim", "lpips", "seconds"} <= set(values) for values in means.values())
    for network in ("atd", "unet"):
        model = load_pretrained(project.root / "models" / network / "weights.safetensors")
        assert model.settings[network]["dim"] == 16
        assert network in model.parts
        assert not list((project.root / "models" / network).glob("state-*"))
    page = (project.root / "reports" / "index.html").read_text()
    assert f"{means['upsr']['psnr']:.2f}" in page


def test_mlflow_agrees_with_the_metrics_and_knows_where_they_came_from(project: Project):
    means = read_means(project)
    measured = "select tags.value, metrics.value from tags join latest_metrics as metrics using (run_uuid)"
    for name in ("holdout/psnr", "PSNR"):
        found = dict(project.mlflow(f"{measured} where tags.key = 'model' and metrics.key = '{name}'"))
        assert found == pytest.approx({model: figures["psnr"] for model, figures in means.items()}, abs=1e-4)
    parents = project.mlflow("select distinct value from tags where key = 'mlflow.parentRunId'")
    assert parents == project.mlflow("select run_uuid from runs where name = 'residual-16' and experiment_id = 3")
    page = f"/#/experiments/3/runs/{parents[0][0]}?workflowType=machine_learning"
    facts = project.json("reports/evaluate/run.json")
    assert facts["mlflow_run"].endswith(page) and datetime.fromisoformat(facts["date"]).tzinfo
    assert list((project.root / "mlartifacts").rglob("maps/holdout/*/weight.png")), "no maps beside the figures"
    views = "experiments join experiment_tags using (experiment_id) where key = 'mlflow.sharedViewState.models'"
    experiments = {name for (name,) in project.mlflow(f"select name from {views}")}
    assert experiments == {"train-atd", "train-unet", "evaluate"}
    commit = project("git", "rev-parse", "HEAD~1").strip()
    tags = project.mlflow("select value from tags where key = 'git.commit'")
    assert [value for (value,) in tags] == [commit] * 6  # two trainings, an evaluation, three models
    assert len(project.mlflow("select value from params where key = 'unet.dim' and value = '16'")) == 3
    assert {status for (status,) in project.mlflow("select status from runs")} == {"FINISHED"}
    assert project.mlflow("select count(*) from metrics where key = 'loss'")[0][0] == 4  # a row per two steps


def test_the_table_of_runs_and_the_model_say_at_first_sight_what_was_measured(project: Project):
    def tags(name: str) -> dict[str, str]:
        columns = "'model', 'variant', 'width', 'steps', 'seed', 'mlflow.source.name'"
        of = f"select key, value from tags join runs using (run_uuid) where name = '{name}' and key in ({columns})"
        return {key: Path(value).name for key, value in project.mlflow(of)}

    source, atd = {"mlflow.source.name": "evaluate.py"}, {"width": "16", "steps": "4", "seed": "0"}
    assert tags("bicubic") == source | {"model": "bicubic"}
    assert tags("atd-16") == source | atd | {"model": "atd"}
    assert tags("upsr-residual-16") == source | atd | {"model": "upsr", "variant": "residual"}
    digest = project.json("reports/evaluate/run.json")["digests"]["holdout"]
    inputs = "inputs join datasets on source_id = dataset_uuid group by name, digest order by name"
    data = project.mlflow(f"select datasets.name, digest, count(*) from {inputs.replace('name', 'datasets.name')}")
    assert data[0] == ("holdout", digest[:36], 4) and data[1][0] == "train.lmdb" and data[1][2] == 2
    ((page,),) = project.mlflow("select description from model_versions")
    psnr = read_means(project)["upsr"]["psnr"]
    assert f"| holdout | upsr | {psnr:.4f} |" in page
    assert page.count("![sheets/holdout/") == 4


def test_a_second_repro_finds_nothing_to_do(project: Project):
    start = time.monotonic()
    assert "Data and pipelines are up to date" in project("dvc", "repro")
    assert time.monotonic() - start < 30


def test_the_trained_weights_upscale_a_picture_of_any_size(project: Project):
    source = read(project.root / "data" / "benchmarks" / "holdout" / "HR" / "coffee.png")[:21, :33]
    write(project.root / "odd.png", source)
    project(sys.executable, "-m", "upsr", "upscale", "odd.png", "-o", "out.png")
    assert read(project.root / "out.png").shape == (84, 132, 3)
    (project.root / "odd.png").unlink()


@pytest.mark.parametrize(
    ("place", "changes"),
    [([], ["unet.dim=32"]), (["--temp"], ["unet.dim=32", "uncertainty.variant=dynamic", "unet.branches=2"])],
)
def test_an_experiment_trains_the_unet_alone_and_stands_beside_the_first(
    project: Project, place: list[str], changes: list[str]
):
    name = f"wide{len(place)}"
    values = [argument for change in (*changes, f"seed={len(place)}") for argument in ("-S", change)]
    output = project("dvc", "exp", "run", *place, "-n", name, *values)
    if not place:
        assert "Stage 'train_atd' didn't change, skipping" in output
    shown = project(sys.executable, "-m", "pipelines.experiments")
    (line,) = (line for line in shown.splitlines() if line.startswith(f"{name}: "))
    assert "unet.dim=32" in line
    assert len(project.mlflow(f"select * from tags where key = 'dvc.experiment' and value = '{name}'")) >= 2
    dims = {value for (value,) in project.mlflow("select value from params where key = 'unet.dim'")}
    assert dims == {"16", "32"}
    artifacts = {uri for (uri,) in project.mlflow("select artifact_uri from runs")}
    assert all(uri.startswith((project.root / "mlartifacts").as_uri()) for uri in artifacts)
    project("git", "checkout", "-q", "--", ".")
    project("dvc", "checkout", "-q")


def test_the_documented_commands_of_a_day_work(project: Project):
    """Those that no other test runs: a student in one step, comparisons in DVC, and the short forms by make."""
    for line in documented("cp models/unet", "dvc exp run -n one-step"):
        project("bash", "-c", line)
    shown = project("make", "--old-file=.venv/ready", "experiments")
    assert "one-step: diffusion.steps=1, train_unet.teacher=teacher.safetensors" in " ".join(shown.split())
    log = pd.read_csv(project.root / "models" / "unet" / "log.csv")
    assert (log["distilled"] >= 0).all()
    of_work_tree, of_experiment = documented("dvc metrics diff")
    for line in (of_work_tree, of_experiment.replace("wide", "one-step")):
        assert "holdout/lpips" in project("bash", "-c", line)
    project("bash", "-c", documented("dvc plots diff")[0].replace("wide", "one-step"))
    assert "one-step" in (project.root / "dvc_plots" / "index.html").read_text()
    project("git", "checkout", "-q", "--", ".")
    project("dvc", "checkout", "-q")
    for stage in ("download", "evaluate"):
        assert f"Running stage '{stage}'" in project("bash", "-c", f"dvc repro -f -s {stage}")
    assert "Completed" in project("make", "--old-file=.venv/ready", "flow")
    project("upsr", "compare")
    assert "residual" in (project.root / "reports" / "compare.html").read_text()
    project("git", "checkout", "-q", "--", ".")


def test_the_documented_evaluations_work(project: Project):
    for name in ("img_001", "img_002"):  # NIQE has no value for the small holdout
        write(project.root / "hr" / f"{name}.png", data.astronaut()[:256, :256])
    write(project.root / "photo.jpg", data.astronaut()[:24, :32])
    project("upsr", "degrade", "hr", "-o", "DIR", "--benchmark")
    served = documented("export MLFLOW_TRACKING_URI=sqlite", "python -c 'from pipelines", "upsr upscale photo")
    assert len(served) == 3
    project("bash", "-c", " && ".join(served))
    assert read(project.root / "large.png").shape == (96, 128, 3)
    of_champion, of_bundled, of_others = documented("upsr evaluate")
    assert "niqe" in project("bash", "-c", of_champion)
    assert len(project.json("out.json")["rows"]) == 2
    of_others = of_others.replace("folder:real-esrgan/Set5", "folder:DIR/HR")
    for line in (of_bundled, of_others):
        assert "psnr" in project("bash", "-c", line.replace("data/benchmarks/Set5", "DIR"))


def test_the_papers_scale_is_merged_planned_and_undone(project: Project):
    merged, planned = documented("upsr scale df2k", "upsr doctor --plan")
    assert "unet.dim: 16 -> 160" in project("bash", "-c", merged)
    assert "train_unet" in project("bash", "-c", planned)
    project("bash", "-c", "git checkout params.yaml")
    assert not project("git", "status", "--porcelain", "params.yaml")


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_training_that_was_killed_half_way_resumes_and_ends_alike(project: Project):
    """SIGKILL to the whole group; `dvc repro` again goes on from the last state, bit for bit."""
    project.set(settings(train_unet={"steps": 12}))
    folder = project.root / "models" / "unet"
    process = project.start("dvc", "repro", "train_unet")
    until(lambda: any(folder.glob("state-*.pt")), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    output = project("dvc", "repro", "train_unet")
    assert "resuming from step" in output
    resumed = (folder / "weights.safetensors").read_bytes()
    project("dvc", "repro", "--force", "--single-item", "train_unet")
    assert (folder / "weights.safetensors").read_bytes() == resumed
    project("git", "checkout", "-q", "--", ".")
    project("dvc", "checkout", "-q")


def test_a_signal_to_all_saves_and_the_state_of_other_settings_is_refused(project: Project):
    train = {"workers": 1, "save_every": 1000}
    project.set(settings(train_unet={"steps": 500}, train=train))
    folder = project.root / "models" / "unet"
    (folder / "log.csv").unlink()
    process = project.start("dvc", "repro", "train_unet")
    until(lambda: (folder / "log.csv").is_file() and "\n4," in (folder / "log.csv").read_text(), process)
    os.killpg(process.pid, signal.SIGTERM)  # to DVC, the training and its readers at once
    process.wait()
    until_gone = time.monotonic() + 60
    while not any(folder.glob("state-*.pt")):  # saved by the signal alone
        assert time.monotonic() < until_gone, process.communicate()[0]
        time.sleep(0.1)
    project.set(settings(train_unet={"steps": 501}, train=train))
    output = project("dvc", "repro", "train_unet", fails=True)
    assert "recipe.steps: 500 -> 501" in output
    assert "--fresh" in output
    project.set(settings())
    assert "resuming" not in project("python", "-m", "pipelines.train_unet", "--fresh")
    assert not list(folder.glob("state-*.pt"))
    project("git", "checkout", "-q", "--", ".")
    project("dvc", "checkout", "-q", "--force")
