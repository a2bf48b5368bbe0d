"""The view that `make ui` opens an experiment with, in the form in which MLflow's page saves one."""

from collections.abc import Mapping, Sequence
from typing import Any

VIEW = "models"  # its key
# Widths in pixels. On a page of 1400, MLflow's assistant leaves 715: for these two, the figures, and tags up to `seed`.
FIXED = {"attributes.`Run Name`": 135, "runDateAndNestInfo": 120}  # the latter is the column Created
TAGS = {"variant": 75, "width": 55, "steps": 65, "seed": 50, "model": 75}
ATTRIBUTES = {"Dataset": 150, "Source": 150}


def table(figures: Mapping[str, int]) -> dict[str, Any]:
    """The columns of the table of runs: `figures`, which are metrics with their widths, and what tells models apart."""
    kinds = {"metrics": figures, "tags": TAGS, "attributes": ATTRIBUTES}
    columns = {f"{kind}.`{name}`": width for kind, widths in kinds.items() for name, width in widths.items()}
    widths = FIXED | columns
    return {"selectedColumns": list(columns), "columnOrder": list(widths), "columnWidths": widths}


def charts(sections: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The first charts: the metrics of each section. MLflow adds those of all other metrics, by the alphabet."""
    cards = [
        {"uuid": metric, "type": "BAR", "metricKey": metric, "metricSectionId": section, "isGenerated": True}
        for section, metrics in sections.items()
        for metric in metrics
    ]
    titles = [{"uuid": name, "name": name, "display": True, "isReordered": True} for name in sections]
    return {"compareRunCharts": cards, "compareRunSections": titles, "isAccordionReordered": True}
