"""Hidden states of every language in the plane of their two first principal components, with a slider over the layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lm_eval_ext.errors import ResultsError
from lm_eval_ext.languages import KNOWN
from lm_eval_ext.viz import theme
from lm_eval_ext.viz.chart import Chart
from lm_eval_ext.viz.panels import language_style, panel_title, text

if TYPE_CHECKING:
    import pandas as pd

#: Columns of the frame that the figure is drawn from.
COLUMNS = ("layer", "panel", "language", "question", "pc1", "pc2")


def layer_pca(frame: pd.DataFrame, *, title: str = "", layer: int | None = None) -> Chart:
    """Points per question and language, one panel per set of questions (or model), one slider step per layer.

    Args:
        frame: one row per layer, panel, language and question, tidy. Columns: `layer` (0-based), `panel` (what a panel
            shows: `universal`, `cultural`, `aligned, universal`, ...), `language`, `question` (its id), `pc1`, `pc2`;
            optionally `explained` (share of the layer's variance that the two components hold, the same in every row of a
            layer and panel).
        title: of the figure.
        layer: what is shown first, and in static images; the middle one if not given.

    Raises:
        ResultsError: missing columns, no rows, or a layer that the frame lacks.
    """
    if missing := [column for column in COLUMNS if column not in frame]:
        raise ResultsError(f"the PCA needs the columns {', '.join(COLUMNS)}; missing: {', '.join(missing)}")
    layers = sorted({int(value) for value in frame["layer"]})
    if not layers:
        raise ResultsError("there is nothing to draw: the frame has no rows")
    first = layers[len(layers) // 2] if layer is None else layer
    if first not in layers:
        raise ResultsError(f"the frame has no layer {first}; it has {', '.join(map(str, layers))}")
    panels = list(dict.fromkeys(frame["panel"]))
    order = list(KNOWN)
    languages = sorted(set(frame["language"]), key=lambda code: (order.index(code) if code in order else 99, code))
    figure = make_subplots(cols=len(panels), horizontal_spacing=0.06)
    for number, panel in enumerate(panels, start=1):
        for language in languages:
            figure.add_trace(_points(frame, first, panel, language, legend=number == 1), row=1, col=number)
    steps = [_step(frame, at, panels, languages) for at in layers]
    figure.update_xaxes(
        **theme.axis(title={"text": "component 1", "standoff": 4, "font": {"size": 13}}, zeroline=False, nticks=5)
    )
    figure.update_yaxes(**theme.axis(zeroline=False, nticks=5))
    figure.update_yaxes(title={"text": "component 2", "standoff": 4, "font": {"size": 13}}, col=1)
    figure.update_layout(
        **theme.layout(
            annotations=_titles(frame, first, panels),
            margin={"l": 20, "r": 10, "t": 36, "b": 20},
            legend={"orientation": "h", "x": 0, "y": -0.42, "yanchor": "top", "itemsizing": "constant"},
            sliders=[theme.slider(steps, layers.index(first))],
        )
    )
    return Chart(
        "pca",
        title or "Where languages meet",
        "Hidden states at the last token, one point per question and language, in the plane of the two first principal "
        "components of each layer and panel. Languages that overlap are treated alike; the slider moves through the layers.",
        figure,
        frame,
        height=560,
        min_width=300 * len(panels),
    )


def _chosen(frame: pd.DataFrame, layer: int, panel: str, language: str) -> pd.DataFrame:
    rows: pd.DataFrame = frame[(frame["layer"] == layer) & (frame["panel"] == panel) & (frame["language"] == language)]
    return rows


def _points(frame: pd.DataFrame, layer: int, panel: str, language: str, *, legend: bool) -> go.Scatter:
    style = language_style(language)
    rows = _chosen(frame, layer, panel, language)
    name = KNOWN[language].name if language in KNOWN else language
    return go.Scatter(
        name=text(name),
        legendgroup=language,
        showlegend=legend,
        x=rows["pc1"].tolist(),
        y=rows["pc2"].tolist(),
        mode="markers",
        marker={"color": style["colour"], "symbol": style["symbol"], "size": 7, "opacity": 0.75},
        text=[text(str(question)) for question in rows["question"]],
        hovertemplate=f"{text(name)}, %{{text}}<extra></extra>",
    )


def _step(frame: pd.DataFrame, layer: int, panels: list[str], languages: list[str]) -> dict[str, Any]:
    """One position of the slider: the points of every panel and language, and the titles."""
    parts = [_chosen(frame, layer, panel, language) for panel in panels for language in languages]
    moved = {
        "x": [part["pc1"].tolist() for part in parts],
        "y": [part["pc2"].tolist() for part in parts],
        "text": [[text(str(question)) for question in part["question"]] for part in parts],
    }
    titles = {f"annotations[{n}].text": title["text"] for n, title in enumerate(_titles(frame, layer, panels))}
    return {"label": str(layer), "method": "update", "args": [moved, titles]}


def _titles(frame: pd.DataFrame, layer: int, panels: list[str]) -> list[dict[str, Any]]:
    titles = []
    for number, panel in enumerate(panels, start=1):
        explained = ""
        if "explained" in frame:
            rows = frame[(frame["layer"] == layer) & (frame["panel"] == panel)]
            explained = f"</b>, {float(rows['explained'].iloc[0]):.0%} of the variance<b>" if len(rows) else ""
        titles.append(panel_title(text(panel) + explained, number))
    return titles
