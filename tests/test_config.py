"""Settings: strict, and a mistake is one line that names its path."""

import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from conftest import ROOT, settings
from dvc.utils.serialize import YAMLFileCorruptedError, load_yaml

from pipelines.study import load_plan
from upsr import images
from upsr.__main__ import main
from upsr.config import ConfigError, Params, Section, load_params, parse, read_yaml
from upsr.data.benchmarks import open_benchmark
from upsr.files import DataError, read_json


def test_the_shipped_settings_are_valid():
    assert load_params(ROOT / "params.yaml").scale == 4


@pytest.mark.parametrize("wrong", ["abc", 0, -2, 1.5, None, [2]])
def test_a_wrong_micro_batch_is_one_short_error(wrong: Any):
    with pytest.raises(ConfigError) as error:
        parse(Params, settings(train_unet={"micro_batch": wrong}), "params.yaml")
    shown = f"`train_unet.micro_batch` = {wrong!r}"
    assert str(error.value) == f"params.yaml: {shown}: give a whole number above 0, or auto"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unett": {}}, "unknown key `unett`"),
        ({"unet": {"dmi": 48}}, "unknown key `unet.dmi`"),
        ({"unet": {"dim": 50}}, "unet.dim 50 is not a multiple of 16"),
        ({"unet": {"branches": 2}, "uncertainty": {"variant": "isotropic"}}, "`isotropic` has no map to mix them by"),
        ({"unet": {"skip": "edm"}, "diffusion": {"predict": "epsilon"}}, "but diffusion.predict is `epsilon`"),
        ({"unet": {"condition": []}}, "unet.condition"),
        ({"atd": {"dim": 50, "heads": 4}}, "atd.dim 50 is not a multiple of atd.heads 4"),
        ({"train_unet": {"batch": 3}}, "batch 3 is not a multiple of micro_batch 2"),
        ({"jobs": {"devices": ["0", "1,0"]}}, "jobs.devices names 0 twice"),
        ({"uncertainty": {"variant": "none"}}, "`uncertainty.variant` = 'none'"),
        ({"data": {"source": "folder"}}, "data.folder"),
        ({"degradation": {"first": {"jpeg": [95, 30]}}}, "does not ascend"),
        ({"degradation": {"first": {"blur": {"kernel_size": [3, 20]}}}}, "odd"),
        ({"train_unet": {"patch": 36}}, "train_unet.patch 36 must be a multiple of 8"),
        ({"train_atd": {"patch": 512}}, "at most crop.size 256"),
        (
            {"train_unet": {"patch": 32, "lpips_alex_weight": 0.1}},
            "patch 32 must be at least 38 for train_unet.lpips_al",
        ),
        (
            {"train_atd": {"patch": 16}, "atd": {"lpips_weight": 1, "schedule": "x2_then_x4"}},
            "train_atd.patch 16 must be at least 32 for atd.lpips_weight",
        ),
        ({"data": {"holdout": []}}, "`data.holdout`"),
        ({"data": {"validation": []}}, "`data.validation`"),
        ({"data": {"validation": ["rocket", "coffee"]}}, "data.holdout, which is reported, also names coffee: name"),
        ({"train": {"validate_pictures": 3}}, "train.validate_pictures is 3, but data.validation names 2 images"),
        ({"seed": -1}, "`seed` = -1"),
        ({"nightly": {"webhook": "ftp://127.0.0.1/x"}}, "URL scheme should be 'http' or 'https'"),
        ({"nightly": {"webhook": "127.0.0.1/x"}}, "`nightly.webhook` = '127.0.0.1/x': Input should be a valid URL"),
        ({"train": {"select": {"psnr": 0, "lpips": 0}}}, "train.select: all weights are 0"),
        ({"train": {"init": "a"}, "atd": {"schedule": "x2_then_x4"}}, "both set the initial ×4 weights"),
    ],
)
def test_a_mistake_names_its_path(changes: dict[str, Any], message: str):
    values = settings()

    def change(target: dict[str, Any], by: dict[str, Any]) -> None:
        for key, value in by.items():
            if isinstance(value, dict) and key in target:
                change(target[key], value)
            else:
                target[key] = value

    change(values, changes)
    with pytest.raises(ConfigError) as error:
        parse(Params, values, "params.yaml")
    assert message in str(error.value)
    assert str(error.value).startswith("params.yaml: ")
    assert "\n" not in str(error.value)


def records(annotation: Any) -> Iterator[type[Section]]:
    """The records inside a field's type: itself, or the values of a dict or an optional."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from records(argument)


def descriptions(record: type[Section], path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, description) of every section and every leaf."""
    for name, field in record.model_fields.items():
        yield f"{path}{name}", (field.description or "").strip()
        for nested in records(field.annotation):
            yield from descriptions(nested, f"{path}{name}.")


def test_every_key_is_described():
    described = dict(descriptions(Params))
    assert {"seed", "degradation.first.blur.sigma", "train_atd.x2.lr", "nightly.metrics.better"} <= described.keys()
    assert [key for key, text in described.items() if not text] == []


def test_a_missing_key_is_named():
    values = settings()
    del values["atd"]["dim"]
    with pytest.raises(ConfigError, match=r"key `atd\.dim` is missing"):
        parse(Params, values, "params.yaml")


