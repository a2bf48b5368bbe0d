"""The answers of a study: from the figures in docs/study to the tables, plots and sentences of docs/variants.md."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipelines.contrasts import Declared, contrast_table, forest
from upsr.data.benchmarks import locate
from upsr.files import DataError, atomic, read_json

if TYPE_CHECKING:
    from pipelines.study import Plan

PAGE = Path("docs/variants.md")
RESULTS = Path("docs/study")
KINDS = ("clean", "degraded")


def write(plan: "Plan") -> list[Path]:
    """Renews the answers in docs/variants.md and the plots beside the figures; returns the plots.

    An answer stands between `<!-- answer: QUESTION -->` and `<!-- end -->`. Raises `DataError` for a page without one.
    """
    values, facts = load()
    page, plots = PAGE.read_text(encoding="utf-8"), []
    for name in plan.questions:
        block = re.compile(rf"(<!-- answer: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not block.search(page):
            raise DataError(f"{PAGE}: no `<!-- answer: {name} -->` with `<!-- end -->` below it: add both lines")
        text, shown = answer(plan, name, values, facts)
        plots += shown
        page = block.sub(lambda found, text=text: f"{found[1]}{text}{found[2]}", page)  # type: ignore[misc]
    with atomic(PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return plots


def load() -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """The figures of all finished runs, a row per arm, seed, benchmark and image; and the facts of each run."""
    facts = [read_json(path) for path in sorted(RESULTS.glob("*.json"))]
    tables = [
        pd.read_csv(RESULTS / f"{run['arm']}-{run['seed']}.csv").assign(arm=run["arm"], seed=run["seed"])
        for run in facts
    ]
    empty = pd.DataFrame(columns=["arm", "seed", "benchmark", "picture"])
    return (pd.concat(tables, ignore_index=True) if tables else empty), facts


def contrasts(plan: "Plan", question: str, values: pd.DataFrame) -> pd.DataFrame:
    """The table of one question: its contrasts whose arms have been trained with a common seed."""
    seeds = {arm: set(rows["seed"]) for arm, rows in values.groupby("arm")}
    declared = [
        Declared(name, a, b)
        for name, (a, b) in plan.questions[question].contrasts.items()
        if seeds.get(a, set()) & seeds.get(b, set())
    ]
    arms = {arm for contrast in declared for arm in contrast[1:]}
    return contrast_table(values[values["arm"].isin(arms)], declared, plan.primary)


def is_futile(plan: "Plan", question: str, arm: str) -> bool:
    """True if all contrasts of an arm in a question were measured, and are equal in each primary metric."""
    mine = [contrast for contrast, pair in plan.questions[question].contrasts.items() if arm in pair]
    table = contrasts(plan, question, load()[0])
    table = table[table["contrast"].isin(mine) & table["metric"].isin(plan.primary)]
    return table["contrast"].nunique() == len(mine) and set(table["verdict"]) == {"equal"}


def check_common(plan: "Plan", facts: Sequence[dict[str, Any]]) -> None:
    """Raises `DataError` where runs differ in more than their arms' keys: in settings, data, g, or, of one seed, in the
    images, degradations, timesteps, noise or benchmarks that they saw.

    A setting that did not exist yet at the time of a run does not count, as in `Run.is_done`.
    """
    varied = {"seed"}.union(*plan.arms.values())
    seen: dict[str, tuple[str, Any]] = {}
    for run in facts:
        name = f"{run['arm']}-{run['seed']}"
        for key, value in (run["inputs"] | run["inputs"]["settings"]).items():
            other, first = seen.setdefault(key, (name, value))
            if first != value and key not in varied | {"settings"}:
                raise DataError(
                    f"{RESULTS}: {other} and {name} differ in `{key}`, which no arm sets: remove one, or train it anew"
                )
    for seed in plan.seeds:
        runs = [run for run in facts if run["seed"] == seed]
        for key in ("draws", "benchmarks"):
            found = {json.dumps(run["common"][key] if key == "draws" else run[key], sort_keys=True) for run in runs}
            if len(found) > 1:
                raise DataError(f"{RESULTS}: the runs of seed {seed} differ in their {key}: train them anew")


def answer(
    plan: "Plan", question: str, values: pd.DataFrame, facts: Sequence[dict[str, Any]]
) -> tuple[str, list[Path]]:
    """One question's answer as Markdown, and the paths of its plots; says what is not trained yet."""
    check_common(plan, facts)
    arms = plan.questions[question].arms
    done = {arm: [run for run in facts if run["arm"] == arm] for arm in plan.arms if arm in arms}
    missing = [arm for arm, runs in done.items() if not runs]
    lines = [f"Open: not trained yet: {', '.join(f'`{arm}`' for arm in missing)}.", ""] if missing else []
    table = contrasts(plan, question, values)
    if table.empty:
        return "\n".join([*lines, ""]), []
    lines += [*_means(plan, values, done), ""]
    if (table["verdict"] == "no interval").all():
        lines += ["One seed so far: the plot shows differences without intervals, which allow no answer.", ""]
    else:
        shown = table[table["benchmark"].isin(f"{locate(plan.benchmarks[0]).name}-{kind}" for kind in KINDS)]
        lines += [f"- {sentence}." for sentence in shown[shown["metric"].isin(plan.primary)]["sentence"]]
        lines += ["", "The plot has the other benchmarks and metrics.", ""]
    plots = [RESULTS / f"{question}.png"]
    forest(table, plots[0])
    lines += [_image("Differences with their intervals", plots[0]), ""]
    if learned := [run for runs in done.values() for run in runs if run["mix"]]:
        plots.append(RESULTS / f"{question}-mix.png")
        _mix_plot(learned, plots[1])
        lines += [_image("The share of edges in W during training", plots[1]), ""]
    for arm in done:
        path = RESULTS / f"{arm}.png"
        if path.is_file():
            lines += [f"`{arm}`: LR, result, w", "", _image("LR, result, w", path), ""]
    return "\n".join(lines), plots


def _image(text: str, path: Path) -> str:
    """An image of the page."""
    return f"![{text}]({path.relative_to(PAGE.parent).as_posix()})"


def _mix_plot(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes how `mix`, the learned share of edges in W, moved in each run; a colour for each arm."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    for run in runs:
        number = arms.index(run["arm"])
        label = run["arm"] if run is next(r for r in runs if r["arm"] == run["arm"]) else None
        axes.plot(*zip(*run["mix"], strict=True), color=f"C{number}", label=label)
    axes.set(xlabel="training step", ylabel="a of W = a·E + (1−a)·H")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _means(plan: "Plan", values: pd.DataFrame, done: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A table of the arms: seeds, hours, κ, and the mean of each metric on the first benchmark."""
    benchmark = values["benchmark"].iloc[0]
    metrics = [c for c in values if c not in ("arm", "seed", "benchmark", "picture")]
    lines = [f"| {benchmark} | seeds | hours | κ | " + " | ".join(str(m) for m in metrics) + " |"]
    lines += ["|" + " --- |" * (4 + len(metrics))]
    for arm, runs in done.items():
        rows = values[(values["arm"] == arm) & (values["benchmark"] == benchmark)]
        if runs:
            hours = sum(run["training_seconds"] for run in runs) / 3600
            cells = [f"`{arm}`", str(len(runs)), f"{hours:.1f}", f"{runs[0]['kappa']:.2f}"]
            lines.append("| " + " | ".join(cells + [f"{rows[m].mean():.4f}" for m in metrics]) + " |")
    return lines
