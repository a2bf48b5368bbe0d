"""`upsr compare`: uncertainty variants side by side, from the evaluation runs in MLflow.

Each row of the table is one setting, with means over seeds. Any other parameter that differs between runs gets its own
column, so runs that differ are never averaged. Contrasts test the differences between settings.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines import tracking
from pipelines.compare_page import PRIMARY, contrasts_markdown, has_plot, html, markdown, plot
from pipelines.contrasts import KEYS as IMAGE_KEYS
from pipelines.contrasts import Declared, contrast_table, forest
from upsr.files import atomic

KEYS = ("uncertainty.variant", "unet.dim")
# Parameters that cannot change the figures of a benchmark.
IRRELEVANT = (
    *("train.workers", "train.log_every", "train.preview_every", "train.save_every"),
    *("evaluate.workers", "evaluate.benchmarks"),
)
BICUBIC = "_bicubic"
BASELINES = (BICUBIC, "_atd")  # suffixes: of UPSR's differences, and up to 0.2.0 of other models' metrics in its run
PER_IMAGE = "per_image.json"  # a table that the stage `evaluate` logs


class CompareError(ValueError):
    """No comparable runs, no such setting, or MLflow cannot be reached. The message is one line."""


@dataclass(frozen=True)
class Run:
    """UPSR's finished MLflow run. `figures` has the last value of each metric, `bicubic` those of the run beside it."""

    id: str
    params: dict[str, str]
    tags: dict[str, str]
    figures: dict[str, float]
    bicubic: dict[str, float]


def compare(
    benchmark: str, folder: Path, experiment: str = "evaluate", against: str = "uncertainty.variant=residual"
) -> Path:
    """Writes `variants.md`, its two plots, and `compare.html`, all in one, to `folder`. Returns the path of the first.

    `against` is KEY=VALUE: each arm is contrasted with the one that has this value and is otherwise equal. Without such
    a pair there is no forest plot. Raises `CompareError` if no run measured the benchmark, if KEY does not differ
    between runs, or if MLflow cannot be reached.
    """
    runs, excluded = comparable(finished_runs(experiment), benchmark)
    if not runs:
        raise CompareError(f"{experiment}: no run in MLflow has figures of `{benchmark}`: run `dvc exp run` first")
    columns, table = over_seeds(runs, benchmark)
    declared, unpaired = declare(runs, columns, against)
    values, without_table = per_image(runs, columns, benchmark)
    contrasts = contrast_table(values, declared, PRIMARY)
    # plots
    plot_path, forest_path = folder / "variants.png", folder / "variants-forest.png"
    for path in (plot_path, forest_path):
        path.unlink(missing_ok=True)
    if has_plot(table):
        plot(table, columns, _reference(runs, benchmark), benchmark, plot_path)
    if not contrasts.empty:
        forest(contrasts, forest_path)
    # pages
    page = folder / "variants.md"
    text = markdown(table, columns, benchmark, len(runs), excluded)
    text += contrasts_markdown(contrasts, against, unpaired, without_table)
    for path, contents in ((page, text), (folder / "compare.html", html(text, folder))):
        with atomic(path) as temporary:
            temporary.write_text(contents, encoding="utf-8")
    return page


def finished_runs(experiment: str) -> list[Run]:
    """UPSR's finished runs of an experiment, newest first; empty if the experiment does not exist.

    Raises `CompareError` if MLflow cannot be reached, and `DataError` if there is no store.
    """
    with _reachable():
        found = _search(experiment)
    beside = {_parent(r): dict(r.data.metrics) for r in found if r.data.tags.get("model") == "bicubic"}
    return [_run(r, beside.get(_parent(r), {})) for r in found if r.data.tags.get("model", "upsr") == "upsr"]


def _parent(run: Any) -> str:
    return str(run.data.tags.get("mlflow.parentRunId", run.info.run_id))


def _run(run: Any, bicubic: dict[str, float]) -> Run:
    figures = dict(run.data.metrics)
    # up to 0.2.0, bicubic's figures are in the same run
    suffixed = {name.removesuffix(BICUBIC): value for name, value in figures.items() if name.endswith(BICUBIC)}
    return Run(run.info.run_id, dict(run.data.params), dict(run.data.tags), figures, bicubic or suffixed)


@contextmanager
def _reachable() -> Iterator[None]:
    """Within the block, a store that cannot be reached is a `CompareError`."""
    try:
        yield
    except Exception as error:
        if tracking.may_pass(error):
            message = f"MLflow at {tracking.store_address()[0]} cannot be reached: {tracking.one_line(error)}"
            raise CompareError(message) from None
        raise


def _search(experiment: str) -> list[Any]:
    """The finished runs as MLflow's records, read page by page."""
    store = tracking.client(create=False)
    found = store.get_experiment_by_name(experiment)
    runs: list[Any] = []
    token: str | None = ""
    while found and token is not None:
        finished, newest_first = "attributes.status = 'FINISHED'", ["attributes.start_time DESC"]
        page = store.search_runs([found.experiment_id], finished, order_by=newest_first, page_token=token or None)
        runs += page
        token = page.token or None
    return runs


def comparable(runs: Sequence[Run], benchmark: str) -> tuple[list[Run], list[str]]:
    """The comparable runs, and the reasons why others are excluded. `runs` are newest first.

    The newest run is the reference: other runs must have measured the same images and have the same parameter names.
    Of runs with equal settings and seed only the newest counts.
    """
    measured = [run for run in runs if any(name.startswith(f"{benchmark}/") for name in run.figures)]
    kept: dict[tuple[str, ...], Run] = {}
    reasons = {"other images": 0, "parameters of another version": 0, "a newer run of the same settings": 0}
    for run in measured:
        newest = measured[0]
        setting = tuple(run.params.get(key, "") for key in sorted(newest.params) if key not in IRRELEVANT)
        if run.tags.get(f"data.{benchmark}") != newest.tags.get(f"data.{benchmark}"):
            reasons["other images"] += 1
        elif run.params.keys() != newest.params.keys():
            reasons["parameters of another version"] += 1
        elif setting in kept:
            reasons["a newer run of the same settings"] += 1
        else:
            kept[setting] = run
    return list(kept.values()), [f"{count} with {reason}" for reason, count in reasons.items() if count]


