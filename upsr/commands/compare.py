"""`upsr compare`: a comparison of uncertainty variants, from tracked runs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from upsr.commands import extension, new

if TYPE_CHECKING:
    from upsr.commands import Commands


def add(commands: "Commands") -> None:
    command = new(commands, "compare", run, "write tables and plots of all uncertainty variants evaluated in MLflow")
    command.add_argument("--benchmark", default="holdout", help="name of the benchmark")
    command.add_argument("--experiment", default="evaluate", help="MLflow experiment with the evaluations")
    about = "reference of the contrasts, as KEY=VALUE of a parameter: each arm against the one that differs in it alone"
    command.add_argument("--against", default="uncertainty.variant=residual", help=about)
    command.add_argument("-o", "--output", type=Path, default=Path("reports"), help="folder for the page and the plots")


def run(options: argparse.Namespace) -> None:
    """Writes the page and the plots, and prints the page."""
    page: Path = extension("compare")(options.benchmark, options.output, options.experiment, options.against)
    print(page.read_text(encoding="utf-8"))
