"""The figures of `tune`: every plan on the plane of the development questions, and the value along the layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from lm_eval_ext.viz import theme
from lm_eval_ext.viz.chart import Chart

if TYPE_CHECKING:
    import pandas as pd

    from lm_eval_ext.tune.result import TuneResult


def charts(result: TuneResult) -> list[Chart]:
    """The figures that the axes of the development questions allow."""
    last = result.tried.drop_duplicates("plan", keep="last")
    made = [_layers(last)] if last["layer"].notna().any() else []
    if last["transfer"].notna().any() and last["localization"].notna().any():
        made.insert(0, _plane(last, result))
    return made


def _plane(last: pd.DataFrame, result: TuneResult) -> Chart:
    figure = go.Figure()
    for number, (stage, part) in enumerate(last.groupby("stage", sort=False)):
        figure.add_scatter(
            x=100 * part["transfer"],
            y=100 * part["localization"],
            mode="markers",
            name=str(stage),
            marker={"size": 6, "opacity": 0.6, "color": theme.SERIES[number]},
            text=part["plan"] + "<br>" + part["questions"].astype(str) + " questions of each task and language",
            hovertemplate="%{text}<br>%{x:.1f}, %{y:.1f}<extra></extra>",
        )
    outcome = result.outcome
    if outcome.transfer and outcome.localization:
        figure.add_scatter(
            x=[100 * outcome.transfer.change],
            y=[100 * outcome.localization.change],
            error_x={"array": [196 * outcome.transfer.error]},
            error_y={"array": [196 * outcome.localization.error]},
            mode="markers",
            name="chosen",
            marker={"size": 13, "symbol": "star", "color": theme.SERIES[2]},
            text=[str(result.plan)],
            hovertemplate="%{text}<extra></extra>",
        )
    figure.update_layout(
        **theme.layout(
            xaxis=theme.axis(title="change of transfer, points"),
            yaxis=theme.axis(title="change of localization, points"),
        )
    )
    figure.add_hline(y=0, line_width=1, opacity=0.4)
    figure.add_vline(x=0, line_width=1, opacity=0.4)
    figure.add_vline(x=-100 * result.settings.max_loss, line_dash="dot", line_width=1)
    return Chart(
        "tried",
        "Every plan that was tried",
        f"Changes from the unsteered model on development questions, by {result.settings.metric}; plans that left early "
        "were asked few questions, and lie far out by chance. Dotted: the largest loss of transfer that is allowed. The "
        "star is the chosen plan with 1.96 standard errors.",
        figure,
        last,
    )


def _layers(last: pd.DataFrame) -> Chart:
    singles = last[last["layer"].notna()]
    best = singles.sort_values("value", ascending=False).drop_duplicates(["kinds", "layer"]).sort_values("layer")
    figure = go.Figure()
    for number, (kind, part) in enumerate(best.groupby("kinds", sort=False)):
        figure.add_scatter(
            x=part["layer"],
            y=100 * part["value"],
            name=str(kind),
            mode="lines+markers",
            line={"color": theme.SERIES[number % len(theme.SERIES)]},
            text=part["plan"],
            hovertemplate="%{text}<br>%{y:.2f}<extra></extra>",
        )
    figure.update_layout(
        **theme.layout(xaxis=theme.axis(title="layer"), yaxis=theme.axis(title="value of the best plan, points"))
    )
    return Chart(
        "layers",
        "The best plan of each kind at each layer",
        "The largest value at any strength and tokens, on as many questions as the plan was asked. The largest of several "
        "is biased upwards.",
        figure,
        best,
    )
