"""The plane of every language side by side, on the same scales."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lm_eval_ext.plane.figures.panels import run_style, shown_runs
from lm_eval_ext.plane.figures.plane import hover, quadrants, ranges
from lm_eval_ext.plane.wording import view_name
from lm_eval_ext.viz import theme
from lm_eval_ext.viz.chart import Chart
from lm_eval_ext.viz.panels import panel_title, short, text

if TYPE_CHECKING:
    from lm_eval_ext.plane.shifts import Plane
    from lm_eval_ext.results.run import Run

_COLUMNS = 4


def plane_by_language(plane: Plane) -> Chart | None:
    """A small plane per language; None where there are fewer than two languages."""
    runs, left_out = shown_runs(plane)
    if len(plane.languages) < 2 or not runs:
        return None
    columns = min(_COLUMNS, len(plane.languages))
    rows = ceil(len(plane.languages) / columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        shared_xaxes="all",
        shared_yaxes="all",
        horizontal_spacing=0.022,
        vertical_spacing=0.11 if rows > 1 else 0,
    )
    frame = plane.shifts[plane.shifts["language"].isin(plane.languages)]
    frame = frame[frame["run"].isin([run.name for run in runs])]
    ends = ranges(
        *([100 * value for end in ("low", "high") for value in frame[f"{score}_{end}"].dropna()] for score in "xy")
    )
    titles, shapes = [], []
    for number, language in enumerate(plane.languages, start=1):
        row, column = (number - 1) // columns + 1, (number - 1) % columns + 1
        of_language = {record["run"]: record for record in frame[frame["language"] == language].to_dict("records")}
        traces = [_point(plane, run, of_language.get(run.name), legend=number == 1) for run in runs]
        figure.add_traces(traces, rows=row, cols=column)
        titles.append(panel_title(text(view_name(plane, language)), number))
        shapes += quadrants("" if number == 1 else str(number))
    figure.update_xaxes(**theme.axis(range=ends["xaxis"], nticks=5, showticklabels=True))
    figure.update_yaxes(**theme.axis(range=ends["yaxis"], nticks=6))
    figure.update_layout(
        **theme.layout(
            annotations=titles,
            shapes=shapes,
            margin={"l": 20, "r": 10, "t": 36, "b": 20},
            legend={"orientation": "h", "x": 0, "y": -0.12, "yanchor": "top"},
        )
    )
    figure.update_yaxes(title={"text": f"{text(plane.y.title)}, points", "standoff": 4, "font": {"size": 13}}, col=1)
    figure.update_xaxes(title={"text": f"{text(plane.x.title)}, points", "standoff": 4, "font": {"size": 13}}, row=rows)
    figures = [f"{score}_{column}" for score in "xy" for column in ("change", "low", "high", "n", "changed")]
    return Chart(
        "plane_by_language",
        "The plane of every language",
        f"Change of both scores against {plane.baseline.name} in each language, in percentage points with "
        f"{plane.level:.0%} intervals, all panels on the same scales.{left_out}",
        figure,
        frame[["run", "language", *figures]],
        height=300 * rows + 70,
        min_width=200 * columns,
    )


def _point(plane: Plane, run: Run, row: dict[str, Any] | None, *, legend: bool) -> go.Scatter:
    style = run_style(plane, run)
    rows = [row] if row else []

    def whiskers(score: str) -> dict[str, Any]:
        return {
            "type": "data",
            "symmetric": False,
            "array": [100 * (row[f"{score}_high"] - row[f"{score}_change"]) for row in rows],
            "arrayminus": [100 * (row[f"{score}_change"] - row[f"{score}_low"]) for row in rows],
            "color": style["colour"],
            "thickness": 1,
            "width": 0,
        }

    return go.Scatter(
        name=short(run.name),
        legendgroup=run.name,
        showlegend=legend,
        x=[100 * row["x_change"] for row in rows],
        y=[100 * row["y_change"] for row in rows],
        mode="markers",
        marker={
            "color": style["colour"],
            "symbol": style["symbol"],
            "size": 9,
            "line": {"color": style["colour"], "width": 2 if run.is_control else 0},
        },
        error_x=whiskers("x"),
        error_y=whiskers("y"),
        hoverinfo="text",
        hovertext=[hover(plane, row) for row in rows],
    )
