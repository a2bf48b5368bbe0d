"""A sweep: every combination of `sweep.cross` as a DVC experiment, each in a git worktree of its own.

`python -m pipelines.sweep NAME` runs one; flows.py runs all that HEAD does not have yet. The worktrees share DVC's
cache, whose files they link. A worktree stays until its experiment is saved, so that a training that was killed
goes on where it was.
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
from pipelines.stage import run
from upsr.config import ConfigError, Params, load_params, parse
from upsr.files import atomic

PARAMS = Path("params.yaml")
LOCK = Path("dvc.lock")
PLACE = Path(".dvc/tmp/sweep")
METRICS = Path("reports/evaluate/metrics.json")
GRACE_SECONDS = executor.GRACE_SECONDS / 2  # a stage must be gone before who waits for this process kills it
Values = Mapping[str, Any]
"""Dotted keys of params.yaml, and what an experiment sets them to."""


def experiments(cross: Mapping[str, tuple[Any, ...]]) -> dict[str, Values]:
    """All combinations, by the name of their experiment: `variant-residual-dim-48-seed-0`."""
    combinations = [dict(zip(cross, values, strict=True)) for values in product(*cross.values())]
    return {
        "-".join(f"{key.rpartition('.')[2]}-{value}" for key, value in c.items()).replace("/", "-"): c
        for c in combinations
    }


def remaining(params: Params) -> list[str]:
    """The experiments that the commit at hand does not have. Raises `ValueError` before any work for a combination
    that no run could have, and where files differ from the commit, which is what the worktrees show.
    """
    planned = experiments(params.sweep.cross)
    for name, values in planned.items():
        settings = yaml.safe_load(PARAMS.read_text())
        _apply(settings, values)
        parse(Params, settings, f"sweep.cross: {name}")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    if changed:
        raise ValueError(f"a sweep runs what is committed, and {' '.join(changed.split()[1::2])} differs: commit first")
    head = _git("rev-parse", "HEAD")
    refs = _git("for-each-ref", "--format=%(refname)", f"refs/exps/{head[:2]}/{head[2:]}/").split()
    done = {ref.rpartition("/")[2] for ref in refs}
    for name in done & set(planned):
        _remove(_place(name))  # left by a kill in the last moment
    return [name for name in planned if name not in done]


@contextmanager
def recorded(params: Params) -> Iterator[str | None]:
    """The MLflow run that the experiments' runs have as parent, or none where the store is down; the same one for a
    sweep that goes on."""
    kept = PLACE / _git("rev-parse", "HEAD")[:8] / "parent"
    with _run(_git("rev-parse", "--short", "HEAD"), {"cross": params.sweep.cross}, {}, kept) as tracker:
        yield tracker.run_id


def command(name: str, parent: str | None) -> list[str]:
    """Runs one experiment, as a child process."""
    return [sys.executable, "-m", "pipelines.sweep", name, *(["--parent", parent] if parent else [])]


def experiment(name: str, values: Values, parent: str | None) -> None:
    """Runs one experiment in its worktree, saves it and removes the worktree."""
    place = _place(name)
    _prepare(place, values)
    os.environ["DVC_EXP_NAME"] = name  # for the runs of its stages, as DVC's own experiments have it
    tags = {"mlflow.parentRunId": parent} if parent else {}
    with _run(name, dict(values), tags, place / PLACE / "run") as tracker:
        for stage, shared in _shared(place, values).items():
            with _alone(shared):
                _take(stage, shared, place)
                executor.run(executor.repro(stage), cwd=place, log=_say, grace=GRACE_SECONDS)
                _leave(stage, shared, place)
        if (place / METRICS).is_file():
            tracker.metrics(tracking.flatten(json.loads((place / METRICS).read_text()), separator="/"))
    with _alone("save"):  # DVC's references are the same for all worktrees, and two that save at once fail
        executor.run([*executor.DVC, "exp", "save", "--force", "--name", name], cwd=place, log=_say)
    _remove(place)


@contextmanager
def _run(name: str, values: dict[str, Any], tags: dict[str, str], kept: Path) -> Iterator[tracking.Tracker]:
    """A run of `sweep` whose id is kept in a file, so that one that was killed goes on."""
    run_id = kept.read_text() if kept.is_file() else None
    with tracking.start("sweep", name, values, tags, run_id=run_id) as tracker:
        if tracker.run_id:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(tracker.run_id)
        yield tracker


def _place(name: str) -> Path:
    return (PLACE / _git("rev-parse", "HEAD")[:8] / name).resolve()


def _prepare(place: Path, values: Values) -> None:
    """A worktree of HEAD with the experiment's values, this checkout's cache, and what DVC does not track linked."""
    fresh = not (place / PARAMS).is_file()
    if fresh:
        _remove(place)
        with _alone("worktree"):
            executor.run(["git", "worktree", "add", "--force", "--detach", str(place)], cwd=Path(), log=_say)
    local = Path(".dvc/config.local")
    (place / local).write_bytes(local.read_bytes() if local.is_file() else b"")
    cache = subprocess.check_output([*executor.DVC, "cache", "dir"], text=True).strip()
    executor.run([*executor.DVC, "cache", "dir", "--local", str(Path(cache).resolve())], cwd=place, log=_say)
    if fresh and LOCK.is_file():  # what this checkout has made
        shutil.copy(LOCK, place)
        executor.run([*executor.DVC, "checkout", "--allow-missing"], cwd=place, log=_say)
    edit = YAML()
    edit.preserve_quotes, edit.width = True, 4096
    settings = edit.load(PARAMS.read_text())
    _apply(settings, values)
    edit.dump(settings, place / PARAMS)
    for path in _untracked(settings):
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        if not (place / path).exists():
            (place / path).symlink_to(path.resolve())


def _untracked(settings: Mapping[str, Any]) -> list[Path]:
    """What no stage makes and a worktree does not have: archives, benchmarks, the user's own pictures."""
    outs = [name for stage in _stages(Path()).values() for name in _names(stage.get("outs", []))]
    found = [*Path("data").glob("*"), *Path("data/benchmarks").glob("*")]
    own = [path for path in found if not any(f"{out}/".startswith(f"{path.as_posix()}/") for out in outs)]
    folder = settings["data"]["folder"]
    return own + ([Path(folder)] if folder and not Path(folder).is_absolute() else [])


