"""What a user installs: a wheel that works where no checkout is, a command that answers at once, types, a version."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import upsr
from upsr import images

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


# The wheel


def clean_environment() -> dict[str, str]:
    """Without anything that leads to the checkout or its environment."""
    keep = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "MLFLOW_TRACKING_URI")}
    return keep | {"PATH": os.defpath}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what is committed or lies in the work tree; setuptools leaves nothing behind there."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.check_output(["git", "ls-files", "-z", "upsr"], cwd=ROOT, text=True).split("\0")
    for name in ["pyproject.toml", "README.md", "LICENSE", *filter(None, listed)]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    (found,) = out.glob("upsr-*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_holds_one_package_its_types_and_the_bundled_weights(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"upsr", f"upsr-{upsr.__version__}.dist-info"}
    for name in (
        "upsr/py.typed",
        "upsr/bundled/atd-48/weights.safetensors",
        "upsr/bundled/atd-48/README.md",
        "upsr/app/page/page.js",
    ):
        assert name in names
    assert wheel.stat().st_size < 60e6
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel and its base dependencies alone, in the versions of the lock."""
    environment = tmp_path_factory.mktemp("elsewhere") / "venv"
    uv = str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(environment)], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", str(environment / "bin" / "python"), str(wheel)]
    subprocess.run([*install, "--constraint", str(ROOT / "requirements.lock")], check=True)
    return environment / "bin"


@pytest.mark.slow
def test_where_no_checkout_is_a_photo_is_upscaled(elsewhere: Path, tmp_path: Path):
    images.write(tmp_path / "photo.jpg", np.full((24, 40, 3), (200, 120, 40), np.uint8))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(elsewhere / "upsr"), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True)

    done = run("upscale", "photo.jpg", "-o", "large.png")
    assert done.returncode == 0, done.stderr
    larger = images.read(tmp_path / "large.png")
    assert larger.shape == (96, 160, 3)
    assert abs(larger.reshape(-1, 3).mean(0) - (200, 120, 40)).max() < 4
    assert run("upscale", "photo.jpg", "-o", "sharp.png", "--model", "upsr-48").returncode == 0
    assert run("--version").stdout == f"upsr {upsr.__version__}\n"

    # What needs an extra says which, in one line.
    images.write(tmp_path / "LRx4" / "a.png", np.zeros((16, 16, 3), np.uint8))
    images.write(tmp_path / "HR" / "a.png", np.zeros((64, 64, 3), np.uint8))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    for arguments, extra in (
        (["evaluate", "--benchmark", "."], "metrics"),
        (["compare"], "pipeline"),
        (["upscale", "photo.jpg", "-o", "x.png", "--model", "models:/upsr@champion"], "pipeline"),
        (["doctor", "--plan"], "pipeline"),
    ):
        done = run(*arguments)
        assert done.returncode == 2, arguments
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ") and re.search(rf"extra `{extra}`|upsr\[{extra}\]", line), line


@pytest.mark.slow
def test_a_type_checker_sees_the_types_of_the_wheel(elsewhere: Path, tmp_path: Path):
    (tmp_path / "user.py").write_text("from upsr import Upscaler\nreveal_type(Upscaler.from_pretrained().scale)\n")
    check = [sys.executable, "-m", "mypy", "--python-executable", str(elsewhere / "python"), "user.py"]
    environment = clean_environment() | {"MYPYPATH": ""}
    done = subprocess.run(check, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert 'Revealed type is "int"' in done.stdout or "builtins.int" in done.stdout, done.stdout


# The command and the library answer at once

HEAVY = ("torch", "numpy", "cv2", "pydantic")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        *[([command, "--help"], 0) for command in ("upscale", "evaluate", "compare", "degrade", "doctor", "bench")],
        *[([command, "--help"], 0) for command in ("scale", "import-official", "export")],
        ([], 2),
        (["enlarge"], 2),
        (["upscale"], 2),
        (["upscale", "a.png", "-o", "b.png", "--tile", "0"], 2),
        (["upscale", "a.png", "-o", "b.png", "--seed", "x"], 2),
        (["upscale", "a.png", "-o", "b.png", "--dtype", "fp8"], 2),
        (["evaluate", "--benchmark", "x", "--workers", "-1"], 2),
        (["degrade", "a.png", "-o", "b", "--columns", "many"], 2),
        (["bench", "nothing"], 2),
    ],
)
def test_help_and_wrong_options_are_answered_without_torch(arguments: list[str], code: int):
    script = f"""
import sys
from upsr.__main__ import main
try:
    main({arguments!r})
except SystemExit as end:
    assert (end.code or 0) == {code}, end.code
print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.splitlines()[-1] == "[]", done.stderr


def test_the_help_names_the_bundled_weights(capsys: pytest.CaptureFixture[str]):
    from upsr.__main__ import main
    from upsr.pretrained import bundled

    with pytest.raises(SystemExit):
        main(["upscale", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"bundled weights (starter, light, {', '.join(bundled())})" in text


@pytest.mark.parametrize("module", ["upsr.inference.upscaler", "pipelines.train_unet"])
@pytest.mark.parametrize(
    ("own", "seen"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "")]
)
def test_threads_do_not_wait_long_for_a_busy_core_unless_the_user_decided(own: dict[str, str], seen: str, module: str):
    code = f"""
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT", ""))
sys.meta_path.insert(0, Watch())
import {module}
"""
    free = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    output = subprocess.check_output([sys.executable, "-c", code], env=free | own, cwd=ROOT, text=True)
    assert output.splitlines()[0] == seen


def test_the_package_names_its_upscaler_and_its_version():
    from upsr.inference.upscaler import Upscaler

    assert upsr.Upscaler is Upscaler
    assert upsr.__version__ == version("upsr") == PROJECT["version"]
    with pytest.raises(AttributeError, match="Downscaler"):
        upsr.Downscaler  # noqa: B018


# Documents that must agree with it


def test_the_python_example_of_the_readme_and_the_index_runs(tmp_path: Path):
    blocks = [
        re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.S) for name in ("README.md", "docs/index.md")
    ]
    assert blocks[0] == blocks[1]
    (code,) = blocks[0]
    assert len(code.splitlines()) <= 6
    images.write(tmp_path / "photo.jpg", np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert images.read(tmp_path / "large.png").shape == (48, 64, 3)
    assert "(48, 64, 3)" in done.stdout


def test_the_lock_has_every_dependency_in_an_allowed_version():
    text = (ROOT / "requirements.lock").read_text()
    entries = [line.split("--hash=sha256:") for line in text.replace("\\\n", "").splitlines()]
    pinned = {canonicalize_name(r.name): next(iter(r.specifier)).version for r in (Requirement(e[0]) for e in entries)}
    extras = PROJECT["optional-dependencies"]
    locked = ("pipeline", "dev", "app", "metrics", "edges", "export", "spandrel")
    wanted = [*PROJECT["dependencies"], *(line for extra in locked for line in extras[extra])]
    for requirement in map(Requirement, wanted):
        if requirement.name != "upsr":
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement
    assert all(len(hashes) > 0 for _, *hashes in entries), "make lock"
    assert "://" not in text


def test_the_lock_installs_the_opencv_without_windows_alone():
    """Both builds fill one folder, and the one with windows needs libGL."""
    lines = [line.rstrip(" \\") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line]
    pinned = [Requirement(line) for line in lines if not line.startswith(" ")]
    builds = {r.name for r in pinned if "opencv" in r.name and (r.marker is None or r.marker.evaluate())}
    assert builds == {"opencv-python-headless"}
