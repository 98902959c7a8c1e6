"""Figures of the tables: curves over the layers, cosines between languages, principal components."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lm_eval_ext.geometry.measures import random_cosine
from lm_eval_ext.geometry.tables import MINUS, SHARE, SILHOUETTE
from lm_eval_ext.languages import AVERAGE, KNOWN
from lm_eval_ext.viz import theme
from lm_eval_ext.viz.chart import Chart
from lm_eval_ext.viz.panels import language_style, panel_title, text
from lm_eval_ext.viz.pca import layer_pca

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import pandas as pd

#: How hidden states are pooled, in captions.
POOLED = {"mean": "averaged over the text's tokens", "last": "at the text's last token"}


def charts(frames: dict[str, pd.DataFrame], *, hidden_size: int, pooling: str, level: float) -> list[Chart]:
    """Every figure that the tables allow, in the order of the page.

    Args:
        frames: of `tables.vector_tables` and `StateTables.frames`; those that were not measured are missing or empty.
        hidden_size: of the vectors' model, for the cosine expected by chance.
        pooling: of the hidden states.
        level: of the intervals.
    """
    all_charts = []
    measured = {name for name, frame in frames.items() if len(frame)}
    if "angles" in measured:
        all_charts += [_perpendicularity(frames, hidden_size), _norms(frames["norms"])]
    if "cross" in measured:
        all_charts.append(_between_languages(frames["cross"]))
    if "pca" in measured:
        all_charts.append(_pca(frames["pca"], pooling))
        all_charts += [_separation(frames["separation"], measure, pooling, level) for measure in (SILHOUETTE, SHARE)]
    if "mexa" in measured:
        all_charts.append(_mexa(frames["mexa"], pooling, level))
    return all_charts


def _perpendicularity(frames: dict[str, pd.DataFrame], hidden_size: int) -> Chart:
    frame = frames["angles"]
    first, second = (text(kind.upper()) for kind in dict.fromkeys(frames["norms"]["kind"]))
    chance = random_cosine(hidden_size)
    tidy = frame.melt(["layer", "language"], ["s_per", "degrees"], "panel", "value")
    tidy = tidy.replace({"panel": {"s_per": "S_PER", "degrees": "angle in degrees"}})
    chart = layer_curves(tidy.assign(series=tidy["language"]), share_y=False)
    figure = chart.add_hline(90, line={"color": theme.QUIET, "dash": "dot", "width": 1}, row=1, col=2)
    return Chart(
        "angles",
        f"Are {first} and {second} orthogonal?",
        f"The {first} and the {second} vector of each language at each layer. S_PER is 100 (1 - |cos|), our default for "
        f"a measure that the paper does not define: 100 is orthogonal. Two random directions in {hidden_size} "
        f"dimensions have {100 * (1 - chance):.1f} on average and about 90 degrees.",
        figure,
        frame,
        height=440,
        min_width=620,
    )


def _norms(frame: pd.DataFrame) -> Chart:
    absolute = frame.assign(panel=frame["kind"].str.upper() + ", norm", value=frame["norm"])
    relative = frame.assign(
        panel=frame["kind"].str.upper() + ", % of the residual norm", value=100 * frame["relative_norm"]
    )
    tidy = _concat([absolute, relative])
    figure = layer_curves(tidy.assign(series=tidy["language"]), share_y=False)
    return Chart(
        "norms",
        "How long are the vectors?",
        "Norm of each vector, and the same in per cent of the mean norm of the residual stream at its layer and position: "
        "what a gamma of 1 adds.",
        figure,
        frame,
        height=440,
        min_width=1000,
    )


def _between_languages(frame: pd.DataFrame) -> Chart:
    layers = sorted(set(frame["layer"]))
    kinds = list(dict.fromkeys(frame["kind"]))
    first = layers[len(layers) // 2]

    def cells(layer: int, kind: str) -> dict[str, Any]:
        part = frame[(frame["layer"] == layer) & (frame["kind"] == kind)]
        names = list(dict.fromkeys(part["language"]))
        values = [part.loc[part["language"] == name, "cosine"].round(3).tolist() for name in names]
        return {"x": names, "y": names, "z": values, "text": [[f"{value:.2f}" for value in row] for row in values]}

    figure = make_subplots(cols=len(kinds), horizontal_spacing=0.1)
    for number, kind in enumerate(kinds, start=1):
        trace = go.Heatmap(
            **cells(first, kind),
            texttemplate="%{text}",
            textfont={"color": theme.INK, "size": 11},
            hovertemplate=f"{text(kind.upper())}: %{{y}} and %{{x}}<br>cosine %{{z:.3f}}<extra></extra>",
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
        )
        figure.add_trace(trace, row=1, col=number)
    steps = []
    for layer in layers:
        parts = [cells(layer, kind) for kind in kinds]
        moved = {key: [part[key] for part in parts] for key in ("z", "text")}
        steps.append({"label": str(layer), "method": "restyle", "args": [moved]})
    figure.update_xaxes(**theme.axis(type="category", showgrid=False, ticks="", tickformat=""))
    figure.update_yaxes(**theme.axis(type="category", showgrid=False, ticks="", tickformat="", autorange="reversed"))
    figure.update_layout(
        **theme.layout(
            annotations=[panel_title(text(kind.upper()), number) for number, kind in enumerate(kinds, start=1)],
            margin={"l": 20, "r": 10, "t": 36, "b": 20},
            coloraxis={
                "cmin": -1,
                "cmax": 1,
                "colorscale": [[0, theme.LESS], [0.5, theme.PAPER], [1, theme.MORE]],
                "colorbar": {"title": {"text": "cosine", "side": "right"}, "thickness": 12, "outlinewidth": 0},
            },
            sliders=[theme.slider(steps, layers.index(first))],
        )
    )
    return Chart(
        "cross",
        "Do languages share their vectors?",
        "Cosine of each language's vector with each other language's, at the layer of the slider.",
        figure,
        frame,
        height=520,
        min_width=420 * len(kinds),
    )


def _pca(frame: pd.DataFrame, pooling: str) -> Chart:
    chart = layer_pca(frame)
    longest = int(frame["panel"].str.len().max()) + len(", 100% of the variance")  # of the titles side by side
    return replace(
        chart,
        caption=f"Hidden states {POOLED[pooling]}, one point per question and language, in the plane of the two first "
        "principal components of each layer and panel. Languages that overlap are represented alike; the slider moves "
        "through the layers. Hovering shows a question's id.",
        min_width=max(chart.min_width, frame["panel"].nunique() * 7 * longest),
    )


def _separation(frame: pd.DataFrame, measure: str, pooling: str, level: float) -> Chart:
    rows = frame[frame["measure"] == measure]
    is_difference = rows["questions"].str.contains(MINUS, regex=False)
    panel = rows["model"].where(~is_difference, rows["model"] + ": difference")
    figure = layer_curves(rows.assign(panel=panel, series=rows["questions"]))
    if measure == SILHOUETTE:
        title = "Do questions lie by language?"
        what = "Mean silhouette by language, Euclidean, all dimensions: 1 where every language lies by itself, 0 where they "
        what += "overlap, below 0 where a question is nearer to itself in another language"
    else:
        title = "How much of the variance lies between languages?"
        what = "Sum of squares between the languages' means over the total, all dimensions together"
    return Chart(
        measure.replace(" ", "_"),
        title,
        f"{what}. Hidden states {POOLED[pooling]}. Shaded: {level:.0%} interval of each layer, bootstrap over questions.",
        figure,
        rows,
        height=440,
        min_width=360 * panel.nunique(),
    )


def _mexa(frame: pd.DataFrame, pooling: str, level: float) -> Chart:
    band = frame["language"].isin([AVERAGE]) | ~frame.groupby("model")["language"].transform(
        lambda names: names.isin([AVERAGE]).any()
    )
    tidy = frame.assign(panel=frame["model"], series=frame["language"])
    tidy.loc[~band, ["low", "high"]] = float("nan")  # the bands of all languages would overlap
    n = int(frame["n_sentences"].iloc[0])
    return Chart(
        "mexa",
        "Does a sentence find its translation?",
        "MEXA (Kargaran et al. 2024): share of sentences whose English and translated states are nearer to each other, by "
        f"cosine, than either is to any other of {n} sentences; {1 / (2 * n - 1):.1%} by chance. Hidden states "
        f"{POOLED[pooling]}. Shaded: {level:.0%} interval of the average, bootstrap over sentences.",
        layer_curves(tidy),
        frame,
        height=440,
        min_width=360 * frame["model"].nunique(),
    )


def layer_curves(frame: pd.DataFrame, *, share_y: bool = True) -> go.Figure:
    """Curves over the layers, one panel beside the other.

    Args:
        frame: columns `panel`, `series` (languages have their own style everywhere, `average` is black), `layer`, `value`;
            optionally `low` and `high`, drawn as a band where they are not NaN.
        share_y: one scale for all panels.
    """
    panels = list(dict.fromkeys(frame["panel"]))
    names = list(dict.fromkeys(frame["series"]))
    figure = make_subplots(
        cols=len(panels), shared_yaxes=share_y, shared_xaxes="all", horizontal_spacing=0.03 if share_y else 0.06
    )
    first = {name: (frame.loc[frame["series"] == name, "panel"].iloc[0], name) for name in names}
    for column, panel in enumerate(panels, start=1):
        for name in names:
            rows = frame[(frame["panel"] == panel) & (frame["series"] == name)].sort_values("layer")
            if len(rows):
                figure.add_traces(_curve(rows, name, names.index(name), legend=(panel, name) == first[name]), 1, column)
    figure.update_xaxes(**theme.axis(title={"text": "decoder layer", "standoff": 4}, zeroline=False))
    figure.update_yaxes(**theme.axis())
    figure.update_layout(
        **theme.layout(
            annotations=[panel_title(text(panel), number) for number, panel in enumerate(panels, start=1)],
            margin={"l": 20, "r": 10, "t": 36, "b": 20},
        )
    )
    return figure


def _curve(rows: pd.DataFrame, name: str, number: int, *, legend: bool) -> list[go.Scatter]:
    style = _style(name, number)
    shown = KNOWN[name].name if name in KNOWN else name
    shared: dict[str, Any] = {"legendgroup": name, "name": text(shown)}
    layers, values = rows["layer"].tolist(), rows["value"].tolist()
    traces = []
    bounds: Sequence[np.ndarray[Any, Any]] = []
    if "low" in rows and not rows["low"].isna().any():
        bounds = [rows["low"].to_numpy(), rows["high"].to_numpy()]
        traces.append(
            go.Scatter(
                **shared,
                x=layers + layers[::-1],
                y=rows["high"].tolist() + rows["low"].tolist()[::-1],
                fill="toself",
                fillcolor=style["colour"],
                line={"width": 0, "color": style["colour"]},
                opacity=0.16,
                mode="lines",
                hoverinfo="skip",
                showlegend=False,
            )
        )
    intervals = ["" if not len(bounds) else f" [{low:.3g}, {high:.3g}]" for low, high in zip(*bounds, strict=True)]
    traces.append(
        go.Scatter(
            **shared,
            x=layers,
            y=values,
            mode="lines+markers",
            line={"color": style["colour"], "width": 3 if name == AVERAGE else 2, "dash": style["dash"]},
            marker={"symbol": style["symbol"], "size": 7, "color": style["colour"]},
            customdata=intervals or [""] * len(layers),
            hovertemplate=f"<b>{text(shown)}</b>, layer %{{x}}<br>%{{y:.3g}}%{{customdata}}<extra></extra>",
            showlegend=legend,
        )
    )
    return traces


def _style(name: str, number: int) -> dict[str, str]:
    if name in KNOWN:
        return language_style(name)
    if name == AVERAGE:
        return {"colour": theme.INK, "symbol": "circle", "dash": "solid"}
    return {
        "colour": theme.cycle(theme.SERIES, number),
        "symbol": theme.cycle(theme.SYMBOLS, number),
        "dash": theme.cycle(theme.DASHES, number),
    }


def _concat(frames: list[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(frames, ignore_index=True)
