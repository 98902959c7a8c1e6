"""Which runs the small multiples show, and how a run looks in every figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.viz import theme
from lm_eval_ext.viz.chart import MAX_RUNS

if TYPE_CHECKING:
    from lm_eval_ext.plane.shifts import Plane
    from lm_eval_ext.results.run import Run


def ranked_runs(plane: Plane, n: int) -> list[Run]:
    """At most n runs, in the plane's order: those with the largest sum of both average changes."""
    average = plane.shifts[plane.shifts["language"] == AVERAGE].set_index("run")
    total = (average["x_change"] + average["y_change"]).to_dict()
    chosen = {run.name for run in sorted(plane.runs, key=lambda run: -total.get(run.name, -2.0))[:n]}
    return [run for run in plane.runs if run.name in chosen]


def shown_runs(plane: Plane) -> tuple[list[Run], str]:
    """The runs that small multiples show, and a sentence on those they leave out."""
    if len(plane.runs) <= MAX_RUNS:
        return list(plane.runs), ""
    return (
        ranked_runs(plane, MAX_RUNS),
        f" Of {len(plane.runs)} runs, the {MAX_RUNS} with the largest sum of both average changes are shown; "
        "the tables hold all, and --run chooses others.",
    )


def run_style(plane: Plane, run: Run) -> dict[str, str]:
    """Colour, symbol and pattern of a run, the same in every figure: the baseline black, a control grey and hollow.

    Several models have a colour each, else every run has one.
    """
    if run.name == plane.baseline.name:
        return {"colour": theme.INK, "symbol": "circle-cross-open", "pattern": ""}
    number = [other.name for other in plane.runs].index(run.name)
    models = list(dict.fromkeys(other.model for other in plane.runs))
    hue = models.index(run.model) if len(models) > 1 else number
    symbol = theme.cycle(theme.SYMBOLS, number)
    return {
        "colour": theme.QUIET if run.is_control else theme.cycle(theme.SERIES, hue),
        "symbol": f"{symbol}-open" if run.is_control else symbol,
        "pattern": theme.cycle(theme.PATTERNS, number),
    }
