"""`upsr degrade`, `doctor` and `bench`, as a user runs them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, settings

from upsr import images
from upsr.__main__ import main
from upsr.data.benchmarks import open_benchmark
from upsr.data.lmdb_store import pack


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the settings and three pictures in `hr`."""
    (tmp_path / "params.yaml").write_text(json.dumps(settings()))
    for i, name in enumerate(("a", "b", "c")):
        picture = np.random.default_rng(i).integers(0, 255, (40 + 8 * i, 64, 3), np.uint8)
        images.write(tmp_path / f"hr/{name}.png", picture)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def degraded(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_degrade_makes_a_fixed_benchmark(project: Path):
    main(["degrade", "hr", "-o", "one"])
    main(["degrade", "hr/b.png", "-o", "two"])
    main(["degrade", "hr", "-o", "three", "--seed", "1"])
    one, two, three = (degraded(project / name) for name in ("one", "two", "three"))
    assert list(one) == ["a.json", "a.png", "b.json", "b.png", "c.json", "c.png"]
    assert two == {name: one[name] for name in ("b.json", "b.png")}  # whoever was degraded beside it
    assert not {one[f"{n}.png"] for n in "abc"} & {three[f"{n}.png"] for n in "abc"}
    assert images.read(project / "one/c.png").shape == (14, 16, 3)


def test_degrade_makes_a_benchmark_at_another_scale(project: Path, capsys):
    """At full strength, with what made it; and never over another."""
    shutil.copytree(ROOT / "scales", project / "scales")
    for name in ("one", "two"):
        main(["degrade", "hr", "-o", name, "--benchmark", "--scale", "df2k"])
    assert degraded(project / "one/LRx4") == degraded(project / "two/LRx4")
    assert degraded(project / "one/HR") == degraded(project / "hr")
    benchmark = open_benchmark("one", 4)
    assert [pair.name for pair in benchmark.pairs] == ["a", "b", "c"]
    assert benchmark.lr == "second-order degradation by scales/df2k.yaml, seed 0 and each image's name"
    full = yaml.safe_load((ROOT / "scales/df2k.yaml").read_text())["degradation"]
    assert json.loads(Path("one/manifest.json").read_text())["degradation"] == full
    main(["evaluate", "--model", "bicubic", "--benchmark", "one", "--metrics"])
    assert "one  3 of 3 images  second-order degradation by scales/df2k.yaml" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["degrade", "hr", "-o", "one", "--benchmark"])
    assert "one: exists: choose another folder, or remove it" in capsys.readouterr().err


def test_lr_lies_on_the_grid_of_hr(project: Path):
    """An evaluation cuts HR to a multiple of the scale; LR is made of the same part."""
    picture = images.read(project / "hr/a.png")
    images.write(project / "cut/a.png", picture[:36, :60])
    images.write(project / "odd/a.png", picture[:39, :63])
    for name in ("cut", "odd"):
        main(["degrade", name, "-o", f"{name}-lr"])
    assert (project / "cut-lr/a.png").read_bytes() == (project / "odd-lr/a.png").read_bytes()


def test_the_numbers_beside_a_picture_are_those_that_were_drawn(project: Path):
    """At a JPEG quality, a factor and a noise that leave one choice, that is what is told."""
    values = settings()
    first = values["degradation"]["first"]
    first["jpeg"] = [50, 50]
    first["resize"] = {"up_down_keep": [0, 0, 1], "range": [0.5, 1.5]}
    first["noise"] |= {"gaussian": 1, "sigma": [7, 7], "gray": 1}
    first["blur"] |= {"probability": 0}
    Path("params.yaml").write_text(json.dumps(values))
    main(["degrade", "hr", "-o", "lr"])
    told = json.loads(Path("lr/a.json").read_text())
    assert told["first.jpeg"] == 50 and told["first.resize.factor"] == 1 and told["first.blur.spread"] == 0
    assert told["first.noise.sigma"] == 7 and told["first.noise.gray"] is True
    assert 30 <= told["second.jpeg"] <= 100 and told["source"] == "a.png"


def test_the_sheet_shows_every_picture_and_its_degradations(project: Path):
    main(["degrade", "hr", "-o", "sheet.png", "--preview", "--columns", "2"])
    sheet = images.read(project / "sheet.png")
    assert sheet.shape == (3 * (256 + 34), 3 * (256 + 8), 3)
    tiles = sheet[:256, :256], sheet[:256, 264:520], sheet[:256, 528:784]
    assert len({tile.tobytes() for tile in tiles}) == 3


def test_plain_and_degraded_pictures_share_a_sheet(project: Path):
    values = settings()
    values["degradation"]["plain"] = 0.5
    Path("params.yaml").write_text(json.dumps(values))
    main(["degrade", "hr", "-o", "sheet.png", "--preview", "--columns", "4"])
    assert images.read(project / "sheet.png").shape == (3 * (256 + 34), 5 * (256 + 8), 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hr", "-o", "hr"], "a.png: the result would replace the image"),
        (["nowhere.png", "-o", "x"], "nowhere.png: cannot be read"),
        (["hr", "hr/a.png", "-o", "x"], "hr/a.png: a.png has the same name without suffix: rename one"),
        (["hr", "-o", "x", "--scale", "huge"], "scales/huge.yaml: no such scale"),
    ],
)
def test_a_mistake_of_degrade_is_one_line(project: Path, capsys, arguments: list[str], message: str):
    with pytest.raises(SystemExit, match="2"):
        main(["degrade", *arguments])
    assert message in capsys.readouterr().err


