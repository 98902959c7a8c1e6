"""The results of a sweep in sentences, as a table and as one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.sweep.figures import charts
from lm_eval_ext.viz.numbers import points, points_interval
from lm_eval_ext.viz.page import figure_part, render

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

TEMPLATES = Path(__file__).parent / "templates"

HEADER = [
    "family",
    "plan",
    "n",
    "unsteered",
    "steered",
    "change, points",
    "random directions",
    "shuffled pairs",
    "other language",
    "negated",
]
LEGEND = (
    "Averages over all languages but English; in brackets the paired 95% interval of the change, clustered by question. "
    "Random directions: smallest to largest change of the controls of the same norm at the same layer. Shuffled pairs: "
    "the same of fits on pairs with shuffled labels, where the vector file has some. The best of many is biased upwards: "
    "evaluate a chosen plan on the test split."
)

#: Rows of the table for each family and kind.
TOP = 3


def top_rows(summary: pd.DataFrame, top: int = TOP) -> list[list[str]]:
    """The plans with the largest average change, `top` of each family and kind; see `HEADER`."""
    return [_cells(row) for row in _top(summary, top)]


def findings(summary: pd.DataFrame) -> list[str]:
    """For the best plan of each family and kind, what its interval and its controls support, in sentences."""
    return [_sentence(row) for row in _top(summary, 1)]


def page(summary: pd.DataFrame, description: Sequence[str]) -> str:
    """One self-contained page."""
    all_charts = charts(summary)
    return render(
        "sweep.html",
        title="Layers and strengths of steering",
        charts=all_charts,
        folder=TEMPLATES,
        parts_of_charts=[figure_part(chart) for chart in all_charts],
        description=description,
        findings=findings(summary),
        legend=LEGEND,
        header=HEADER,
        rows=top_rows(summary),
    )


def _top(summary: pd.DataFrame, top: int) -> list[dict[str, Any]]:
    plans = summary[(summary["language"] == AVERAGE) & summary["control"].isna() & (summary["condition"] != "")]
    groups = plans.groupby(["family", "kinds"], sort=False)
    return [
        row
        for _, group in groups
        for row in group.sort_values("change", ascending=False, kind="stable").head(top).to_dict("records")
    ]


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        row["family"],
        row["condition"],
        str(row["n"]),
        f"{row['unsteered']:.1%}",
        f"{row['score']:.1%}",
        _interval(row),
        _band(row) or "not run",
        _band(row, "shuffled") or "not run",
        _control(row, "other_language"),
        _control(row, "negated"),
    ]


def _sentence(row: Mapping[str, Any]) -> str:
    effect = f"{row['family']}, {row['kinds']}: the largest change is {_interval(row)} with {row['condition']}"
    is_positive = row["low"] > 0
    band = _band(row)
    if band is None:
        return f"{effect}. No random direction was run, so it cannot be attributed to the vector's direction."
    beyond = row["change"] > row["null_high"]
    place = f"{int(row['null_n'])} random directions of the same norm change it by {band}"
    shuffled = _band(row, "shuffled")
    if shuffled is not None:
        beyond = beyond and row["change"] > row["shuffled_high"]
        place += f", {int(row['shuffled_n'])} fits of shuffled pairs by {shuffled}"
    if is_positive and beyond:
        return f"{effect}; {place}, all below it."
    if is_positive:
        return f"{effect}; {place}: the effect is not larger than that of its controls."
    return f"{effect}; {place}. The interval includes zero: no effect is shown."


def _interval(row: Mapping[str, Any]) -> str:
    return points_interval(row["change"], row["low"], row["high"])


def _band(row: Mapping[str, Any], name: str = "null") -> str | None:
    low = row.get(f"{name}_low")
    if low is None or low != low:
        return None
    return f"{points(low)} to {points(row[f'{name}_high'])}"


def _control(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return "not run" if value is None or value != value else points(value)
