"""The grid of two layers: what steering with one vector at each of them does together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from lm_eval_ext.errors import ResultsError
from lm_eval_ext.viz import theme
from lm_eval_ext.viz.chart import Chart
from lm_eval_ext.viz.numbers import points
from lm_eval_ext.viz.panels import text

if TYPE_CHECKING:
    import pandas as pd

#: Columns of the frame that the heatmap is drawn from.
COLUMNS = ("en_layer", "loc_layer", "change", "low", "high")


def two_layer_heatmap(frame: pd.DataFrame, *, title: str = "", score: str = "score") -> Chart:
    """One cell per pair of layers: the change of a score with the EN vector at one and the LOC vector at the other.

    Every cell has its number, in bold where its interval leaves zero out: nothing is said by colour alone. Pairs that the
    frame lacks stay empty.

    Args:
        frame: one row per pair, tidy. Columns: `en_layer` and `loc_layer` (0-based), `change` with `low` and `high`
            (shares: 0.01 is one point); further columns go into the CSV as they are.
        title: of the figure.
        score: what changes, for the colour bar.

    Raises:
        ResultsError: missing columns, no rows, or several rows of a pair.
    """
    if missing := [column for column in COLUMNS if column not in frame]:
        raise ResultsError(f"the heatmap needs the columns {', '.join(COLUMNS)}; missing: {', '.join(missing)}")
    if frame.empty:
        raise ResultsError("there is nothing to draw: the frame has no rows")
    again = frame.loc[frame.duplicated(["en_layer", "loc_layer"]), ["en_layer", "loc_layer"]]
    if len(again):
        pair = again.iloc[0]
        raise ResultsError(
            f"EN at layer {pair['en_layer']:g} and LOC at layer {pair['loc_layer']:g} have several rows; "
            "choose one gamma, language and axis first"
        )
    grids = {column: frame.pivot(index="en_layer", columns="loc_layer", values=column) for column in COLUMNS[2:]}
    change = 100 * grids["change"]
    is_clear = (grids["low"] > 0) | (grids["high"] < 0)
    labels = [
        ["" if value != value else f"<b>{points(value)}</b>" if clear else points(value) for value, clear in row]
        for row in (zip(*pair, strict=True) for pair in zip(grids["change"].values, is_clear.values, strict=True))
    ]
    extent = max(float(change.abs().max().max()), 0.1)
    bar = {
        "title": {"text": f"{text(score)}, points", "side": "right", "font": {"size": 13}},
        "thickness": 12,
        "outlinewidth": 0,
    }
    figure = go.Figure(
        go.Heatmap(
            x=[f"{layer:g}" for layer in change.columns],
            y=[f"{layer:g}" for layer in change.index],
            z=change.values.tolist(),
            text=labels,
            texttemplate="%{text}",
            textfont={"color": theme.INK},
            customdata=[
                [[100 * low, 100 * high] for low, high in zip(*pair, strict=True)]
                for pair in zip(grids["low"].values, grids["high"].values, strict=True)
            ],
            hovertemplate="EN at layer %{y}, LOC at layer %{x}<br>%{z:+.1f} "
            "[%{customdata[0]:+.1f}, %{customdata[1]:+.1f}] points<extra></extra>",
            hoverongaps=False,
            zmin=-extent,
            zmax=extent,
            colorscale=[[0, theme.LESS], [0.5, theme.PAPER], [1, theme.MORE]],
            colorbar=bar,
            xgap=1,
            ygap=1,
        ),
        layout=theme.layout(
            margin={"l": 20, "r": 10, "t": 16, "b": 20},
            xaxis=theme.axis(
                title={"text": "<b>decoder layer of the LOC vector</b>", "standoff": 6}, type="category", showgrid=False
            ),
            yaxis=theme.axis(
                title={"text": "<b>decoder layer of the EN vector</b>", "standoff": 6}, type="category", showgrid=False
            ),
        ),
    )
    return Chart(
        "two_layer_heatmap",
        title or "Both vectors, at every pair of layers",
        "Change against the unsteered model, in percentage points, with the EN vector at one layer and the LOC vector at "
        "the other. Bold: the interval leaves zero out (intervals in the hover and the CSV). The best of many cells looks "
        "better than it is: choose on one set of questions and report on another.",
        figure,
        frame.sort_values(["en_layer", "loc_layer"]),
        height=110 + 34 * max(len(change.index), 6),
        min_width=120 + 44 * len(change.columns),
    )
