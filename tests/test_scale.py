"""`upsr scale`: the shipped scales are valid settings, and params.yaml stays a file that people read."""

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from dvc.utils.hydra import apply_overrides
from tiny_project import ENVIRONMENT

from pipelines.tracking import flatten
from upsr.__main__ import main
from upsr.config import load_params, read_yaml


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "scales", tmp_path / "scales")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "params.yaml"


KNOWN = {  # a change of each scale
    "df2k": "unet.dim: 48 -> 160",
    "imagenet-test": "degradation.final_sinc: 0.8 -> 0.2",
    "sharper": "diffusion.steps: 5 -> 1",
    "starter": "data.source: sample -> folder",
}


@pytest.mark.parametrize("name", sorted({p.stem for p in (ROOT / "scales").glob("*.yaml")} - {"study"}))
def test_a_scale_is_put_in_place_and_only_what_it_names_changes(project: Path, name: str, capsys):
    text, before = project.read_text(), flatten(read_yaml(project))
    main(["scale", name])
    load_params(project)
    written, after = project.read_text(), flatten(read_yaml(project))
    told = capsys.readouterr().out.splitlines()
    assert KNOWN[name] in told
    assert {line.split(": ")[0] for line in told} == {
        key for key in after if key not in before or after[key] != before[key]
    }
    assert all(line.partition("#")[2] in written for line in text.splitlines() if "#" in line)
    main(["scale", name])
    assert project.read_text() == written
    apply_overrides(project, ["seed=0"])
    assert project.read_text() == written, "DVC writes it in another form"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ("unet.dim=96", ["-  dim: 48", "+  dim: 96"]),
        ("data.folder=photos", ["-  folder:", "+  folder: photos"]),
        ("evaluate.seeds=[0,1]", ["+  - 1"]),
        ("seed=0", []),
    ],
)
def test_an_experiment_changes_the_line_that_the_user_asked_for(project: Path, change: str, lines: list[str]):
    Path("dvc.yaml").write_text("stages: {a: {cmd: touch out, params: [seed], outs: [out]}}")
    for command in ("git init -q", "dvc init -q", "git add -A", "git commit -qm x", f"dvc exp run -q -S {change}"):
        subprocess.run(command.split(), env=ENVIRONMENT, check=True)
    shown = subprocess.check_output(["git", "diff", "-U0", "--", "params.yaml"], text=True).splitlines()
    assert [line for line in shown[4:] if line[0] in "+-"] == lines


def test_what_would_not_be_valid_is_not_written(project: Path, capsys):
    before = project.read_text()
    Path("scales/odd.yaml").write_text("unet: {dim: 50}")
    for name, message in (
        ("odd", "scales/odd.yaml: unet.dim 50"),
        ("none", "available: df2k, imagenet-test, odd, sharper, starter"),
        ("study", "a study, not a scale: run `make study`"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["scale", name])
        assert end.value.code == 2
        assert message in capsys.readouterr().err
    assert project.read_text() == before
