"""The architecture: imports go down only, never sideways, and heavy packages are imported where they are used."""

import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import ROOT, imports
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LAYERS = [
    {"allocator", "config", "files", "memory", "threads"},
    {"foreign", "photo"},
    {"images", "locks", "pretrained"},
    {"acquisition", "data", "degradation", "models", "diffusion"},
    {"training", "inference", "official"},
    {"app", "evaluation", "onnx", "spandrel"},
    {"bench"},
    {"commands"},
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
FRONT_DOOR = "__init__"  # `from upsr import Upscaler`: names the upscaler, and imports it when asked
HOME = {  # mlflow has three: trainings depend on tracking.py, and shall not on the registry
    "mlflow": {"pipelines/tracking.py", "pipelines/registry.py", "pipelines/served.py"},
    "prefect": {"pipelines/flows.py"},
    "prefect_ray": {"pipelines/flows.py"},
    "ray": {"pipelines/flows.py"},
}


def part(path: Path, root: Path) -> str:
    return path.relative_to(root / "upsr").parts[0].removesuffix(".py")


def upward_imports(root: Path) -> list[str]:
    """Every import in root/upsr of a part that is not below the importing one; of the pipeline, every one."""
    found = []
    for path in sorted((root / "upsr").rglob("*.py")):
        mine = part(path, root)
        for name in imports(path, "upsr", "pipelines"):
            package, theirs = [*name.split("."), ""][:2]
            allowed = (
                package == "upsr" and (theirs in ("", mine) or LEVEL.get(theirs, len(LAYERS)) < LEVEL[mine])
                if mine != FRONT_DOOR
                else name.startswith("upsr.inference.upscaler")
            )
            if not allowed:
                found.append(f"{path.relative_to(root)} imports {name}")
    return found


def test_imports_go_down_only():
    assert upward_imports(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("upsr/images.py", "import upsr.diffusion.process"),
        ("upsr/files.py", "from upsr.images import read"),
        ("upsr/config/section.py", "from upsr import images"),
        ("upsr/data/datasets.py", "from upsr.acquisition import sources"),  # sideways
        ("upsr/diffusion/process.py", "from upsr.models import ATD"),
        ("upsr/data/subimages.py", "from upsr import Upscaler"),
        ("upsr/training/loop.py", "def late():\n    from upsr.evaluation.metrics import Metrics"),
        ("upsr/commands/doctor.py", "def late():\n    from pipelines import plan"),
        ("upsr/__init__.py", "import upsr.commands"),
    ],
)
def test_a_planted_upward_import_is_found(file: str, line: str, tmp_path: Path):
    shutil.copytree(ROOT / "upsr", tmp_path / "upsr", ignore=shutil.ignore_patterns("bundled"))
    with (tmp_path / file).open("a") as planted:
        planted.write(f"\n\n{line}\n")
    assert {entry.split()[0] for entry in upward_imports(tmp_path)} == {file}


@pytest.mark.parametrize(
    "line",
    ["from ..evaluation import metrics", "from .. import evaluation", "importlib.import_module('upsr.commands')"],
)
def test_an_import_that_hides_its_name_is_refused(line: str, tmp_path: Path):
    (tmp_path / "hidden.py").write_text(line)
    with pytest.raises(AssertionError, match=r"hidden\.py:1"):
        imports(tmp_path / "hidden.py", "upsr")


def test_every_part_has_its_layer():
    assert {part(p, ROOT) for p in (ROOT / "upsr").rglob("*.py")} - {FRONT_DOOR} == set(LEVEL)


def test_the_library_does_not_know_the_pipeline():
    done = subprocess.run(["git", "grep", "-i", "pipelines", "--", "upsr"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == ""


def test_each_orchestrator_is_imported_at_home_alone():
    for package, home in HOME.items():
        users = {str(p.relative_to(ROOT)) for d in ("upsr", "pipelines") for p in (ROOT / d).rglob("*.py")
                 if imports(p, package)}  # fmt: skip
        assert users == home


def test_the_library_needs_its_base_dependencies_alone():
    """Everything but evaluation runs where only these are; so do the stages that make data and train."""
    code = """
import sys
for name in ("mlflow", "prefect", "dvc", "pyiqa", "scipy", "kornia", "skimage", "sklearn", "matplotlib", "pandas"):
    sys.modules[name] = None
import upsr.__main__, upsr.inference.upscaler, upsr.training.loop, upsr.training.atd_objective, upsr.official
import upsr.training.unet_objective, upsr.training.initial, upsr.data.benchmarks, upsr.acquisition.fetch
import pipelines.train_atd, pipelines.train_unet, pipelines.crop, pipelines.pack, pipelines.download
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_import_is_a_declared_dependency():
    """What upsr imports, by a dependency or the extra of its command; what the pipeline imports, by any extra."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(lines: list[str]) -> set[str]:
        return {canonicalize_name(Requirement(line).name) for line in lines}

    base, extras = names(project["dependencies"]), project["optional-dependencies"]
    library = base.union(*(names(extras[extra]) for extra in ("app", "metrics", "edges", "export", "heic", "spandrel")))
    everything = library | names(extras["pipeline"]) | names(extras["cluster"])
    for folder, declared in (("upsr", library), ("pipelines", everything)):
        used = {name.split(".")[0] for path in (ROOT / folder).rglob("*.py") for name in imports(path)}
        foreign = used - sys.stdlib_module_names - {"upsr", "pipelines"}
        assert {name for name in foreign if not distributions(name) & declared} == set(), folder
    unused = base - {name for module in used_modules() for name in distributions(module)}
    assert unused == set()


def distributions(module: str) -> set[str]:
    """The distributions that bring a module; by its own name where none is installed (an extra that is not in the
    lock)."""
    found = installed().get(module, [module])
    return {canonicalize_name(name) for name in found}


installed = cache(packages_distributions)


def used_modules() -> set[str]:
    return {n.split(".")[0] for d in ("upsr", "pipelines") for p in (ROOT / d).rglob("*.py") for n in imports(p)}
