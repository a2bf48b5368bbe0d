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
from pipelines.contrasts import KEYS as IMAGE_KEYS
from pipelines.contrasts import Declared, contrast_table, forest
from upsr.evaluation.metrics import higher_is_better
from upsr.files import atomic

KEYS = ("uncertainty.variant", "unet.dim")
# Parameters that cannot change the figures.
IRRELEVANT = ("train.workers", "train.log_every", "train.preview_every", "train.save_every", "evaluate.workers")
BASELINES = ("_bicubic", "_atd")  # suffixes of the other models' metrics
PRIMARY = ("psnr", "lpips")  # distortion and perception, the axes of the plot
PER_IMAGE = "per_image.json"  # a table that the stage `evaluate` logs


class CompareError(ValueError):
    """No comparable runs, no such setting, or MLflow cannot be reached. The message is one line."""


@dataclass(frozen=True)
class Run:
    """A finished MLflow run; `figures` has the last value of each metric."""

    id: str
    params: dict[str, str]
    tags: dict[str, str]
    figures: dict[str, float]


def compare(
    benchmark: str, folder: Path, experiment: str = "evaluate", against: str = "uncertainty.variant=residual"
) -> Path:
    """Writes `variants.md`, `variants.png` and `variants-forest.png` to `folder`, and returns the path of the first.

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
    plot(table, columns, _reference(runs, benchmark), benchmark, folder / "variants.png")
    forest_path = folder / "variants-forest.png"
    forest_path.unlink(missing_ok=True)
    if not contrasts.empty:
        forest(contrasts, forest_path)
    # page
    page = folder / "variants.md"
    text = markdown(table, columns, benchmark, len(runs), excluded)
    with atomic(page) as temporary:
        temporary.write_text(text + contrasts_markdown(contrasts, against, unpaired, without_table), encoding="utf-8")
    return page


def finished_runs(experiment: str) -> list[Run]:
    """The finished runs of an experiment, newest first; empty if the experiment does not exist.

    Raises `CompareError` if MLflow cannot be reached.
    """
    with _reachable():
        found = _search(experiment)
    return [Run(r.info.run_id, dict(r.data.params), dict(r.data.tags), dict(r.data.metrics)) for r in found]


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
    store = tracking.client()
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
    return [n for n in names if not n.endswith(BASELINES) and "_over_" not in n and n != "seconds"]


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
        store = tracking.client()
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
    names = table["picture"].str.extract("^(?P<benchmark>[^/]+)/(?P<picture>.+)/(?P<model>[^/]+)$")
    metrics = table.drop(columns=["picture", "seconds"], errors="ignore")
    rows = pd.concat([names, metrics], axis=1)
    return rows[(rows["benchmark"] == benchmark) & (rows["model"] == "upsr")].drop(columns="model")


def _reference(runs: Sequence[Run], benchmark: str) -> tuple[float, float]:
    """PSNR and LPIPS of bicubic, which is the same in all runs."""
    figures = runs[0].figures
    return figures[f"{benchmark}/psnr_bicubic"], figures[f"{benchmark}/lpips_bicubic"]


def markdown(table: pd.DataFrame, columns: list[str], benchmark: str, runs: int, excluded: list[str]) -> str:
    """The page: how many runs, the table with the best of each metric in bold, the plot, and what was excluded."""
    metrics = [str(c) for c in table if f"{c} std" in table]
    best = {m: table[m].max() if higher_is_better(m) else table[m].min() for m in metrics}

    def cell(row: Any, metric: str) -> str:
        spread = row[f"{metric} std"]
        text = f"{row[metric]:.4f}" + ("" if pd.isna(spread) else f" ± {spread:.4f}")
        return f"**{text}**" if row[metric] == best[metric] else text

    head = [*columns, "seeds", *(f"{m} {'↑' if higher_is_better(m) else '↓'}" for m in metrics)]
    lines = [f"# Uncertainty variants on {benchmark}", ""]
    lines += [f"UPSR in {runs} runs: mean ± standard deviation over seeds. The best mean is bold.", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for _, row in table.iterrows():
        cells = [str(row[c]) for c in (*columns, "seeds")] + [cell(row, m) for m in metrics]
        lines.append("| " + " | ".join(cells) + " |")
    if excluded:
        lines += ["", f"Left out: {', '.join(excluded)}."]
    return "\n".join([*lines, "", "![PSNR against LPIPS](variants.png)", ""])


def contrasts_markdown(contrasts: pd.DataFrame, against: str, unpaired: list[str], without_table: list[str]) -> str:
    """The page's section on contrasts: the table, each row in words, the forest plot, and what was left out."""
    lines = ["", "## Contrasts", ""]
    if contrasts.empty:
        lines += [f"None: no two arms with values per image differ by `{against}` alone.", ""]
    else:
        lines += [
            f"Each arm minus the arm that differs from it by `{against}` alone, paired by training seed and image. The "
            "95 % intervals cover the variation of both, but those of two seeds can be too narrow. Holm's "
            f"correction is over all contrasts of {' and '.join(PRIMARY)}, and over those of the other metrics.",
            "",
            "| contrast | metric | difference | 95 % interval | p after Holm | verdict | seeds | images |",
            "|" + " --- |" * 8,
            *(_contrast_line(row) for _, row in contrasts.iterrows()),
            "",
            *(f"- {text}" for text in contrasts["sentence"]),
            "",
            "![Forest plot of the contrasts](variants-forest.png)",
            "",
        ]
    if unpaired:
        lines += [f"Without an arm to compare with: {', '.join(unpaired)}.", ""]
    if without_table:
        lines += [f"Left out of the contrasts, without values per image: {', '.join(without_table)}.", ""]
    return "\n".join(lines)


def _contrast_line(row: pd.Series) -> str:
    numbers = row[["difference", "low", "high", "p_holm"]]
    difference, low, high, p = ("" if pd.isna(x) else f"{x:.4f}" for x in numbers)
    reach = f"{low} to {high}" if low else ""
    cells = [row["contrast"], row["metric"], difference, reach, p, row["verdict"], row["seeds"], row["images"]]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def plot(table: pd.DataFrame, columns: list[str], bicubic: tuple[float, float], benchmark: str, path: Path) -> None:
    """PSNR against LPIPS, with error bars of one standard deviation; better is up and to the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for _, row in table.iterrows():
        label = ", ".join(str(row[c]) for c in columns)
        spread = {"xerr": row["psnr std"], "yerr": row["lpips std"]}
        known = {k: v for k, v in spread.items() if not pd.isna(v)}
        axes.errorbar(row["psnr"], row["lpips"], **known, fmt="o", capsize=3, label=label)
    axes.plot(*bicubic, "kx", label="bicubic")
    axes.set(xlabel="PSNR (dB) → better", ylabel="LPIPS → better (axis inverted)", title=f"Variants on {benchmark}")
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
