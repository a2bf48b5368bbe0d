"""`upsr scale`: the settings of another scale put into params.yaml, its comments kept."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upsr.commands import new

if TYPE_CHECKING:
    from upsr.commands import Commands

SCALES = Path("scales")


def add(commands: "Commands") -> None:
    sc = new(commands, "scale", run, "put the settings of another scale into params.yaml; `git checkout` undoes it")
    sc.add_argument("name", help="a file of scales/, as df2k: the paper's")
    sc.add_argument("--params", type=Path, default=Path("params.yaml"), help="the settings to change")


def run(options: argparse.Namespace) -> None:
    """Merges scales/NAME.yaml into the settings file and says what changed. What would not be valid is not written."""
    import io

    from ruamel.yaml import YAML

    from upsr.config import Params, parse
    from upsr.files import atomic

    source = SCALES / f"{options.name}.yaml"
    if not source.is_file():
        known = ", ".join(sorted(path.stem for path in SCALES.glob("*.yaml"))) or "none here: run it in the project"
        raise ValueError(f"{source}: no such scale; there are: {known}")
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 120
    null = "tag:yaml.org,2002:null"
    yaml.representer.add_representer(type(None), lambda representer, _: representer.represent_scalar(null, "null"))
    values = yaml.load(options.params)
    changes = list(merge(values, yaml.load(source)))
    text = io.StringIO()
    yaml.dump(values, text)
    parse(Params, YAML(typ="safe").load(text.getvalue()), str(source))
    with atomic(options.params) as temporary:
        temporary.write_text(text.getvalue())
    print("\n".join(changes) or f"{options.params}: already at scale {options.name}")


def merge(values: dict[str, Any], changes: dict[str, Any], path: str = "") -> Iterator[str]:
    """Puts the leaves of nested `changes` into `values`; tells each as `key: old -> new`."""
    for key, new_value in changes.items():
        old = values.get(key)
        if isinstance(new_value, dict) and isinstance(old, dict):
            yield from merge(old, new_value, f"{path}{key}.")
        elif old != new_value:
            values[key] = new_value
            yield f"{path}{key}: {old} -> {new_value}"
