"""The page of `upsr compare`: tables and sentences in markdown, a plot, and all of it in one HTML file."""

import re
from base64 import b64encode
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.report import LABELS, templates
from upsr.evaluation.metrics import higher_is_better
from upsr.files import atomic

PRIMARY = ("psnr", "lpips")  # distortion and perception, the axes of the plot
NAMES = {"uncertainty.variant": "Variant", "unet.dim": "Width"}  # of parameters; others have their keys


def markdown(table: pd.DataFrame, columns: list[str], benchmark: str, runs: int, excluded: list[str]) -> str:
    """The page: how many runs, the table with the best of each metric in bold, the plot, and what was excluded."""
    metrics = [str(c) for c in table if f"{c} std" in table]
    best = {m: table[m].max() if higher_is_better(m) else table[m].min() for m in metrics}
    compared = len(table) > 1

    def cell(row: Any, metric: str) -> str:
        spread = row[f"{metric} std"]
        text = f"{row[metric]:.4f}" + ("" if pd.isna(spread) else f" ± {spread:.4f}")
        return f"**{text}**" if compared and row[metric] == best[metric] else text

    head = [*(NAMES.get(c, f"`{c}`") for c in columns), "Seeds"]
    head += [f"{LABELS.get(m, m)} {'↑' if higher_is_better(m) else '↓'}" for m in metrics]
    lines = [f"# Uncertainty variants on {benchmark}", ""]
    lines += [answer(table, columns), ""]
    counted = f"UPSR in {runs} run{'s' * (runs > 1)}: mean ± standard deviation over seeds."
    lines += [counted + " The best mean is bold." * compared, ""]
    lines += ["| " + " | ".join(head) + " |", "| :--- |" + " ---: |" * (len(head) - 1)]
    for _, row in table.iterrows():
        cells = [str(row[c]) for c in (*columns, "seeds")] + [cell(row, m) for m in metrics]
        lines.append("| " + " | ".join(cells) + " |")
    if excluded:
        lines += ["", f"Left out: {', '.join(excluded)}."]
    picture = ["", "![PSNR against LPIPS](variants.png)"] if has_plot(table) else []
    return "\n".join([*lines, *picture, ""])


def has_plot(table: pd.DataFrame) -> bool:
    """True if both axes of the plot were measured: a benchmark without HR images has neither."""
    return all(f"{metric} std" in table for metric in PRIMARY)


def answer(table: pd.DataFrame, columns: list[str]) -> str:
    """Which setting has the best mean of each metric of `PRIMARY`, or else of each that was measured; it is in bold."""
    if len(table) == 1:
        return f"**Only one setting was evaluated: {_setting(table.iloc[0], columns)}.** `make sweep` evaluates others."
    measured = [str(c) for c in table if f"{c} std" in table]
    best = [
        f"in {LABELS.get(metric, metric)}, {_setting(row, columns)} ({row[metric]:.4f})"
        for metric in [m for m in PRIMARY if m in measured] or measured
        for row in [table.sort_values(metric, ascending=not higher_is_better(metric)).iloc[0]]
    ]
    return f"**Best on average: {'; '.join(best)}.** Which differences are certain is below, under Contrasts."


def _setting(row: pd.Series, columns: list[str]) -> str:
    """A setting in words, such as `dynamic, width 48`: the variant, and what else is in the table."""
    variant, *others = columns
    return ", ".join([str(row[variant]), *(f"{NAMES.get(c, c).lower()} {row[c]}" for c in others)])


def html(text: str, folder: Path) -> str:
    """The page in markdown as a page that needs no other file: the plots in `folder` are part of it."""
    from markdown_it import MarkdownIt

    def embedded(found: re.Match[str]) -> str:
        return f'src="data:image/png;base64,{b64encode((folder / found[1]).read_bytes()).decode()}"'

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = re.sub(r'src="([\w-]+\.png)"', embedded, body)
    return (
        templates()
        .get_template("compare.html.j2")
        .render(
            title=text.partition("\n")[0].removeprefix("# "),
            body=body.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>"),
            report=(folder / "index.html").is_file(),
        )
    )


def contrasts_markdown(contrasts: pd.DataFrame, against: str, unpaired: list[str], without_table: list[str]) -> str:
    """The page's section on contrasts: the table, why some were not measured, the forest plot, what was left out."""
    lines = ["", "## Contrasts", ""]
    if contrasts.empty:
        lines += [f"None: no two arms with values per image differ by `{against}` alone.", ""]
    else:
        lines += [
            f"Each arm minus the arm that differs from it by `{against}` alone, paired by training seed and image. The "
            "95 % intervals cover the variation of both: an interval needs at least two seeds and two images, and of "
            "two seeds it can be too narrow. Holm's correction is over all contrasts of "
            f"{' and '.join(LABELS[m] for m in PRIMARY)}, and over those of the other metrics.",
            "",
            "| Contrast | Metric | Difference | 95 % interval | p after Holm | Verdict | Seeds | Images |",
            "| :--- | :--- |" + " ---: |" * 3 + " :--- | ---: | ---: |",
            *(_contrast_line(row) for _, row in contrasts.iterrows()),
            "",
            *(f"- {text}\n" for text in contrasts["sentence"][contrasts["verdict"] == "not measured"]),
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
    metric = LABELS.get(row["metric"], row["metric"])
    cells = [row["contrast"], metric, difference, reach, p, row["verdict"], row["seeds"], row["images"]]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def plot(
    table: pd.DataFrame, columns: list[str], bicubic: tuple[float, float] | None, benchmark: str, path: Path
) -> None:
    """PSNR against LPIPS, with error bars of one standard deviation; better is up and to the right.

    The axes are those of the variants. Bicubic is a cross where it lies between them, and always in the legend.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for _, row in table.iterrows():
        spread = {"xerr": row["psnr std"], "yerr": row["lpips std"]}
        known = {k: v for k, v in spread.items() if not pd.isna(v)}
        axes.errorbar(row["psnr"], row["lpips"], **known, fmt="o", capsize=3, label=_setting(row, columns))
    if bicubic:
        limits = axes.axis()  # those of the variants, which are close to each other and far from bicubic
        axes.plot(*bicubic, "kx", label=f"bicubic: {bicubic[0]:.2f} dB, {bicubic[1]:.4f}")
        axes.axis(limits)
    axes.set(xlabel="PSNR (dB) → better", ylabel="LPIPS → better (axis inverted)", title=f"Variants on {benchmark}")
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
