"""The plane as one page: figure, conclusions, table, provenance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.plane.figures.plane import plane_chart
from lm_eval_ext.plane.table import LEGEND, describe, header, rows
from lm_eval_ext.plane.wording import conclusions
from lm_eval_ext.results.run import short_model
from lm_eval_ext.viz.page import figure_part, render, sentence

if TYPE_CHECKING:
    from lm_eval_ext.plane.shifts import Plane
    from lm_eval_ext.results.run import Run

TEMPLATES = Path(__file__).parent / "templates"


def page(plane: Plane) -> str:
    """The plane as one HTML file: figure, conclusions, table, provenance."""
    table = rows(plane)
    chart = plane_chart(plane)
    return render(
        "plane.html",
        folder=TEMPLATES,
        title="Transfer-localization plane"
        if plane.is_transfer_localization
        else f"{plane.x.title} against {plane.y.title}",
        charts=[chart],
        chart=figure_part(chart),
        plane=plane,
        model=short_model(plane.baseline.model),
        description=[sentence(line) for line in describe(plane)],
        conclusions=conclusions(plane),
        legend=sentence(LEGEND),
        header=header(plane),
        rows=table,
        averages=[row for row in table if row[1] == AVERAGE],
        provenance=[provenance(run) for run in (plane.baseline, *plane.runs)],
    )


def provenance(run: Run) -> list[str]:
    """A run's model, plan, date and settings. Local paths are reduced to their last part."""
    settings = ", ".join(f"{key}={short_model(value)}" for key, value in run.details.items())
    return [run.name, short_model(run.model), run.plan or "unsteered", run.date.split("T")[0], settings]
