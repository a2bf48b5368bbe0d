"""The paper's benchmarks: the commands of docs/operations.md, run on made-up folders of the layouts as released."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, settings

from upsr import images
from upsr.__main__ import main
from upsr.commands.degrade import _sample
from upsr.config import Degradation, parse, read_yaml
from upsr.data.benchmarks import open_benchmark
from upsr.degradation.second_order import build_degradation

COMMANDS = {
    line.partition("data/benchmarks/")[2].split()[0]: line
    for line in (ROOT / "docs/operations.md").read_text().splitlines()
    if line.startswith(("upsr degrade IMAGENET", "ln -s", "cp -r ResShift"))
}


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text(json.dumps(settings()))
    (tmp_path / "scales").symlink_to(ROOT / "scales")
    (tmp_path / "data/benchmarks").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-c", command], env=os.environ | {"PATH": path}, check=True)


def test_imagenet_test_is_made_of_the_validation_images(project: Path):
    """In one folder as in a folder for each class: which images are drawn depends on their names."""
    for i, (height, width) in enumerate([(375, 500), (500, 333), (100, 130), (256, 256), (300, 300)]):
        images.write(project / f"IMAGENET/val/n{i % 2}/ILSVRC2012_val_{i:08d}.JPEG", noise(height, width))
    command = COMMANDS["ImageNet-Test"].replace("--sample 3000", "--sample 3")
    run(command)
    made = open_benchmark("data/benchmarks/ImageNet-Test", 4)
    assert len(made.pairs) == 3 and "scales/imagenet-test.yaml, seed 10000" in made.lr
    for pair in made.pairs:
        assert pair.hr and images.read(pair.hr).shape == (256, 256, 3) and images.read(pair.lr).shape == (64, 64, 3)
    for path in project.glob("IMAGENET/val/*/*"):
        path.rename(project / "IMAGENET/val" / path.name)
    main(command.replace("data/benchmarks/", "flat/").split()[1:])
    assert open_benchmark("flat/ImageNet-Test", 4).digest == made.digest


def test_seed_10000_draws_the_names_of_the_script():
    """The first of them by `random.seed`, `shuffle` and `sample` as ResShift's script calls them."""
    paths = [Path(f"val/{i % 7}/ILSVRC2012_val_{i:08d}.JPEG") for i in range(50_000, 0, -1)]
    drawn = _sample(paths, 3000, 10000)
    assert [int(path.stem[-8:]) for path in drawn][:6] == [1, 29, 32, 55, 71, 123]
    assert len(set(drawn)) == 3000


def test_hr_is_the_central_square(project: Path):
    """Of an image twice as wide as high, whose shorter side already fits, nothing is resized."""
    wide = noise(64, 128)
    images.write(project / "in/a.png", wide)
    main(["degrade", "in", "-o", "out", "--benchmark", "--side", "64"])
    assert np.array_equal(images.read(project / "out/HR/a.png"), wide[:, 32:96])
    main(["degrade", "in", "-o", "half", "--benchmark", "--side", "32"])
    half = cv2.resize(wide, (64, 32), interpolation=cv2.INTER_LINEAR)[:, 16:48]
    assert np.abs(images.read(project / "half/HR/a.png").astype(int) - half).max() <= 1


def test_too_few_images_to_draw_from_is_one_line(project: Path, capsys):
    images.write(project / "in/a.png", noise(64, 64))
    with pytest.raises(SystemExit, match="2"):
        main(["degrade", "in", "-o", "out", "--sample", "2"])
    assert "--sample 2: found 1 images only: lower it, or name more folders" in capsys.readouterr().err


def test_a_round_without_resize_keeps_the_size_until_the_last():
    """JPEG then meets the image before it is shrunk, as in ResShift's recipe, or after."""
    values = parse(Degradation, read_yaml(ROOT / "scales/imagenet-test.yaml")["degradation"], "imagenet-test")
    degrade = build_degradation(values, 4)
    hr = images.to_tensor(noise(64, 64))
    told = [degrade.named(hr, name)[1] for name in "abcdefgh"]
    assert all("second.resize.factor" not in notes and "final.resize.mode" in notes for notes in told)
    assert all(notes["second.blur.spread"] == notes["second.noise.sigma"] == 0 for notes in told)
    assert all(70 <= notes["first.jpeg"] <= 95 and 80 <= notes["second.jpeg"] <= 100 for notes in told)
    assert degrade.named(hr, "a")[0].shape == (1, 3, 16, 16)


def test_the_sheet_shows_a_round_without_resize(project: Path):
    images.write(project / "in/a.png", noise(64, 64))
    main(["degrade", "in", "-o", "sheet.png", "--preview", "--columns", "1", "--scale", "imagenet-test"])
    assert images.read(project / "sheet.png").shape == (256 + 34, 2 * (256 + 8), 3)


def test_realsr_is_linked_as_it_is_released(project: Path):
    for camera in ("Canon", "Nikon"):
        for split in ("Train", "Test"):
            folder = project / "RealSR(V3)" / camera / split / "4"
            images.write(folder / f"{camera}_001_HR.png", noise(32, 64))
            images.write(folder / f"{camera}_001_LR4.png", noise(8, 16))
    run(COMMANDS["RealSR"])
    opened = open_benchmark("data/benchmarks/RealSR", 4)
    assert (opened.name, [pair.name for pair in opened.pairs]) == ("RealSR", ["Canon_001", "Nikon_001"])
    assert opened.lr == "photographed with a shorter focal length"
    assert all(pair.hr and images.read(pair.hr).shape == (32, 64, 3) for pair in opened.pairs)


def test_realset65_is_copied(project: Path):
    images.write(project / "ResShift/testdata/RealSet65/00003.png", noise(16, 16))
    run(COMMANDS["RealSet65"])
    assert [pair.hr for pair in open_benchmark("data/benchmarks/RealSet65", 4).pairs] == [None]


def test_doctor_names_the_commands(project: Path, capsys):
    main(["doctor"])
    printed = capsys.readouterr().out
    assert len(COMMANDS) == 3
    for command in COMMANDS.values():
        assert f"`{command}`" in printed
