"""`upsr compare`: a comparison of uncertainty variants, from tracked runs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from upsr.commands import extension, new

if TYPE_CHECKING:
    from upsr.commands import Commands


def add(commands: "Commands") -> None:
    command = new(commands, "compare", run, "write a table and a plot of all uncertainty variants evaluated in MLflow")
    command.add_argument("--benchmark", default="holdout", help="name of the benchmark")
    command.add_argument("--experiment", default="evaluate", help="MLflow experiment with the evaluations")
    command.add_argument("-o", "--output", type=Path, default=Path("reports"), help="folder for the table and the plot")


def run(options: argparse.Namespace) -> None:
    """Writes the table and the plot, and prints the table."""
    page: Path = extension("compare")(options.benchmark, options.output, options.experiment)
    print(page.read_text(encoding="utf-8"))
