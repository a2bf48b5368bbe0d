"""`upsr scale`: merges the settings of another scale into params.yaml and keeps its comments."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upsr.commands import new

if TYPE_CHECKING:
    from upsr.commands import Commands
    from upsr.config import Params

SCALES = Path("scales")
STUDY = "study"  # the file in this folder that is no scale


def add(commands: "Commands") -> None:
    command = new(
        commands,
        "scale",
        run,
        "merge the settings of another scale into params.yaml; undo with `git checkout params.yaml`",
    )
    command.add_argument("name", help="name of a file in scales/, such as df2k (the paper's scale)")
    command.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings file to change")


def run(options: argparse.Namespace) -> None:
    """Merges scales/NAME.yaml into the settings file and prints the changes.

    Raises `ValueError` for an unknown scale, and `ConfigError` for invalid settings, which are not written.
    """
    import io

    from ruamel.yaml import YAML

    from upsr.config import Params, parse, read_yaml
    from upsr.files import atomic

    source = file_of(options.name)
    read_yaml(options.params)  # bounds what aliases and nesting make of the file, which is then read with its comments
    new_values = read_yaml(source)
    yaml = YAML()  # writes as DVC does: other lines stay as they are
    values = yaml.load(options.params)
    changes = list(merge(values, new_values))
    text = io.StringIO()
    yaml.dump(values, text)
    parse(Params, YAML(typ="safe").load(text.getvalue()), str(source))
    with atomic(options.params) as temporary:
        temporary.write_text(text.getvalue())
    print("\n".join(changes) or f"{options.params}: already at scale {options.name}")


def file_of(name: str) -> Path:
    """The file of a scale. Raises `ValueError` for an unknown one."""
    source = SCALES / f"{name}.yaml"
    if name == STUDY:
        raise ValueError(f"{source}: a study, not a scale: run `make study`")
    if not source.is_file():
        known = (
            ", ".join(sorted({path.stem for path in SCALES.glob("*.yaml")} - {STUDY}))
            or "none: run it in the project folder"
        )
        raise ValueError(f"{source}: no such scale; available: {known}")
    return source


def load_at(name: str, params: Path) -> "Params":
    """The settings of the file `params` at another scale; the file stays as it is. Raises as `run` does."""
    from upsr.config import Params, parse, read_yaml

    source, values = file_of(name), read_yaml(params)
    for _ in merge(values, read_yaml(source)):
        pass
    return parse(Params, values, str(source))


def merge(values: dict[str, Any], changes: dict[str, Any], path: str = "") -> Iterator[str]:
    """Copies the leaves of nested `changes` into `values`; yields `key: old -> new` for each that differs."""
    for key, new_value in changes.items():
        old = values.get(key)
        if isinstance(new_value, dict) and isinstance(old, dict):
            yield from merge(old, new_value, f"{path}{key}.")
        elif old != new_value:
            values[key] = new_value
            yield f"{path}{key}: {old} -> {new_value}"
