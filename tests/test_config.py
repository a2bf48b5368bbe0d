"""Settings: strict, and a mistake is one line that names its path."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import ROOT, settings

from upsr.config import ConfigError, Params, Section, load_params, parse


def test_the_shipped_settings_are_valid():
    assert load_params(ROOT / "params.yaml").scale == 4


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
        ({"uncertainty": {"variant": "none"}}, "`uncertainty.variant` = 'none'"),
        ({"data": {"source": "folder"}}, "data.folder"),
        ({"degradation": {"first": {"jpeg": [95, 30]}}}, "does not ascend"),
        ({"degradation": {"first": {"blur": {"kernel_size": [3, 20]}}}}, "odd"),
        ({"train_unet": {"patch": 36}}, "train_unet.patch 36 must be a multiple of 8"),
        ({"train_atd": {"patch": 512}}, "at most crop.size 256"),
        ({"data": {"holdout": []}}, "`data.holdout`"),
        ({"data": {"validation": []}}, "`data.validation`"),
        ({"data": {"validation": ["rocket", "coffee"]}}, "data.holdout, which is reported, also names coffee: name"),
        ({"train": {"validate_pictures": 3}}, "train.validate_pictures is 3, but data.validation names 2 images"),
        ({"seed": -1}, "`seed` = -1"),
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


def test_a_missing_or_broken_file_is_one_line(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such file"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1\nb: 2")
    with pytest.raises(ConfigError, match="not valid YAML") as error:
        load_params(tmp_path / "params.yaml")
    assert "\n" not in str(error.value)
