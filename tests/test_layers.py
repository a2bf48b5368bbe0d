"""The architecture: imports go down only, and heavy packages are imported where they are used."""

import subprocess
import sys
from pathlib import Path

from conftest import ROOT, imports

LAYERS = [
    {"config", "images", "allocator", "checkpoint"},
    {"data", "degradation", "models", "diffusion"},
    {"training", "evaluation", "inference"},
    {"commands"},
    {"__main__"},
]
LAYER = {part: i for i, parts in enumerate(LAYERS) for part in parts}
HOME = {  # mlflow has a second: the trainings depend on tracking.py, and not on the registry
    "mlflow": {"pipelines/tracking.py", "pipelines/registry.py"},
    "prefect": {"pipelines/flows.py"},
    "prefect_ray": {"pipelines/flows.py"},
    "ray": {"pipelines/flows.py"},
}


def part(path: Path) -> str:
    relative = path.relative_to(ROOT / "upsr")
    return relative.parts[0].removesuffix(".py")


def test_imports_go_down_only():
    for path in (ROOT / "upsr").rglob("*.py"):
        if path.name == "__init__.py" and path.parent.name == "upsr":
            continue
        mine = part(path)
        for name in imports(path, "upsr"):
            theirs = [*name.split("."), ""][1]
            if theirs in LAYER and theirs != mine:
                assert LAYER[theirs] < LAYER[mine] or LAYER[mine] == 0, f"{path}: imports {name}"
        if mine != "commands":
            assert not imports(path, "pipelines"), f"{path}: the library knows no pipeline"


def test_every_part_has_its_layer():
    parts = {part(p) for p in (ROOT / "upsr").rglob("*.py") if p != ROOT / "upsr" / "__init__.py"}
    assert parts == set(LAYER)


def test_each_orchestrator_is_imported_at_home_alone():
    for package, home in HOME.items():
        users = {str(p.relative_to(ROOT)) for d in ("upsr", "pipelines") for p in (ROOT / d).rglob("*.py")
                 if imports(p, package)}  # fmt: skip
        assert users == home


def test_the_library_needs_no_pipeline_package():
    """Everything but evaluation runs where only the base dependencies are."""
    code = """
import sys
for name in ("mlflow", "prefect", "dvc", "pyiqa", "kornia", "skimage", "sklearn", "matplotlib", "pandas", "spandrel"):
    sys.modules[name] = None
import upsr.__main__, upsr.inference.upscaler, upsr.training.loop, upsr.training.objectives
import upsr.data.datasets, upsr.data.subimages, upsr.data.lmdb_store, upsr.data.benchmarks
import pipelines.train_atd, pipelines.train_unet, pipelines.crop, pipelines.pack
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
