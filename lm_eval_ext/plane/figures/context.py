"""The explicit-context gap: what naming the country in the question adds to the localization score.

The score with the country named is the upper bound of what steering can bring back; what a run lacks to it is knowledge
that it has and does not use.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lm_eval_ext.data.task_metadata import EXPLICIT_CONTEXT
from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.plane.figures.panels import run_style, shown_runs
from lm_eval_ext.plane.wording import view_name
from lm_eval_ext.results.axes import Axis, find_axis, find_variant
from lm_eval_ext.results.pairing import Scores
from lm_eval_ext.stats import cluster_bootstrap
from lm_eval_ext.viz import theme
from lm_eval_ext.viz.chart import Chart
from lm_eval_ext.viz.numbers import points, points_interval
from lm_eval_ext.viz.panels import panel_title, short, text

if TYPE_CHECKING:
    from lm_eval_ext.plane.shifts import Plane
    from lm_eval_ext.results.run import Run

COLUMNS = ("run", "language", "plain", "named", "gap", "low", "high", "n", "questions")


def context_gaps(plane: Plane) -> pd.DataFrame:
    """Score without and with the country named, and the gap, of every run that was asked both ways.

    Columns: run, language (`average` first), plain and named (scores on the questions of both), gap with low and high
    (bootstrap over questions), n (documents), questions. Shares lie between 0 and 1. No rows where no run has both.
    """
    rows: list[dict[str, Any]] = []
    if axis := _named_axis(plane):
        for run in (plane.baseline, *plane.runs):
            if run.tasks.keys() & set(axis.tasks):
                rows += _gaps(plane, run, axis)
    frame: pd.DataFrame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame


def context_gap(plane: Plane) -> Chart | None:
    """Dumbbells from the score without the country to that with it, per run and language; None where nothing has both."""
    frame = context_gaps(plane)
    runs, left_out = shown_runs(plane)
    runs = [run for run in (plane.baseline, *runs) if run.name in set(frame["run"])]
    if not runs:
        return None
    frame = frame[frame["run"].isin([run.name for run in runs])]
    views = [code for code in (*reversed(plane.languages), AVERAGE) if code in set(frame["language"])]
    figure = make_subplots(cols=len(runs), shared_xaxes="all", shared_yaxes="all", horizontal_spacing=0.02)
    for column, run in enumerate(runs, start=1):
        figure.add_traces(_dumbbells(plane, run, frame[frame["run"] == run.name], views, first=column == 1), 1, column)
    figure.update_yaxes(
        **theme.axis(
            ticks="",
            tickformat="",
            range=[-0.6, len(views) - 0.4],
            categoryorder="array",
            categoryarray=[_view(plane, view) for view in views],
            showgrid=True,
        )
    )
    shares = [100 * value for column in ("plain", "named") for value in frame[column]]
    low, high = min(shares), max(shares)
    span = max(high - low, 5.0)  # beside the right end the gap is written
    figure.update_xaxes(
        **theme.axis(ticksuffix="%", nticks=5, zeroline=False, range=[low - 0.1 * span, high + 0.35 * span])
    )
    figure.update_layout(
        **theme.layout(
            annotations=[panel_title(short(run.name, 22), number) for number, run in enumerate(runs, start=1)],
            margin={"l": 20, "r": 10, "t": 36, "b": 20},
            legend={"orientation": "h", "x": 0, "y": -0.12, "yanchor": "top"},
        )
    )
    return Chart(
        "context_gap",
        "What naming the country adds",
        f"{text(plane.y.title).capitalize()} score without (○) and with (●) the country named in the question, the same "
        f"questions and options. The number is the gap in points (its {plane.level:.0%} interval in the hover and the CSV): "
        f"what a run knows and does not use.{left_out}",
        figure,
        frame,
        height=70 + 42 * len(views) + 60,
        min_width=210 * len(runs),
    )


def _named_axis(plane: Plane) -> Axis | None:
    """The tasks that ask the questions of the y axis with the country named, if any run was asked them."""
    runs = (plane.baseline, *plane.runs)
    named = find_variant(plane.y.name, EXPLICIT_CONTEXT, runs)
    return replace(find_axis(named, runs, plane.y.score), where=plane.y.where) if named else None


# Several items may share the id of a question (variants, and questions asked nearly alike): they stand in one order in both
# families. Where one family has more of them than the other, which belongs to which is not known.
_SAME_ITEM = ["language", "question", "number", "items"]


def _numbered(frame: pd.DataFrame) -> pd.DataFrame:
    """The documents with the question's id without its family, the document's number within it, and how many it has."""
    frame = frame.assign(question=frame["question"].str.partition("/")[2])
    of_question = frame.groupby(["language", "question"])
    frame["number"], frame["items"] = of_question.cumcount(), of_question["task"].transform("size")
    return frame


def _gaps(plane: Plane, run: Run, axis: Axis) -> list[dict[str, Any]]:
    plain, named = Scores.read(run, (plane.y, axis)).frames
    # The two families ask the same questions under the same ids.
    plain, named = map(_numbered, (plain, named))
    both = plain.merge(named, on=_SAME_ITEM, suffixes=("_plain", "_named"))
    both = both.dropna(subset=["value_plain", "value_named"])
    rows = []
    for view in (AVERAGE, *plane.languages):
        languages = plane.averaged if view == AVERAGE else (view,)
        part = both[both["language"].isin(languages)]
        if set(part["language"]) != set(languages):
            continue
        gap = cluster_bootstrap(
            part["value_named"] - part["value_plain"],
            part["question"],
            part["language"],
            resamples=plane.resamples,
            seed=plane.seed,
        )
        means = part.groupby("language")[["value_plain", "value_named"]].mean().mean()
        interval = gap.interval(level=plane.level)
        levels = (means["value_plain"], means["value_named"])
        counts = (gap.n_documents(), gap.n_clusters())
        rows.append(dict(zip(COLUMNS, (run.name, view, *levels, *interval, *counts), strict=True)))
    return rows


def _view(plane: Plane, view: str) -> str:
    return "<b>Average</b>" if view == AVERAGE else text(view_name(plane, view))


def _dumbbells(plane: Plane, run: Run, frame: pd.DataFrame, views: list[str], *, first: bool) -> list[go.Scatter]:
    colour = run_style(plane, run)["colour"]
    rows = {row["language"]: row for row in frame.to_dict("records")}
    shown = [rows[view] for view in views if view in rows]
    names = [_view(plane, row["language"]) for row in shown]
    hovers = [
        f"<b>{text(run.name)}</b>, {name}<br>{row['plain']:.1%} → {row['named']:.1%}<br>"
        f"{points_interval(row['gap'], row['low'], row['high'])} points; n = {row['n']}"
        for row, name in zip(shown, names, strict=True)
    ]
    bars = go.Scatter(
        x=[value for row in shown for value in (100 * row["plain"], 100 * row["named"], None)],
        y=[value for name in names for value in (name, name, None)],
        mode="lines",
        line={"color": colour, "width": 3},
        opacity=0.45,
        hoverinfo="skip",
        showlegend=False,
    )

    def ends(column: str, name: str, symbol: str, labels: list[str] | None = None) -> go.Scatter:
        return go.Scatter(
            name=name,
            legendgroup=name,
            showlegend=first,
            x=[100 * row[column] for row in shown],
            y=names,
            mode="markers+text" if labels else "markers",
            text=labels,
            textposition=["middle right" if row["gap"] >= 0 else "middle left" for row in shown],
            textfont={"size": 11, "color": theme.QUIET},
            marker={"symbol": symbol, "size": 9, "color": colour, "line": {"color": colour, "width": 2}},
            hoverinfo="text",
            hovertext=hovers,
            cliponaxis=False,
        )

    gaps = [f" {points(row['gap'])}" for row in shown]
    return [bars, ends("plain", "country not named", "circle-open"), ends("named", "country named", "circle", gaps)]
