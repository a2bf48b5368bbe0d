"""DVC as a daily tool: the table of experiments, plots without a network, and what a first `make` may meet."""

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from dvc_render.vega import VegaRenderer
from tiny_project import ENVIRONMENT

LONG = "variant-edge_frequency-dim-48-seed-0-init-atd-48"
STAGES = """
stages:
  evaluate: {cmd: python measure.py, deps: [upsr/method.py], params: [seed, unet, uncertainty], metrics: [metrics.json]}
"""
MEASURE = """
import json, yaml
params = yaml.safe_load(open("params.yaml"))
dim, seed = params["unet"]["dim"], params["seed"]
psnr, lpips = 24 + dim / 1000, 0.3 + dim / 1000
figures = {"holdout/psnr": psnr, "holdout/ssim": 0.7, "holdout/lpips": lpips, "RealSet65/niqe": 4.0}
json.dump(figures, open("metrics.json", "w"))
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of git and DVC with the shipped settings, in a folder with a space."""
    root = tmp_path / "my project"
    (root / "upsr").mkdir(parents=True)
    shutil.copy(ROOT / "params.yaml", root)
    shutil.copytree(ROOT / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    (root / "upsr" / "method.py").write_text("one = 1\n")
    (root / "dvc.yaml").write_text(STAGES)
    (root / "measure.py").write_text(MEASURE)
    do(root, "git", "init", "-q", "-b", "main")
    return root


def do(root: Path, *command: str, fails: bool = False) -> str:
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


def commit(root: Path) -> None:
    do(root, "git", "add", "-A")
    do(root, "git", "commit", "-q", "-m", "x")


@pytest.mark.slow
def test_the_table_has_what_differs_and_marks_the_best_in_80_columns(repository: Path):
    do(repository, "dvc", "repro", "-q")
    commit(repository)
    (repository / "upsr" / "method.py").write_text("one = 2\n")
    do(repository, "dvc", "exp", "run", "-q", "-n", "wide", "-S", "unet.dim=96")
    do(repository, "git", "checkout", "-q", ".")
    do(repository, "dvc", "exp", "run", "-q", "-n", LONG, "-S", "uncertainty.variant=edge_frequency", "-S", "seed=3",
       "-S", "uncertainty.energy=0.25", "-S", "unet.channel_mult=[1,2]")  # fmt: skip
    do(repository, "git", "checkout", "-q", ".")
    do(repository, "dvc", "exp", "run", "-q", "--queue", "-n", "later", "-S", "seed=1")
    settings = repository / "params.yaml"
    settings.write_text(settings.read_text().replace("folder:", "folder: photos"))
    head = do(repository, "git", "rev-parse", "HEAD")[:7]
    shown = [line.rstrip() for line in do(repository, sys.executable, "-m", "pipelines.experiments").splitlines()]
    assert max(map(len, shown)) <= 80
    assert shown[:3] == [
        "* is the best                                          PSNR      SSIM     LPIPS",
        f"main {head}",
        "    holdout                                           24.05    0.7000    0.3480*",
    ]
    assert shown[3:6] == [
        f"{LONG}: seed=3,",
        "    unet.channel_mult=[1,2], uncertainty.variant=edge_frequency,",
        "    uncertainty.energy=0.25",
    ]
    assert shown[7:9] == [
        "wide: unet.dim=96, upsr/method.py",
        "    holdout                                           24.10*   0.7000    0.3960",
    ]
    for option in ([], ["--csv"]):
        assert "wide" in do(repository, "dvc", "exp", "show", *option)
    assert shown[9:11] == ["later (queued): seed=1", "work tree (figures of its last run): data.folder=photos"]


@pytest.mark.slow
def test_what_dvc_cannot_read_is_one_line(repository: Path):
    commit(repository)
    (repository / "params.yaml").write_text("seed: 0\nseed: 1\n")
    (line,) = do(repository, sys.executable, "-m", "pipelines.experiments", fails=True).splitlines()
    assert line.startswith("error: work tree") and "unable to read: 'params.yaml'" in line
    shutil.rmtree(repository / ".git")
    (line,) = do(repository, sys.executable, "-m", "pipelines.experiments", fails=True).splitlines()
    assert line.startswith("error: dvc exp show: ") and line.endswith("is not a git repository")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium: the page of plots is not opened")
def test_plots_are_drawn_without_a_network(repository: Path):
    plots = (ROOT / "dvc.yaml").read_text().partition("\nplots:\n")[2]
    (repository / "dvc.yaml").write_text(f"plots:\n{plots}")
    tables = {
        "reports/evaluate/upsr.csv": "picture,psnr,lpips\nholdout/a,24,0.3\nholdout/b,25,0.2\n",
        "models/unet/checkpoints.csv": "step,lpips\n10,0.4\n20,0.3\n",
        "models/unet/log.csv": "step,loss\n10,0.4\n20,0.3\n",
    }
    for path, text in tables.items():
        for name in {path, path.replace("unet", "atd")}:
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            (repository / name).write_text(text)
    commit(repository)
    do(repository, "dvc", "plots", "diff", "HEAD")
    page = repository / "dvc_plots" / "index.html"
    assert not re.search(r"<script[^>]*src=", page.read_text())
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    options += [f"--user-data-dir={repository / 'profile'}", "--virtual-time-budget=20000", "--dump-dom"]
    drawn = do(repository, "chromium", *options, page.as_uri())
    assert len(re.findall(r"<canvas", drawn)) == 6


def test_the_page_of_plots_has_the_scripts_that_dvc_asks_for():
    page = (ROOT / ".dvc" / "plots" / "page.html").read_text()
    wanted = re.findall(r"npm/([\w-]+@[\d.]+)", VegaRenderer.SCRIPTS)
    assert len(wanted) == 3 and all(name in page for name in wanted)


@pytest.mark.parametrize("target", ["repro", "experiments", "flow", "sweep"])
def test_a_folder_that_is_no_clone_is_one_line(tmp_path: Path, target: str):
    folder = tmp_path / "my project"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    line, _ = do(folder, "make", "--old-file=.venv/ready", target, fails=True).splitlines()
    assert line == f"{folder}: no git clone, and DVC needs one: git init && git add -A && git commit -m start"


@pytest.mark.parametrize("port", [None, "five"])
def test_a_port_that_cannot_be_used_is_one_line(tmp_path: Path, port: str | None):
    shutil.copy(ROOT / "Makefile", tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = port or str(taken.getsockname()[1])
        line, _ = do(tmp_path, "make", "--old-file=.venv/ready", "ui", f"PORT={port}", fails=True).splitlines()
    assert line == f"error: port {port}: taken, or no port: name another, such as make ui PORT=5001"