def _apply(settings: dict[str, Any], values: Values) -> None:
    for key, value in values.items():
        *sections, last = key.split(".")
        place: Any = settings
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            raise ConfigError(f"{PARAMS}: sweep.cross: `{key}` is no key of {PARAMS}: correct its spelling")
        place[last] = value


def _shared(place: Path, values: Values) -> dict[str, str]:
    """The stages in order, each with a name that is the same for experiments of which it makes the same: what one has
    made, the others take from the cache, rather than train the same network beside it."""
    stages, graph = _stages(place), executor.graph(place)
    declared: dict[str, set[str]] = {}  # by the stage and all that it depends on
    for stage in executor.in_order(graph):
        declared[stage] = set(_names(stages[stage].get("params", []))).union(*(declared[s] for s in graph[stage]))
    return {stage: f"{stage}-{_digest(values, keys)}" for stage, keys in declared.items()}


def _take(stage: str, shared: str, place: Path) -> None:
    """What another experiment has made of the same values. DVC's own run cache leaves out what is `persist: true`."""
    known = place.parent / f"{shared}.yaml"
    if not known.is_file():
        return
    path = place / LOCK
    lock: dict[str, Any] = {"schema": "2.0", "stages": {}}
    if path.is_file():
        lock = yaml.safe_load(path.read_text())
    lock["stages"][stage] = yaml.safe_load(known.read_text())
    path.write_text(yaml.safe_dump(lock, sort_keys=False))
    executor.run([*executor.DVC, "checkout", "--force", stage], cwd=place, log=_say)


def _leave(stage: str, shared: str, place: Path) -> None:
    entry = yaml.safe_load((place / LOCK).read_text())["stages"].get(stage)
    with atomic(place.parent / f"{shared}.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(entry, sort_keys=False))


def _digest(values: Values, declared: set[str]) -> str:
    """Of the values that concern any of the declared keys."""
    mine = {key: value for key, value in values.items() if any(_concerns(d, key) for d in declared)}
    return hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()[:16]


def _concerns(declared: str, key: str) -> bool:
    return declared == str(PARAMS) or f"{declared}.".startswith(f"{key}.") or f"{key}.".startswith(f"{declared}.")


def _stages(place: Path) -> dict[str, dict[str, Any]]:
    return yaml.safe_load((place / "dvc.yaml").read_text())["stages"]


def _names(entries: list[Any]) -> list[str]:
    """Entries of dvc.yaml, of which some carry options."""
    return [name for entry in entries for name in (entry if isinstance(entry, dict) else [entry])]


@contextmanager
def _alone(what: str) -> Iterator[None]:
    """Keeps the other experiments of this checkout from doing the same at once."""
    PLACE.mkdir(parents=True, exist_ok=True)
    with open(PLACE / f"{what}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove(place: Path) -> None:
    if place.exists():
        with _alone("worktree"):
            executor.run(["git", "worktree", "remove", "--force", "--force", str(place)], cwd=Path(), log=_say)


def _git(*arguments: str) -> str:
    return subprocess.check_output(["git", *arguments], text=True).strip()


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs one experiment of params.yaml's sweep.")
    planned = experiments(load_params().sweep.cross)
    parser.add_argument("name", choices=planned, metavar="NAME", help=", ".join(planned))
    parser.add_argument("--parent", help="MLflow's id of the sweep's run")
    options = parser.parse_args()
    experiment(options.name, planned[options.name], options.parent)


if __name__ == "__main__":
    run(main)
