"""Per-language slopes: the score of every language before and after, one panel per run and axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lm_eval_ext.plane.figures.panels import shown_runs
from lm_eval_ext.plane.wording import interval, levels, verdict, view_name
from lm_eval_ext.viz import theme
from lm_eval_ext.viz.chart import Chart
from lm_eval_ext.viz.panels import language_style, panel_title, short, spread, text

if TYPE_CHECKING:
    from lm_eval_ext.plane.shifts import Plane
    from lm_eval_ext.results.run import Run

_LABEL_GAP = 0.052  # of a panel's height: one line of text


def language_slopes(plane: Plane) -> Chart | None:
    """Lines from the baseline's score to the run's, per language; None where the tasks have no language.

    A line is solid where the interval of the change excludes zero, dotted where it does not.
    """
    runs, left_out = shown_runs(plane)
    if not plane.languages or not runs:
        return None
    figure = make_subplots(rows=2, cols=len(runs), shared_yaxes="rows", horizontal_spacing=0.028, vertical_spacing=0.16)
    titles = []
    for row, (score, axis) in enumerate((("x", plane.x), ("y", plane.y)), start=1):
        ends = _ends(plane, runs, score)
        for column, run in enumerate(runs, start=1):
            figure.add_traces(_panel(plane, run, score, ends), rows=row, cols=column)
            if row == 1:
                titles.append(panel_title(short(run.name, 22), column))
        ticks = {"tickvals": [0, 1], "ticktext": ["before", "after"], "range": [-0.12, 1.32], "showgrid": False}
        figure.update_xaxes(**theme.axis(zeroline=False, ticks="", **ticks), row=row)
        figure.update_yaxes(**theme.axis(zeroline=False, range=ends, ticksuffix="%"), row=row)
        figure.update_yaxes(
            title={"text": f"<b>{text(axis.title.capitalize())}</b>", "standoff": 4, "font": {"size": 13}},
            row=row,
            col=1,
        )
    figure.update_layout(
        **theme.layout(showlegend=False, annotations=titles, margin={"l": 20, "r": 10, "t": 40, "b": 30})
    )
    data = plane.shifts[plane.shifts["run"].isin([run.name for run in runs])]
    data = data[data["language"].isin(plane.languages)]
    columns = [f"{score}_{column}" for score in "xy" for column in ("baseline", "run", "change", "low", "high", "n")]
    return Chart(
        "slopes",
        "Every language, before and after",
        f"Score of each language in {plane.baseline.name} (before) and in each run (after). A solid line: the "
        f"{plane.level:.0%} interval of the change excludes zero; a dotted one: it does not.{left_out}",
        figure,
        data[["run", "language", *columns]],
        height=620,
        min_width=150 * len(runs) + 60,
    )


def _ends(plane: Plane, runs: list[Run], score: str) -> list[float]:
    """The range of the axis, in per cent, that all panels of a row share."""
    rows = plane.shifts[plane.shifts["language"].isin(plane.languages)]
    rows = rows[rows["run"].isin([run.name for run in runs])]
    values = [100 * value for column in ("baseline", "run") for value in rows[f"{score}_{column}"]]
    margin = max(0.12 * (max(values) - min(values)), 3.0)
    return [min(values) - margin, max(values) + margin]


def _panel(plane: Plane, run: Run, score: str, ends: list[float]) -> list[go.Scatter]:
    frame = plane.shifts[(plane.shifts["run"] == run.name) & plane.shifts["language"].isin(plane.languages)]
    rows: list[dict[str, Any]] = frame.to_dict("records")
    gap = _LABEL_GAP * (ends[1] - ends[0])
    # Outside the axis plotly shows no text.
    inside = ends[0] + gap / 2, ends[1] - gap / 2
    heights = spread([100 * row[f"{score}_run"] for row in rows], gap, inside)
    traces = []
    for row, height in zip(rows, heights, strict=True):
        style = language_style(row["language"])
        decided = verdict(row, score) != "undecided"
        hover = (
            f"<b>{text(run.name)}</b>, {text(view_name(plane, row['language']))}<br>{levels(row, score)}<br>"
            f"{interval(row, score)} points; n = {row[f'{score}_n']}"
        )
        traces += [
            go.Scatter(
                x=[0, 1],
                y=[100 * row[f"{score}_baseline"], 100 * row[f"{score}_run"]],
                mode="lines+markers",
                line={
                    "color": style["colour"],
                    "width": 2.4 if decided else 1.2,
                    "dash": "solid" if decided else "dot",
                },
                marker={"symbol": style["symbol"], "size": 8, "color": style["colour"]},
                hoverinfo="text",
                hovertext=hover,
            ),
            go.Scatter(
                x=[1.1],
                y=[height],
                mode="text",
                text=[text(row["language"])],
                textposition="middle right",
                cliponaxis=False,
                textfont={"color": style["colour"], "size": 12},
                hoverinfo="skip",
            ),
        ]
    return traces
