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

STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def module_file(name: str) -> Path | None:
    """The file of a dotted module of ours."""
    path = ROOT / Path(*name.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def reached(path: Path) -> set[Path]:
    found, todo = set(), [path]
    while todo:
        current = todo.pop()
        if current not in found:
            found.add(current)
            todo += [f for name in imports(current, "upsr", "pipelines") if (f := module_file(name))]
    return found


def unit(path: Path) -> str:
    """What dvc.yaml names for a file: a package of the library as a whole, other files by themselves."""
    relative = path.relative_to(ROOT)
    return "/".join(relative.parts[:2])


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_it_reaches(stage: str):
    script = ROOT / "pipelines" / f"{stage}.py"
    assert STAGES[stage]["cmd"] == f"python -m pipelines.{stage}"
    code = {unit(p) for p in reached(script)} - {"upsr/__init__.py", "pipelines/__init__.py"}
    declared = {d for d in STAGES[stage]["deps"] if d.split("/")[0] in ("upsr", "pipelines")}
    assert declared - {"pipelines/templates"} == code


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
