"""An effect along the layers or along gamma, with its interval and, behind it, what random directions do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import plotly.graph_objects as go

from lm_eval_ext.errors import ResultsError
from lm_eval_ext.viz import theme
from lm_eval_ext.viz.chart import Chart
from lm_eval_ext.viz.panels import text

if TYPE_CHECKING:
    import pandas as pd

#: Columns of the frame that curves are drawn from.
COLUMNS = ("series", "layer", "gamma", "change", "low", "high")

_TITLES = {"layer": "decoder layer", "gamma": "gamma"}


def effect_curves(
    frame: pd.DataFrame, along: Literal["layer", "gamma"], *, title: str = "", score: str = "score"
) -> Chart:
    """Curves of the change of a score along the layers, or along gamma.

    Args:
        frame: one row per condition, tidy. Columns: `series` (what a curve stands for: `en`, `loc`, `en on ko`, ...),
            `layer` (0-based), `gamma`, `change` with `low` and `high` (shares: 0.01 is one point); optionally `is_control`
            (true for what controls of one kind do, which the series names: their `low` to `high`, of several controls those
            of `stats.null_band`, is drawn as a grey null band, hatched if there are several bands, not as a curve).
        along: the column across; for each of its values, every series needs exactly one row.
        title: of the figure.
        score: what changes, for the axis.

    Raises:
        ResultsError: missing columns, no rows, or several rows of a series at one place.
    """
    if missing := [column for column in COLUMNS if column not in frame]:
        raise ResultsError(f"curves need the columns {', '.join(COLUMNS)}; missing: {', '.join(missing)}")
    if frame.empty:
        raise ResultsError("there is nothing to draw: the frame has no rows")
    if frame.duplicated(["series", along]).any():
        again = frame.loc[frame.duplicated(["series", along]), ["series", along]].iloc[0]
        raise ResultsError(
            f"series {again['series']!r} has several rows at {along} {again[along]:g}; choose one of the other column "
            f"({'gamma' if along == 'layer' else 'layer'}) first, or name them as series of their own"
        )
    ordered = frame.sort_values(along)
    is_control = ordered["is_control"].astype(bool) if "is_control" in ordered else ordered["change"].isna() & False
    names = list(dict.fromkeys(frame["series"]))
    banded = [name for name in names if name in set(ordered.loc[is_control, "series"])]
    traces = [
        _band(ordered[is_control & (ordered["series"] == name)], along, name, number if len(banded) > 1 else None)
        for number, name in enumerate(banded)
    ]
    drawn = [name for name in names if name in set(ordered.loc[~is_control, "series"])]
    for number, name in enumerate(drawn):
        traces += _curve(ordered[~is_control & (ordered["series"] == name)], along, name, number)
    figure = go.Figure(
        traces,
        layout=theme.layout(
            margin={"l": 20, "r": 10, "t": 16, "b": 20},
            xaxis=theme.axis(title={"text": f"<b>{_TITLES[along]}</b>", "standoff": 6}, zeroline=False),
            yaxis=theme.axis(title={"text": f"change of {text(score)}, percentage points", "standoff": 6}),
            hovermode="x unified",
        ),
    )
    return Chart(
        f"{along}_curves",
        title or f"Effect along {'the layers' if along == 'layer' else 'gamma'}",
        "Change against the unsteered model; shaded: the interval of each curve. A grey band is where the controls that it "
        "is named after fall (random directions: of the same norm); an effect inside it needs no meaning of the vector.",
        figure,
        ordered,
        height=460,
    )


def _curve(rows: pd.DataFrame, along: str, name: str, number: int) -> list[go.Scatter]:
    colour = theme.cycle(theme.SERIES, number)
    shared: dict[str, Any] = {"legendgroup": name, "name": text(name)}
    across = rows[along].tolist()
    low, high = (100 * rows["low"]).tolist(), (100 * rows["high"]).tolist()
    return [
        go.Scatter(
            **shared,
            x=across + across[::-1],
            y=high + low[::-1],
            fill="toself",
            fillcolor=colour,
            line={"width": 0, "color": colour},
            opacity=0.16,
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
        ),
        go.Scatter(
            **shared,
            x=across,
            y=(100 * rows["change"]).tolist(),
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": theme.cycle(theme.DASHES, number)},
            marker={"symbol": theme.cycle(theme.SYMBOLS, number), "size": 8, "color": colour},
            customdata=[
                [100 * row_low, 100 * row_high] for row_low, row_high in zip(rows["low"], rows["high"], strict=True)
            ],
            hovertemplate="%{y:+.1f} [%{customdata[0]:+.1f}, %{customdata[1]:+.1f}]",
        ),
    ]


def _band(rows: pd.DataFrame, along: str, name: str, number: int | None) -> go.Scatter:
    """A grey band; one of several is hatched, and its edge dashed, in the way of its `number`."""
    across = rows[along].tolist()
    lines = {"fillmode": "replace", "fgcolor": theme.QUIET, "bgcolor": "rgba(0,0,0,0)", "size": 9, "solidity": 0.15}
    hatched = {} if number is None else {"fillpattern": {**lines, "shape": theme.cycle(_HATCHES, number)}}
    return go.Scatter(
        name=text(name),
        x=across + across[::-1],
        y=(100 * rows["high"]).tolist() + (100 * rows["low"]).tolist()[::-1],
        fill="toself",
        fillcolor=theme.QUIET,
        line={"width": 1, "color": theme.QUIET, "dash": "dot" if number is None else theme.cycle(theme.DASHES, number)},
        opacity=0.25 if number is None else 0.6,
        mode="lines",
        hoverinfo="skip",
        **hatched,
    )


_HATCHES = ("/", "\\", "|", "-")
