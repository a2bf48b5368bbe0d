"""The page of `upsr compare`: tables and sentences in markdown, a plot, and all of it in one HTML file."""

import re
from base64 import b64encode
from pathlib import Path
from typing import Any

import pandas as pd

from upsr.evaluation.metrics import higher_is_better
from upsr.files import atomic

PRIMARY = ("psnr", "lpips")  # distortion and perception, the axes of the plot
PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>Uncertainty variants</title>
<style>
body {{ max-width: 70rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif }}
table {{ border-collapse: collapse; font-size: 0.9rem }}
th, td {{ padding: 0.3rem 0.6rem; border-bottom: 1px solid #ccc; text-align: left }}
img {{ max-width: 100% }}
</style>
{body}</html>
"""


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
    lines += [answer(table, columns), ""]
    lines += [f"UPSR in {runs} runs: mean ± standard deviation over seeds. The best mean is bold.", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for _, row in table.iterrows():
        cells = [str(row[c]) for c in (*columns, "seeds")] + [cell(row, m) for m in metrics]
        lines.append("| " + " | ".join(cells) + " |")
    if excluded:
        lines += ["", f"Left out: {', '.join(excluded)}."]
    return "\n".join([*lines, "", "![PSNR against LPIPS](variants.png)", ""])


def answer(table: pd.DataFrame, columns: list[str]) -> str:
    """The setting with the best mean of each metric of `PRIMARY` that was measured, in a sentence."""
    best = [
        f"in {metric.upper()}, {', '.join(str(row[c]) for c in columns)} ({row[metric]:.4f})"
        for metric in PRIMARY
        if metric in table
        for row in [table.sort_values(metric, ascending=not higher_is_better(metric)).iloc[0]]
    ]
    return f"**Best on average: {'; '.join(best)}.** Which differences are certain is below, under Contrasts."


def html(text: str, folder: Path) -> str:
    """The page in markdown as a page that needs no other file: the plots in `folder` are part of it."""
    from markdown_it import MarkdownIt

    def embedded(found: re.Match[str]) -> str:
        return f'src="data:image/png;base64,{b64encode((folder / found[1]).read_bytes()).decode()}"'

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    return PAGE.format(body=re.sub(r'src="([\w-]+\.png)"', embedded, body))


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


def plot(
    table: pd.DataFrame, columns: list[str], bicubic: tuple[float, float] | None, benchmark: str, path: Path
) -> None:
    """PSNR against LPIPS, with error bars of one standard deviation; better is up and to the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for _, row in table.iterrows():
        label = ", ".join(str(row[c]) for c in columns)
        spread = {"xerr": row["psnr std"], "yerr": row["lpips std"]}
        known = {k: v for k, v in spread.items() if not pd.isna(v)}
        axes.errorbar(row["psnr"], row["lpips"], **known, fmt="o", capsize=3, label=label)
    if bicubic:
        axes.plot(*bicubic, "kx", label="bicubic")
    axes.set(xlabel="PSNR (dB) → better", ylabel="LPIPS → better (axis inverted)", title=f"Variants on {benchmark}")
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