def test_a_number_that_yaml_takes_for_text_is_a_number(tmp_path: Path):
    text = (ROOT / "params.yaml").read_text().replace("lr: 2.0e-4", "lr: 2e-4")
    assert "lr: 2e-4" in text
    (tmp_path / "params.yaml").write_text(text)
    assert load_params(tmp_path / "params.yaml").train_atd.lr == 0.0002


# In most of these YAML 1.1 and 1.2 differ.
ODD_SCALARS = [
    *("010", "0o10", "0x1F", "0b11", "1_000", "1e-4", "1e4", "1E5", ".5", "1.", "+1", "-0", ".inf", "1:30", "1:30.5"),
    *("yes", "No", "on", "off", "y", "TRUE", "~", "2001-01-01"),
]


def test_values_are_read_as_dvc_reads_them(tmp_path: Path):
    """One file, one meaning: what DVC compares is what the stages use."""
    path = tmp_path / "params.yaml"
    path.write_text("".join(f"k{i}: {text}\n" for i, text in enumerate(ODD_SCALARS)))
    values = read_yaml(path)
    assert values["k0"] == 10 and "yes" in values.values()
    assert values == load_yaml(path)


def test_a_key_that_is_there_twice_is_refused_in_one_line(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text("unet:\n  dim: 48\n  dim: 96\n")
    with pytest.raises(ConfigError, match=r'params\.yaml: found duplicate key "dim" .* in line 3: remove one') as error:
        load_params(path)
    assert "\n" not in str(error.value)
    with pytest.raises(YAMLFileCorruptedError):
        load_yaml(path)


def test_a_missing_or_broken_file_is_one_line(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such file"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1\nb: 2")
    with pytest.raises(ConfigError, match="not valid YAML") as error:
        load_params(tmp_path / "params.yaml")
    assert "\n" not in str(error.value)


LAUGHS = "a0: &a0 [ha, ha]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
HOSTILE = {
    "laughs": LAUGHS,
    "merges": MERGES,
    "laughs in a value": LAUGHS + "seed: *a11\n",
    "few laughs in a value": f"a: &a [{'x, ' * 90}]\nb: &b [{'*a, ' * 90}]\nseed: *b\n",
    "a list in itself": "seed: &a [*a]\n",
    "keys in themselves": "seed: &a {<<: *a}\n",
    "deep lists": f"seed: {'[' * 10_000}{']' * 10_000}\n",
    "deep keys": f"seed: {'{a: ' * 10_000}1{'}' * 10_000}\n",
    "open lists": "[" * 10_000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(1500)),
    "a long number": f"seed: {'9' * 5000}\n",
    "a long hexadecimal number": f"seed: -0x{'f' * 5000}\n",
    "a long text": f"seed: {'x' * 1_000_000}\n",
    "a long key": f"{'x' * 1000}: 1\n",
    "many keys": "".join(f"k{i}: 1\n" for i in range(2000)),
    "a date of month 13": "seed: 2001-13-45\n",
    "an empty integer": "seed: !!int ''\n",
    "an odd truth": "seed: !!bool x\n",
    "an odd moment": "seed: !!timestamp x\n",
    "a tag": "seed: !!python/object/apply:os.system [true]\n",
    "a list as a key": "? [1, 2]\n: 3\n",
    "no keys": "[1, 2]\n",
    "nothing": "",
    "NUL": "seed: \0\n",
}


@pytest.mark.parametrize("read", [load_params, load_plan])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_short_line(tmp_path: Path, name: str, read: Any):
    path = tmp_path / "hostile.yaml"
    path.write_text(HOSTILE[name])
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError) as error:
        read(path)
    line = str(error.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and len(line) < 1500
    assert time.process_time() - start < 10  # two seconds, by a fast processor
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_bytes_that_are_no_text_are_one_line(tmp_path: Path):
    (tmp_path / "params.yaml").write_bytes(b"seed: \xff\xfe\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_params(tmp_path / "params.yaml")


def test_aliases_and_merged_keys_are_read(tmp_path: Path):
    """scales/study.yaml has them."""
    (tmp_path / "a.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 1}}
    for path in [ROOT / "params.yaml", *(ROOT / "scales").glob("*.yaml")]:
        assert read_yaml(path) == yaml.safe_load(path.read_text())


@pytest.mark.parametrize("name", ["laughs", "merges", "deep lists", "no keys", "nothing"])
def test_a_hostile_scale_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "scales").mkdir()
    (tmp_path / "scales" / "hostile.yaml").write_text(HOSTILE[name])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["scale", "hostile"])
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and line.startswith("error: scales/hostile.yaml: ")
    assert (tmp_path / "params.yaml").read_text() == (ROOT / "params.yaml").read_text()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "[1", '{"a": ' + "9" * 5000 + "}", b"\xff"])
def test_hostile_json_is_one_line(tmp_path: Path, text: str | bytes):
    path = tmp_path / "other.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as error:
        read_json(path)
    assert str(error.value).startswith(f"{path}: invalid JSON (") and "\n" not in str(error.value)
    folder = tmp_path / "benchmark"
    images.write(folder / "a.png", np.zeros((4, 4, 3), np.uint8))
    path.rename(folder / "manifest.json")
    with pytest.raises(DataError, match=r"manifest\.json: has no key `lr`"):
        open_benchmark(folder, 4)
