"""`upsr scale`: the shipped scales are valid settings, and params.yaml stays a file that people read."""

import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from upsr.__main__ import main
from upsr.config import load_params


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "scales", tmp_path / "scales")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "params.yaml"


KNOWN = {"df2k": "unet.dim: 48 -> 160", "starter": "data.source: sample -> folder"}  # a change of each scale


@pytest.mark.parametrize("name", sorted({p.stem for p in (ROOT / "scales").glob("*.yaml")} - {"study"}))
def test_a_scale_is_put_in_place_and_only_what_it_names_changes(project: Path, name: str, capsys):
    before = project.read_text().splitlines()
    main(["scale", name])
    load_params(project)
    after = project.read_text().splitlines()
    told = capsys.readouterr().out
    assert KNOWN[name] in told
    assert len(after) == len(before)
    changed = [a for a, b in zip(after, before, strict=True) if a != b]
    assert len(changed) == len(told.splitlines())
    assert all(line.partition("#")[2] in "\n".join(after) for line in before if "#" in line)
    main(["scale", name])
    assert project.read_text().splitlines() == after


def test_what_would_not_be_valid_is_not_written(project: Path, capsys):
    before = project.read_text()
    Path("scales/odd.yaml").write_text("unet: {dim: 50}")
    for name, message in (
        ("odd", "scales/odd.yaml: unet.dim 50"),
        ("none", "available: df2k, odd, starter"),
        ("study", "a study, not a scale: run `make study`"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["scale", name])
        assert end.value.code == 2
        assert message in capsys.readouterr().err
    assert project.read_text() == before