def test_doctor_tells_what_is_there_and_what_to_do(project: Path, capsys):
    for i in range(5):
        images.write(project / f"data/benchmarks/Set5/HR/{i}.png", np.zeros((8, 8, 3), np.uint8))
        images.write(project / f"data/benchmarks/Set5/LRx4/{i}.png", np.zeros((2, 2, 3), np.uint8))
    shutil.copytree(project / "hr", project / "data/subimages")
    pack(project / "hr", project / "data/train.lmdb", "png")
    main(["doctor", "--verify"])
    lines = capsys.readouterr().out.splitlines()
    for start in (
        "  ok  data/train.lmdb: 3 images, digest verified",
        "  ok  data/subimages: 3 images",
        "  --  data/hr: no images: run `dvc repro download`",
        "  ok  Set5: 5 images",
        "  ok  --dtype auto is ",
        "  --  Urban100: absent (100 pairs): get https://",
    ):
        assert any(line.startswith(start) for line in lines), start
    (project / "data/benchmarks/Set5/LRx4/0.png").unlink()
    main(["doctor"])
    assert "no LR image of 0" in capsys.readouterr().out


def test_doctor_tells_what_df2k_needs(project: Path, capsys):
    Path("params.yaml").write_text(
        json.dumps(settings(data={"source": "df2k", "holdout": ["0001"], "validation": ["0801", "0802"]}))
    )
    main(["doctor"])
    out = capsys.readouterr().out
    assert "DIV2K_train_HR.zip (3.5 GB): missing: run `dvc repro download`, or get https://" in out
    assert "Flickr2K.tar or Flickr2K.zip (about 20 GB): missing: run `dvc repro download`, or get https://" in out
    assert "/Flickr2K.zip by hand, into data/archives; or its 2650 images, into data/archives/Flickr2K" in out
    assert "DIV2K_valid_HR.zip" in out


@pytest.mark.parametrize("model", ["atd-48", "upsr-48"])
def test_bench_inference_measures_every_precision(model: str, capsys):
    main(["bench", "inference", "--model", model, "--side", "16", "--device", "cpu"])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith(f"{model}, 16x16")
    assert [row.split()[0] for row in rows] == ["auto", "bf16", "fp32"]
    assert all("MP/s" in row and "peak memory" in row for row in rows)


def test_bench_sample_measures_both_networks_alone_and_in_batches(project: Path, capsys):
    (project / "params.yaml").write_text(json.dumps(settings()))
    main(["bench", "sample", "--side", "16", "--device", "cpu"])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("ATD 16 in fp32, UNet 16 in ") and "2 steps, 16x16" in head
    assert [row[:26].strip() for row in rows] == [
        f"{part}, eager, batch {batch}" for batch in (1, 16) for part in ("g", "UNet")
    ]
    for row in rows:
        image, flops, share = (float(number) for number in re.findall(r" ([\d.e-]+) (?:ms|TFLOP|%)", row))
        assert image > 0 and flops > 0 and 0 <= share < 200


@pytest.mark.slow
def test_bench_train_says_where_the_time_goes_and_compares_settings(project: Path, capsys):
    """Without data it makes some up, and keeps nothing; data that cannot be read is not replaced."""
    (project / "params.yaml").write_text(json.dumps(settings(train_unet={"micro_batch": "auto"})))
    before = sorted(project.rglob("*"))
    main(["bench", "train", "--device", "cpu", "--compile"])
    assert sorted(project.rglob("*")) == before
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.endswith("; images and LPIPS weights are made up")
    for name, rows, parts in (
        ("train_atd", lines[:6], ["data", "degradation", "network", "perceptual", "optimiser"]),
        ("train_unet", lines[6:], ["data", "degradation", "g", "network", "perceptual", "optimiser"]),
    ):
        assert rows[0] == f"{name}: 2 patches of 32x32 per step, micro_batch 2"
        shares = [part.split() for part in rows[1].split(",")]
        assert [share[0] for share in shares] == parts
        assert sum(int(share[1]) for share in shares) == pytest.approx(100, abs=3)
        assert [row.split("  ")[1] for row in rows[2:]] == [
            "fp32", "precision: bf16", "channels_last: true", "compile: true"
        ]  # fmt: skip
        assert "1.00 x as fast" in rows[2]
        assert all("ms" in row and "steps/s" in row and "TFLOP/s" in row for row in rows[2:])
    (project / "data/train.lmdb").mkdir(parents=True)
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "train", "--device", "cpu"])
    assert "train.lmdb: " in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("what", [["data", "--pictures", "2"], ["degrade", "--batch", "2", "--steps", "2"]])
def test_bench_prints_figures_and_keeps_nothing(what: list[str], tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    main(["bench", *what])
    assert "images/s" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["params.yaml"]