def over_seeds(runs: Sequence[Run], benchmark: str) -> tuple[list[str], pd.DataFrame]:
    """The columns that identify a setting, and a table with one row per setting.

    The table has these columns, `seeds`, and for each UPSR metric its mean (`metric`) and standard deviation
    (`metric std`, NaN for a single seed).
    """
    params = pd.DataFrame([run.params for run in runs])
    names = [str(c) for c in params]
    differing = [c for c in names if params[c].nunique() > 1 and c not in (*KEYS, *IRRELEVANT, "seed")]
    columns = [*KEYS, *sorted(differing)]
    metrics = _upsr_metrics(runs, benchmark)
    values = pd.DataFrame([{m: run.figures.get(f"{benchmark}/{m}") for m in metrics} for run in runs])
    groups = pd.concat([params[columns], values], axis=1).groupby(columns, sort=True)
    spread = groups[metrics].std().add_suffix(" std")
    table = pd.concat([groups.size().rename("seeds"), groups[metrics].mean(), spread], axis=1)
    return columns, table.reset_index()


def _upsr_metrics(runs: Iterable[Run], benchmark: str) -> list[str]:
    """The names of UPSR's metrics on a benchmark, in order of first appearance."""
    names = dict.fromkeys(name.removeprefix(f"{benchmark}/") for run in runs for name in run.figures
                          if name.startswith(f"{benchmark}/"))  # fmt: skip
    return [n for n in names if not n.endswith(BASELINES) and n != "seconds"]


def arm_names(runs: Sequence[Run], columns: list[str]) -> list[str]:
    """The arm of each run, such as `dynamic (unet.dim 96)`: its variant, and other settings that differ between runs.

    `columns` are those of `over_seeds`.
    """
    variant, *others = columns
    differing = [c for c in others if len({run.params[c] for run in runs}) > 1]
    settings = [", ".join(f"{c} {run.params[c]}" for c in differing) for run in runs]
    return [run.params[variant] + (f" ({s})" if s else "") for run, s in zip(runs, settings, strict=True)]


def declare(runs: Sequence[Run], columns: list[str], against: str) -> tuple[list[Declared], list[str]]:
    """Each arm against the one that differs from it in `against` alone, and the arms for which there is none.

    Raises `CompareError` unless `against` is KEY=VALUE and KEY is one of the columns.
    """
    key, equals, value = against.partition("=")
    if not equals or key not in columns:
        raise CompareError(f"--against {against}: no such setting: write KEY=VALUE, KEY one of {', '.join(columns)}")
    settings = {tuple(run.params[c] for c in columns): name
                for run, name in zip(runs, arm_names(runs, columns), strict=True)}  # fmt: skip
    declared, unpaired = [], []
    for setting, name in sorted(settings.items()):
        reference = tuple(value if c == key else own for c, own in zip(columns, setting, strict=True))
        if reference == setting:
            continue
        if reference in settings:
            declared.append(Declared(f"{name} against {value}", name, settings[reference]))
        else:
            unpaired.append(name)
    return declared, unpaired


def per_image(runs: Sequence[Run], columns: list[str], benchmark: str) -> tuple[pd.DataFrame, list[str]]:
    """UPSR's values on each image, as `contrast_table` reads them, and the runs without a table of them.

    Raises `CompareError` if MLflow cannot be reached.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # else three bars a run
    with _reachable():
        store = tracking.client(create=False)
        tables = [_per_image(store, run, benchmark) for run in runs]
    found, without = [pd.DataFrame(columns=list(IMAGE_KEYS))], []
    for run, arm, table in zip(runs, arm_names(runs, columns), tables, strict=True):
        if table.empty:
            without.append(f"{run.tags['mlflow.runName']} ({run.id})")
        else:
            found.append(table.assign(arm=arm, seed=run.params["seed"]))
    return pd.concat(found, ignore_index=True), without


def _per_image(store: Any, run: Run, benchmark: str) -> pd.DataFrame:
    """The rows of UPSR on the benchmark; empty if the run has no such table."""
    if PER_IMAGE not in {file.path for file in store.list_artifacts(run.id)}:
        return pd.DataFrame()
    with tempfile.TemporaryDirectory() as folder:
        table = pd.read_json(store.download_artifacts(run.id, PER_IMAGE, folder), orient="split")
    if "model" not in run.tags:  # up to 0.2.0, the table has all models
        table = table[table["picture"].str.endswith("/upsr")]
        table["picture"] = table["picture"].str.removesuffix("/upsr")
    names = table["picture"].str.extract("^(?P<benchmark>[^/]+)/(?P<picture>.+)$")
    rows = pd.concat([names, table.drop(columns=["picture", "seconds"], errors="ignore")], axis=1)
    return rows[rows["benchmark"] == benchmark]


def _reference(runs: Sequence[Run], benchmark: str) -> tuple[float, float] | None:
    """PSNR and LPIPS of bicubic, which is the same in all runs; None where no run has them."""
    names = [f"{benchmark}/{metric}" for metric in PRIMARY]
    found = [run.bicubic for run in runs if all(name in run.bicubic for name in names)]
    return (found[0][names[0]], found[0][names[1]]) if found else None
