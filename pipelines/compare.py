"""Uncertainty variants side by side, from the evaluations that MLflow holds: what `upsr compare` writes.

A line of the table is one setting; its figures are means over seeds. What else differs between runs than the variant,
the width and the seed gets a column of its own, so that nothing is compared that only looks alike.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines import tracking
from upsr.evaluation.metrics import higher_is_better
from upsr.files import atomic

KEYS = ("uncertainty.variant", "unet.dim")
# What changes the time or the look of a run, but not what it measures.
IDLE = ("train.workers", "train.log_every", "train.preview_every", "train.save_every", "evaluate.workers")
OTHERS = ("_bicubic", "_atd")  # figures of the models that stand beside UPSR


class CompareError(ValueError):
    """Runs that cannot be compared, in one line."""


@dataclass(frozen=True)
class Run:
    """A finished run, as it was recorded; the newest value of each figure."""

    params: dict[str, str]
    tags: dict[str, str]
    figures: dict[str, float]


def compare(benchmark: str, folder: Path, experiment: str = "evaluate") -> Path:
    """Writes `variants.md` and `variants.png` below `folder`, and returns the former.

    Raises `CompareError` where no run measured the benchmark.
    """
    runs, left_out = comparable(finished_runs(experiment), benchmark)
    if not runs:
        raise CompareError(f"{experiment}: no run in MLflow has figures of `{benchmark}`: run `dvc exp run` first")
    columns, table = over_seeds(runs, benchmark)
    page = folder / "variants.md"
    plot(table, columns, _reference(runs, benchmark), benchmark, folder / "variants.png")
    with atomic(page) as temporary:
        temporary.write_text(markdown(table, columns, benchmark, len(runs), left_out), encoding="utf-8")
    return page


def finished_runs(experiment: str) -> list[Run]:
    """The finished runs of an experiment, newest first; none where there is no such experiment."""
    try:
        return [Run(dict(r.data.params), dict(r.data.tags), dict(r.data.metrics)) for r in _search(experiment)]
    except Exception as error:
        if tracking.may_pass(error):
            raise CompareError(f"MLflow cannot be reached: {' '.join(str(error).split())[:200]}") from None
        raise


def _search(experiment: str) -> list[Any]:
    """MLflow's own records, page by page."""
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
    """The newest run of each setting and seed that measured the same pictures as the newest run of all, with the
    same settings' names; and why others are left out. `runs` are newest first."""
    measured = [run for run in runs if any(name.startswith(f"{benchmark}/") for name in run.figures)]
    kept: dict[tuple[str, ...], Run] = {}
    reasons = {"other pictures": 0, "settings of another version": 0, "the same settings since": 0}
    for run in measured:
        first = measured[0]
        setting = tuple(run.params.get(key, "") for key in sorted(first.params) if key not in IDLE)
        if run.tags.get(f"data.{benchmark}") != first.tags.get(f"data.{benchmark}"):
            reasons["other pictures"] += 1
        elif run.params.keys() != first.params.keys():
            reasons["settings of another version"] += 1
        elif setting in kept:
            reasons["the same settings since"] += 1
        else:
            kept[setting] = run
    return list(kept.values()), [f"{count} with {reason}" for reason, count in reasons.items() if count]


def over_seeds(runs: Sequence[Run], benchmark: str) -> tuple[list[str], pd.DataFrame]:
    """The columns that tell settings apart, and one row a setting: these, `seeds`, and `mean` and `std` of UPSR's
    figures (columns `metric`, `metric std`; the latter is missing for a single seed)."""
    params = pd.DataFrame([run.params for run in runs])
    names = [str(c) for c in params]
    differing = [c for c in names if params[c].nunique() > 1 and c not in (*KEYS, *IDLE, "seed")]
    columns = [*KEYS, *sorted(differing)]
    own = _own_metrics(runs, benchmark)
    values = pd.DataFrame([{m: run.figures.get(f"{benchmark}/{m}") for m in own} for run in runs])
    groups = pd.concat([params[columns], values], axis=1).groupby(columns, sort=True)
    spread = groups[own].std().add_suffix(" std")
    table = pd.concat([groups.size().rename("seeds"), groups[own].mean(), spread], axis=1)
    return columns, table.reset_index()


def _own_metrics(runs: Iterable[Run], benchmark: str) -> list[str]:
    """UPSR's metrics on a benchmark, in the order they came in."""
    names = dict.fromkeys(name.removeprefix(f"{benchmark}/") for run in runs for name in run.figures
                          if name.startswith(f"{benchmark}/"))  # fmt: skip
    return [n for n in names if not n.endswith(OTHERS) and "_over_" not in n and n != "seconds"]


def _reference(runs: Sequence[Run], benchmark: str) -> tuple[float, float]:
    """PSNR and LPIPS of bicubic, which no setting changes."""
    figures = runs[0].figures
    return figures[f"{benchmark}/psnr_bicubic"], figures[f"{benchmark}/lpips_bicubic"]


def markdown(table: pd.DataFrame, columns: list[str], benchmark: str, runs: int, left_out: list[str]) -> str:
    """The page: what was compared, the table with the best of each metric in bold, the plot."""
    metrics = [str(c) for c in table if f"{c} std" in table]
    best = {m: table[m].max() if higher_is_better(m) else table[m].min() for m in metrics}

    def cell(row: Any, metric: str) -> str:
        spread = row[f"{metric} std"]
        text = f"{row[metric]:.4f}" + ("" if pd.isna(spread) else f" ± {spread:.4f}")
        return f"**{text}**" if row[metric] == best[metric] else text

    head = [*columns, "seeds", *(f"{m} {'↑' if higher_is_better(m) else '↓'}" for m in metrics)]
    lines = [f"# Uncertainty variants on {benchmark}", ""]
    lines += [f"UPSR's figures of {runs} runs, mean ± standard deviation over seeds; the best mean is bold.", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for _, row in table.iterrows():
        cells = [str(row[c]) for c in (*columns, "seeds")] + [cell(row, m) for m in metrics]
        lines.append("| " + " | ".join(cells) + " |")
    if left_out:
        lines += ["", f"Left out: {', '.join(left_out)}."]
    return "\n".join([*lines, "", "![PSNR against LPIPS](variants.png)", ""])


def plot(table: pd.DataFrame, columns: list[str], bicubic: tuple[float, float], benchmark: str, path: Path) -> None:
    """PSNR against LPIPS, with bars of one standard deviation; up and to the right is better."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for _, row in table.iterrows():
        label = ", ".join(str(row[c]) for c in columns)
        spread = {"xerr": row["psnr std"], "yerr": row["lpips std"]}
        known = {k: v for k, v in spread.items() if not pd.isna(v)}
        axes.errorbar(row["psnr"], row["lpips"], **known, fmt="o", capsize=3, label=label)
    axes.plot(*bicubic, "kx", label="bicubic")
    axes.set(xlabel="PSNR (dB) → better", ylabel="LPIPS → better (less is above)", title=f"Variants on {benchmark}")
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)
