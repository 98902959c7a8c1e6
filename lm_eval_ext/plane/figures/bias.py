"""The English bias of the choices, before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.plane.figures.panels import run_style, shown_runs
from lm_eval_ext.plane.wording import GLYPHS, interval, is_missing, levels, verdict, view_name
from lm_eval_ext.viz import theme
from lm_eval_ext.viz.chart import Chart
from lm_eval_ext.viz.panels import short, text

if TYPE_CHECKING:
    from lm_eval_ext.plane.shifts import Plane
    from lm_eval_ext.results.run import Run


def bias_bars(plane: Plane) -> Chart | None:
    """A bar per language and run: the share of choices tied to the US or UK; None where it was not scored.

    The whisker is the paired interval of the change, drawn at the run's bar: where it clears the baseline's height the
    change is decided. English itself has no bar, its local answer is the English one.
    """
    runs, left_out = shown_runs(plane)
    views = [code for code in (AVERAGE, *plane.languages) if code != "en"]
    frame = plane.shifts[plane.shifts["language"].isin(views)]
    frame = frame[frame["run"].isin([plane.baseline.name, *(run.name for run in runs)]) & frame["bias_change"].notna()]
    if frame.empty or not runs:
        return None
    figure = go.Figure(
        [_bars(plane, run, frame, views) for run in (plane.baseline, *runs)],
        layout=theme.layout(
            barmode="group",
            bargap=0.24,
            bargroupgap=0.08,
            margin={"l": 20, "r": 10, "t": 16, "b": 20},
            legend={"orientation": "h", "x": 0, "y": -0.14, "yanchor": "top"},
            xaxis=theme.axis(ticks="", showgrid=False, tickformat=""),
            yaxis=theme.axis(
                title={"text": "<b>English bias</b>, share of choices", "standoff": 6},
                ticksuffix="%",
                rangemode="tozero",
            ),
        ),
    )
    columns = [f"bias_{column}" for column in ("baseline", "run", "change", "low", "high", "n", "changed")]
    return Chart(
        "english_bias",
        "English bias, before and after",
        "Share of the choices that belong to the US or UK, lower is better. Whiskers: "
        f"{plane.level:.0%} interval of the paired change against {plane.baseline.name}, drawn at the run's bar. "
        f"▲ ▼: the change is decided.{left_out}",
        figure,
        frame[["run", "language", *columns]],
        height=460,
        min_width=90 * len(views),
    )


def _bars(plane: Plane, run: Run, frame: Any, views: list[str]) -> go.Bar:
    style = run_style(plane, run)
    is_baseline = run.name == plane.baseline.name
    rows = {row["language"]: row for row in frame[frame["run"] == run.name].to_dict("records")}
    shown = [rows[code] for code in views if code in rows and not is_missing(rows[code], "bias")]
    names = [view_name(plane, row["language"]) for row in shown]
    return go.Bar(
        name=short(run.name),
        x=["Average" if row["language"] == AVERAGE else text(name) for row, name in zip(shown, names, strict=True)],
        y=[100 * row["bias_run"] for row in shown],
        marker={
            "color": theme.QUIET if is_baseline else style["colour"],
            "line": {"color": theme.INK if is_baseline else style["colour"], "width": 1},
            "pattern": {"shape": style["pattern"], "fillmode": "replace", "solidity": 0.35, "size": 7},
        },
        error_y=None
        if is_baseline
        else {
            "type": "data",
            "symmetric": False,
            "array": [100 * (row["bias_high"] - row["bias_change"]) for row in shown],
            "arrayminus": [100 * (row["bias_change"] - row["bias_low"]) for row in shown],
            "color": theme.INK,
            "thickness": 1.2,
            "width": 2,
        },
        text=["" if is_baseline else GLYPHS[verdict(row, "bias")] for row in shown],
        textposition="inside",
        insidetextanchor="start",
        textfont={"size": 13, "color": theme.INK},
        hoverinfo="text",
        hovertext=[
            f"<b>{text(run.name)}</b>, {text(name)}<br>"
            + (
                f"{row['bias_run']:.1%} of {row['bias_n']} choices"
                if is_baseline
                else f"{levels(row, 'bias')}<br>{interval(row, 'bias')} points; n = {row['bias_n']}"
            )
            for row, name in zip(shown, names, strict=True)
        ],
    )
