"""`upsr compare`: uncertainty variants side by side, from tracked runs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from upsr.commands import extension, new

if TYPE_CHECKING:
    from upsr.commands import Commands


def add(commands: "Commands") -> None:
    co = new(commands, "compare", run, "a table and a plot of every uncertainty variant that MLflow has figures of")
    co.add_argument("--benchmark", default="holdout", help="the benchmark's name")
    co.add_argument("--experiment", default="evaluate", help="MLflow's experiment")
    co.add_argument("-o", "--output", type=Path, default=Path("reports"), help="folder for the table and the plot")


def run(options: argparse.Namespace) -> None:
    """Prints the table that it writes."""
    page: Path = extension("compare")(options.benchmark, options.output, options.experiment)
    print(page.read_text(encoding="utf-8"))
