"""A sweep: every combination of `sweep.cross` as a DVC experiment, each in its own git worktree.

`python -m pipelines.sweep NAME` runs one; flows.py runs all that HEAD does not have yet. The worktrees link files from
the shared DVC cache. A worktree is kept until its experiment is saved, so that a killed training can resume.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML

from pipelines import executor, tracking
from pipelines.compare import compare
from pipelines.stage import run
from upsr.config import ConfigError, Params, load_params, parse, read_yaml
from upsr.files import atomic

PARAMS = Path("params.yaml")
LOCK = Path("dvc.lock")
WORKTREES = Path(".dvc/tmp/sweep")
METRICS = Path("reports/evaluate/metrics.json")
HOLDOUT = "holdout"  # the benchmark of `evaluate` that every source of images has
GRACE_SECONDS = executor.GRACE_SECONDS / 2  # the stage must end before the flow kills this process
Values = Mapping[str, Any]
"""Dotted keys of params.yaml -> the values of an experiment."""


def experiments(cross: Mapping[str, tuple[Any, ...]]) -> dict[str, Values]:
    """Experiment name -> values, for all combinations. A name reads `variant-residual-dim-48-seed-0`."""
    combinations = [dict(zip(cross, values, strict=True)) for values in product(*cross.values())]
    return {
        "-".join(f"{key.rpartition('.')[2]}-{value}" for key, value in c.items()).replace("/", "-"): c
        for c in combinations
    }


def short(params: Params, names: list[str]) -> str:
    """The first of some experiments by its values alone, such as `residual-48-0`, and how many more there are."""
    first = "-".join(map(str, experiments(params.sweep.cross)[names[0]].values()))
    return f"{first} and {len(names) - 1} more" if len(names) > 1 else first


def remaining(params: Params) -> list[str]:
    """The names of the experiments that HEAD does not have yet.

    Raises `ConfigError` for an invalid combination, and `ValueError` for uncommitted changes, which worktrees of HEAD
    would not have.
    """
    planned = experiments(params.sweep.cross)
    for name, values in planned.items():
        settings = read_yaml(PARAMS)
        apply(settings, values, f"{PARAMS}: sweep.cross")
        parse(Params, settings, f"sweep.cross: {name}")
    changed = _git("diff", "--name-only", "HEAD", "--", ".", ":!dvc.lock")
    if changed:
        files = ", ".join(changed.splitlines())
        raise ValueError(f"sweep: uncommitted changes in {files}: commit them first, a sweep runs HEAD")
    head = _git("rev-parse", "HEAD")
    refs = _git("for-each-ref", "--format=%(refname)", f"refs/exps/{head[:2]}/{head[2:]}/").split()
    done = {ref.rpartition("/")[2] for ref in refs}
    for name in done & set(planned):
        _remove(_worktree(name))  # left over if the run was killed right after saving
    return [name for name in planned if name not in done]


@contextmanager
def recorded(params: Params) -> Iterator[str | None]:
    """The id of the sweep's MLflow run, the parent of the experiments' runs; None while the store is down.

    A resumed sweep continues the same run. When all experiments are done, the run gets the page and plots of
    `upsr compare`.
    """
    id_file = WORKTREES / _git("rev-parse", "HEAD")[:8] / "parent"
    with _run(_git("rev-parse", "--short", "HEAD"), {"cross": params.sweep.cross}, id_file) as tracker:
        yield tracker.run_id
        try:
            tracker.artifact(compare(HOLDOUT, id_file.parent / "compare").parent)
        except Exception as error:  # the experiments are done, whatever their page lacks
            _log(f"no page of `upsr compare`: {tracking.one_line(error)}")


def command(name: str, parent: str | None) -> list[str]:
    """The command that runs one experiment."""
    return [sys.executable, "-m", "pipelines.sweep", name, *(["--parent", parent] if parent else [])]


def experiment(name: str, values: Values, parent: str | None) -> None:
    """Runs one experiment in its worktree, saves it and removes the worktree."""
    worktree = _worktree(name)
    _prepare(worktree, values)
    executor.mend_locks(worktree)
    os.environ["DVC_EXP_NAME"] = name  # the tag of the stages' MLflow runs, as in DVC's own experiments
    with _run(name, dict(values), worktree / WORKTREES / "run", parent) as tracker:
        for stage, key in _stage_keys(worktree, values).items():
            with _locked(key):
                _restore(stage, key, worktree)
                executor.run(executor.repro(stage), cwd=worktree, log=_log, grace=GRACE_SECONDS)
                _share(stage, key, worktree)
        if (worktree / METRICS).is_file():
            tracker.metrics(json.loads((worktree / METRICS).read_text()))
    with _locked("save"):  # all worktrees share DVC's references: two concurrent saves would fail
        executor.run([*executor.DVC, "exp", "save", "--force", "--name", name], cwd=worktree, log=_log)
    _remove(worktree)


@contextmanager
def _run(name: str, values: dict[str, Any], id_file: Path, parent: str | None = None) -> Iterator[tracking.Tracker]:
    """An MLflow run in the experiment `sweep`. Its id is stored in `id_file`, so that a killed run can continue."""
    run_id = id_file.read_text() if id_file.is_file() else None
    with tracking.start("sweep", name, values, {}, run_id, parent) as tracker:
        if tracker.run_id:
            id_file.parent.mkdir(parents=True, exist_ok=True)
            id_file.write_text(tracker.run_id)
        yield tracker


def _worktree(name: str) -> Path:
    return (WORKTREES / _git("rev-parse", "HEAD")[:8] / name).resolve()


def _prepare(worktree: Path, values: Values) -> None:
    """Creates the worktree of HEAD: the experiment's values, this checkout's DVC cache, links to untracked data."""
    is_new = not (worktree / PARAMS).is_file()
    if is_new:
        _remove(worktree)
        with _locked("worktree"):
            executor.run(["git", "worktree", "add", "--force", "--detach", str(worktree)], cwd=Path(), log=_log)
    # DVC's configuration and cache
    config = Path(".dvc/config.local")
    (worktree / config).write_bytes(config.read_bytes() if config.is_file() else b"")
    cache = subprocess.check_output([*executor.DVC, "cache", "dir"], text=True).strip()
    executor.run([*executor.DVC, "cache", "dir", "--local", str(Path(cache).resolve())], cwd=worktree, log=_log)
    if is_new and LOCK.is_file():  # the outputs that this checkout has already
        shutil.copy(LOCK, worktree)
        executor.run([*executor.DVC, "checkout", "--allow-missing"], cwd=worktree, log=_log)
    # params.yaml with its comments, written as DVC writes it
    yaml_file = YAML()
    settings = yaml_file.load(PARAMS.read_text())
    apply(settings, values, f"{PARAMS}: sweep.cross")
    yaml_file.dump(settings, worktree / PARAMS)
    # untracked data
    for path in _untracked(settings):
        (worktree / path).parent.mkdir(parents=True, exist_ok=True)
        if not (worktree / path).exists():
            (worktree / path).symlink_to(path.resolve())


def _untracked(settings: Mapping[str, Any]) -> list[Path]:
    """Data that no stage writes and a new worktree lacks: archives, benchmarks, the user's own images."""
    outs = [name for stage in _stages(Path()).values() for name in _names(stage.get("outs", []))]
    paths = [*Path("data").glob("*"), *Path("data/benchmarks").glob("*")]
    untracked = [path for path in paths if not any(f"{out}/".startswith(f"{path.as_posix()}/") for out in outs)]
    folder = settings["data"]["folder"]
    return untracked + ([Path(folder)] if folder and not Path(folder).is_absolute() else [])


