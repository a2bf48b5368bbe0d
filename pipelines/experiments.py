"""`make experiments`: the experiments of the last commit, what differs in each, and their headline figures.

`dvc exp show` has a column for every parameter and every hash; this table has 80 columns.
"""

import json
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.executor import DVC
from pipelines.stage import run
from pipelines.tracking import flatten
from upsr.evaluation.statistics import HEADLINE

WIDTH = 80
CODE = ("pipelines/", "upsr/")
LABEL = WIDTH - 10 * len(HEADLINE)


@dataclass(frozen=True)
class Experiment:
    """One line of `dvc exp show`: the flat parameters, the digests of the code, and BENCHMARK/METRIC -> figure."""

    name: str
    params: dict[str, Any]
    code: dict[str, str]
    figures: dict[str, float]


def read(states: list[dict[str, Any]]) -> list[Experiment]:
    """The output of `dvc exp show --json`: the last commit, its experiments, and the work tree if it is none of them.

    Raises `ValueError` for what DVC could not read.
    """
    workspace, *commits = states
    rows = [_experiment(commit, f"{commit['name']} {commit['rev'][:7]}") for commit in commits]
    for found in [found for commit in commits for found in commit["experiments"] or []]:
        state = (found["executor"] or {}).get("state", "success")
        has_run = state == "success"  # of others DVC shows the commit's figures
        rows.append(_experiment(found["revs"][0], found["name"] + ("" if has_run else f" ({state})"), has_run))
    here = _experiment(workspace, "work tree (figures of its last run)")
    known = [(row.params, row.code) for row in rows]
    return rows if (here.params, here.code) in known else [*rows, here]


def _experiment(state: dict[str, Any], name: str, has_run: bool = True) -> Experiment:
    data = state["data"]
    if data is None:
        raise ValueError(f"{name}: {state['error']['msg']}: correct it, or remove the experiment with `dvc exp remove`")
    params, metrics = (_values(data[kind]) for kind in ("params", "metrics"))
    return Experiment(
        name,
        flatten(params),
        {path: dep["hash"] for path, dep in data["deps"].items() if path.startswith(CODE) and dep["hash"]},
        {key: value for key, value in metrics.items() if has_run and key.rpartition("/")[2] in HEADLINE},
    )


def _values(files: dict[str, Any]) -> dict[str, Any]:
    """The keys of all files; none of a file that does not exist."""
    return {key: value for file in files.values() for key, value in file.get("data", {}).items()}


def differences(own: Experiment, base: Experiment) -> list[str]:
    """`key=value`, as for `-S`, of each parameter that differs from the base, and the paths of other code.

    A base that never ran has no code to differ from.
    """
    keys = [key for key in base.params | own.params if own.params.get(key) != base.params.get(key)]
    values = [f"{key}={_text(own.params.get(key))}" for key in keys]
    return values + [path for path, digest in own.code.items() if base.code.get(path, digest) != digest]


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace('"', "")


def table(rows: list[Experiment]) -> Iterator[str]:
    """The lines of the table; `*` marks the best figure of a benchmark where they differ."""
    yield "".join([f"{'* is the best':{LABEL}}", *(f"{metric.upper():>9} " for metric in HEADLINE)])
    best: dict[str, str] = {}
    for key in dict.fromkeys(key for row in rows for key in row.figures):
        values = {row.figures[key] for row in rows if key in row.figures}
        if len({_shown(key, value) for value in values}) > 1:
            best[key] = _shown(key, HEADLINE[key.rpartition("/")[2]](values))
    for row in rows:
        changes = ", ".join(differences(row, rows[0]))
        text = f"{row.name}: {changes}" if changes else row.name
        yield from textwrap.wrap(text, WIDTH, subsequent_indent="    ", break_on_hyphens=False)
        for benchmark in dict.fromkeys(key.rpartition("/")[0] for key in row.figures):
            cells = [_cell(row.figures, best, f"{benchmark}/{metric}") for metric in HEADLINE]
            yield "".join([f"    {benchmark[: LABEL - 4]:{LABEL - 4}}", *cells]).rstrip()


def _shown(key: str, value: float) -> str:
    return f"{value:.{2 if key.endswith('/psnr') else 4}f}"


def _cell(figures: dict[str, float], best: dict[str, str], key: str) -> str:
    if key not in figures:
        return f"{'-':>9} "
    text = _shown(key, figures[key])
    return f"{text:>9}{'*' if text == best.get(key) else ' '}"


def main() -> None:
    done = subprocess.run([*DVC, "exp", "show", "--json"], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"dvc exp show: {done.stderr.strip().rpartition(chr(10))[2]}")
    print("\n".join(table(read(json.loads(done.stdout)))))


if __name__ == "__main__":
    run(main)
