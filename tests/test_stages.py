"""dvc.yaml tells the truth: what a stage reaches is what it depends on, and the sections it reads are its params."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, imports, settings

from pipelines.training import CHANGEABLE
from upsr.config import Train

STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


FRONT_DOOR = ROOT / "upsr" / "__init__.py"  # which no stage uses; it names the upscaler, and imports it when asked
SLACK = 1.05  # declared against reached lines: a folder is declared as a whole


def module_file(name: str) -> Path | None:
    """The file of a dotted module of ours."""
    path = ROOT / Path(*name.split("."))
    found = next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)
    return None if found == FRONT_DOOR else found


def reached(path: Path) -> set[Path]:
    """The files that a script imports, directly or not, and itself."""
    found, todo = set(), [path]
    while todo:
        current = todo.pop()
        if current not in found:
            found.add(current)
            todo += [f for name in imports(current, "upsr", "pipelines") if (f := module_file(name))]
    return {file for file in found if file.read_text().count("\n") > 1}  # a docstring alone is no dependency


def declared(dependency: str) -> set[Path]:
    """The Python files of one entry of a stage's `deps`."""
    path = ROOT / dependency
    if dependency.split("/")[0] not in ("upsr", "pipelines"):
        return set()
    return set(path.rglob("*.py")) if path.is_dir() else {path} & set(path.parent.glob("*.py"))


def lines(paths: set[Path]) -> int:
    return sum(len(path.read_text().splitlines()) for path in paths)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_it_reaches_and_on_hardly_any_other(stage: str):
    assert STAGES[stage]["cmd"] == f"python -m pipelines.{stage}"
    code = reached(ROOT / "pipelines" / f"{stage}.py")
    entries = [files for d in STAGES[stage]["deps"] if (files := declared(d))]
    everything = set().union(*entries)
    assert code <= everything, "reached, but not in dvc.yaml"
    assert all(files & code for files in entries), "in dvc.yaml, but not reached"
    print(f"{stage}: {lines(everything)} lines declared, {lines(code)} reached")
    assert lines(everything) <= SLACK * lines(code)


@pytest.mark.parametrize("stage", [s for s in STAGES if s != "report"])
def test_a_stage_declares_the_sections_it_reads(stage: str):
    tree = ast.parse((ROOT / "pipelines" / f"{stage}.py").read_text())
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and "params" in (getattr(node.value, "id", ""), getattr(node.value, "attr", ""))
    } - {"model_dump"}
    assert {p.split(".")[0] for p in STAGES[stage]["params"]} == read


@pytest.mark.parametrize("stage", ["train_atd", "train_unet"])
def test_a_training_depends_on_every_key_that_changes_its_weights(stage: str):
    """And on two that a state may resume under: `init` is where it starts, `keep` how many checkpoints it leaves."""
    declared = {p.removeprefix("train.") for p in STAGES[stage]["params"] if p.startswith("train.")}
    assert declared == set(Train.model_fields) - CHANGEABLE | {"init", "keep"}


@pytest.mark.parametrize("stage", ["train_atd", "train_unet"])
def test_a_training_depends_on_the_validation_images_and_on_no_benchmark(stage: str):
    deps = STAGES[stage]["deps"]
    assert "data/validation" in deps
    assert [d for d in deps if d.startswith("data/benchmarks")] == []


def test_the_lock_is_of_this_graph():
    """`dvc repro` was run after the last change of dvc.yaml: its lock names the same files."""
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    for stage, entry in STAGES.items():
        assert {d["path"] for d in lock[stage]["deps"]} == set(entry["deps"]), stage


FLOWS = {"jobs", "nightly", "sweep"}  # sections that no stage reads


def test_every_section_is_read_by_a_stage_or_a_flow():
    declared = {p.split(".")[0] for s in STAGES.values() for p in s["params"] if isinstance(p, str)}
    assert declared | FLOWS == set(yaml.safe_load((ROOT / "params.yaml").read_text()))
    assert not declared & FLOWS


@pytest.mark.slow
@pytest.mark.parametrize("stage", [s for s in STAGES if s != "download"])
def test_a_mistake_ends_in_one_line_before_any_work(stage: str, tmp_path: Path):
    (tmp_path / "params.yaml").write_text(json.dumps(settings() | {"unett": {}}))
    done = subprocess.run(
        [sys.executable, "-m", f"pipelines.{stage}"], cwd=tmp_path, capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: params.yaml: unknown key `unett`")
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["params.yaml"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "message"),
    [("crop", "data/hr"), ("pack", "data/subimages"), ("train_atd", "data/"), ("train_unet", "models/atd")],
)
def test_a_missing_input_is_one_line_that_names_it(stage: str, message: str, tmp_path: Path):
    (tmp_path / "params.yaml").write_text(json.dumps(settings()))
    done = subprocess.run(
        [sys.executable, "-m", f"pipelines.{stage}"], cwd=tmp_path, capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