def apply(settings: dict[str, Any], values: Values, where: str) -> None:
    """Sets dotted keys in nested settings. Raises `ConfigError`, which begins with `where`, for an unknown key."""
    for key, value in values.items():
        *sections, last = key.split(".")
        node: Any = settings
        for section in sections:
            node = node.get(section) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            raise ConfigError(f"{where}: unknown key `{key}`: correct its spelling")
        node[last] = value


def _stage_keys(worktree: Path, values: Values) -> dict[str, str]:
    """Stage -> key, in topological order.

    A stage has the same key in experiments where it has the same outputs: one runs it, the others restore them.
    """
    stages, graph = _stages(worktree), executor.graph(worktree)
    declared: dict[str, set[str]] = {}  # params of the stage and of all stages it depends on
    for stage in executor.in_order(graph):
        declared[stage] = set(_names(stages[stage].get("params", []))).union(*(declared[s] for s in graph[stage]))
    return {stage: f"{stage}-{_digest(values, keys)}" for stage, keys in declared.items()}


def _restore(stage: str, key: str, worktree: Path) -> None:
    """Restores the outputs that another experiment shared. DVC's run cache does not cover `persist: true` outputs."""
    shared = worktree.parent / f"{key}.yaml"
    if not shared.is_file():
        return
    path = worktree / LOCK
    lock: dict[str, Any] = {"schema": "2.0", "stages": {}}
    if path.is_file():
        lock = yaml.safe_load(path.read_text())
    lock["stages"][stage] = yaml.safe_load(shared.read_text())
    path.write_text(yaml.safe_dump(lock, sort_keys=False))
    executor.run([*executor.DVC, "checkout", "--force", stage], cwd=worktree, log=_log)


def _share(stage: str, key: str, worktree: Path) -> None:
    """Writes the stage's entry of dvc.lock for `_restore` in other experiments."""
    entry = yaml.safe_load((worktree / LOCK).read_text())["stages"].get(stage)
    with atomic(worktree.parent / f"{key}.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(entry, sort_keys=False))


def _digest(values: Values, declared: set[str]) -> str:
    """Digest of the values that affect any of the declared keys."""
    relevant = {key: value for key, value in values.items() if any(_overlap(d, key) for d in declared)}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]


def _overlap(declared: str, key: str) -> bool:
    """True if one dotted key contains the other."""
    return declared == str(PARAMS) or f"{declared}.".startswith(f"{key}.") or f"{key}.".startswith(f"{declared}.")


def _stages(checkout: Path) -> dict[str, dict[str, Any]]:
    return yaml.safe_load((checkout / "dvc.yaml").read_text())["stages"]


def _names(entries: list[Any]) -> list[str]:
    """The names in a list of dvc.yaml, where an entry with options is a mapping."""
    return [name for entry in entries for name in (entry if isinstance(entry, dict) else [entry])]


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """A lock shared by the experiments of this checkout."""
    WORKTREES.mkdir(parents=True, exist_ok=True)
    with open(WORKTREES / f"{name}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove(worktree: Path) -> None:
    if worktree.exists():
        with _locked("worktree"):
            executor.run(["git", "worktree", "remove", "--force", "--force", str(worktree)], cwd=Path(), log=_log)


def _git(*arguments: str) -> str:
    return subprocess.check_output(["git", *arguments], text=True).strip()


def _log(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run one experiment of the sweep in params.yaml.")
    planned = experiments(load_params().sweep.cross)
    parser.add_argument("name", choices=planned, metavar="NAME", help=", ".join(planned))
    parser.add_argument("--parent", help="MLflow id of the sweep's run")
    options = parser.parse_args()
    experiment(options.name, planned[options.name], options.parent)


if __name__ == "__main__":
    run(main)
