"""Pictures of many runs at once: the change of a score, the languages, the items that moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.plane.figures.panels import run_style
from lm_eval_ext.plane.wording import interval, is_missing, levels, verdict, view_name
from lm_eval_ext.viz import theme
from lm_eval_ext.viz.chart import Chart
from lm_eval_ext.viz.numbers import points
from lm_eval_ext.viz.panels import short, text

if TYPE_CHECKING:
    import pandas as pd

    from lm_eval_ext.plane.shifts import Plane

_ALPHA = 0.05  # of the corrected tests in single languages
_ROW, _GAP, _FRAME = 26, 70, 110  # pixels of a run, between two panels, and around all


def forest(plane: Plane, score: str) -> Chart | None:
    """The change of the average in each run with its interval, one run per row; None where there is none.

    Args:
        plane: what was measured.
        score: `x`, `y` or `bias`.
    """
    frame = _of_runs(plane, [AVERAGE])
    frame = frame[frame[f"{score}_change"].notna()].sort_values(f"{score}_change")
    if frame.empty:
        return None
    title = "English bias" if score == "bias" else (plane.x if score == "x" else plane.y).title
    rows: list[dict[str, Any]] = frame.to_dict("records")
    styles = {run.name: run_style(plane, run) for run in plane.runs}
    figure = go.Figure(
        go.Scatter(
            x=[100 * row[f"{score}_change"] for row in rows],
            y=[short(row["run"]) for row in rows],
            mode="markers",
            marker={
                "size": 10,
                "color": [styles[row["run"]]["colour"] for row in rows],
                "symbol": ["circle-open" if verdict(row, score) == "undecided" else "circle" for row in rows],
            },
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [100 * (row[f"{score}_high"] - row[f"{score}_change"]) for row in rows],
                "arrayminus": [100 * (row[f"{score}_change"] - row[f"{score}_low"]) for row in rows],
                "color": theme.QUIET,
                "thickness": 1.5,
                "width": 4,
            },
            hoverinfo="text",
            hovertext=[f"<b>{text(row['run'])}</b><br>{levels(row, score)}<br>{interval(row, score)}" for row in rows],
        ),
        layout=theme.layout(
            showlegend=False,
            margin={"l": 20, "r": 10, "t": 10, "b": 20},
            xaxis=theme.axis(title={"text": f"<b>{text(title)}</b>, change in points", "standoff": 6}, zeroline=True),
            yaxis=theme.axis(type="category", showgrid=False, ticks=""),
        ),
    )
    columns = [f"{score}_{name}" for name in ("baseline", "run", "change", "low", "high", "n", "questions", "changed")]
    return Chart(
        f"change_{score}",
        f"Change of {title}",
        f"Average against {plane.baseline.name}, in percentage points, with its {plane.level:.0%} interval. Full: the "
        "change is decided; open: it is not.",
        figure,
        frame[["run", *columns]],
        height=_FRAME + _ROW * len(rows),
    )


def language_changes(plane: Plane) -> Chart | None:
    """Both axes by run and language, a cell for each; None without languages."""
    codes = [code for code in plane.languages if code in set(plane.shifts["language"])]
    frame = _of_runs(plane, codes)
    if frame.empty or len(codes) < 2:
        return None
    names = list(dict.fromkeys(frame["run"]))
    figure = make_subplots(
        rows=2,
        cols=1,
        vertical_spacing=_GAP / (_GAP + 2 * _ROW * len(names)),
        subplot_titles=[text(plane.x.title), text(plane.y.title)],
    )
    extent = max(100 * float(frame[["x_change", "y_change"]].abs().max().max()), 0.1)
    for number, score in enumerate(("x", "y"), start=1):
        cells: dict[tuple[str, str], Any] = {(row["run"], row["language"]): row for row in frame.to_dict("records")}
        grid: list[list[Any]] = [[cells.get((name, code)) for code in codes] for name in reversed(names)]
        figure.add_trace(
            go.Heatmap(
                x=[text(view_name(plane, code)) for code in codes],
                y=[short(name) for name in reversed(names)],
                z=[[None if _empty(row, score) else 100 * row[f"{score}_change"] for row in line] for line in grid],
                text=[[_cell(row, score) for row in line] for line in grid],
                texttemplate="%{text}",
                textfont={"color": theme.INK},
                hovertemplate="%{y}, %{x}: %{z:+.1f} points<extra></extra>",
                hoverongaps=False,
                zmin=-extent,
                zmax=extent,
                colorscale=[[0, theme.LESS], [0.5, theme.PAPER], [1, theme.MORE]],
                showscale=False,
                xgap=1,
                ygap=1,
            ),
            row=number,
            col=1,
        )
    figure.update_layout(theme.layout(margin={"l": 20, "r": 10, "t": 36, "b": 20}))
    figure.update_xaxes(theme.axis(type="category", showgrid=False, ticks=""))
    figure.update_yaxes(theme.axis(type="category", showgrid=False, ticks=""))
    columns = [f"{score}_{name}" for score in ("x", "y") for name in ("change", "low", "high", "holm", "n")]
    return Chart(
        "language_changes",
        "Change by language",
        f"Against {plane.baseline.name}, in percentage points. Bold: the change survives the correction for the number of "
        "languages (Holm, 5%).",
        figure,
        frame[["run", "language", *columns]],
        height=_FRAME + _GAP + 2 * _ROW * len(names),
        min_width=150 + 64 * len(codes),
    )


def moved_items(plane: Plane) -> Chart | None:
    """Documents whose score rose and fell in each run, on both axes."""
    frame = _of_runs(plane, [AVERAGE])
    if frame.empty:
        return None
    frame = frame.assign(gained=frame["x_gains"] + frame["y_gains"], lost=frame["x_losses"] + frame["y_losses"])
    frame = frame.sort_values("gained")
    names = [short(name) for name in frame["run"]]
    bars = [
        go.Bar(
            name=name,
            y=names,
            x=[sign * int(n) for n in frame[column]],
            customdata=[int(n) for n in frame[column]],
            hovertemplate=f"%{{y}}: %{{customdata}} {name}<extra></extra>",
            orientation="h",
            marker={"color": colour, "pattern": {"shape": pattern, "fillmode": "replace", "solidity": 0.4}},
        )
        for name, column, sign, colour, pattern in (
            ("gained", "gained", 1, theme.SERIES[0], ""),
            ("lost", "lost", -1, theme.SERIES[1], "/"),
        )
    ]
    figure = go.Figure(
        bars,
        layout=theme.layout(
            barmode="relative",
            bargap=0.3,
            margin={"l": 20, "r": 10, "t": 30, "b": 20},
            legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
            xaxis=theme.axis(title={"text": "<b>documents</b>, lost and gained", "standoff": 6}),
            yaxis=theme.axis(type="category", showgrid=False, ticks=""),
        ),
    )
    return Chart(
        "moved_items",
        "Documents that changed their score",
        f"On both axes together, against {plane.baseline.name}: to the right those whose score rose, to the left those "
        "whose score fell. Equal bars on both sides are flips that no average shows.",
        figure,
        frame[["run", "gained", "lost", "x_gains", "x_losses", "y_gains", "y_losses", "x_n", "y_n"]],
        height=_FRAME + 20 + _ROW * len(names),
    )


def _of_runs(plane: Plane, languages: list[str]) -> pd.DataFrame:
    is_shown = plane.shifts["language"].isin(languages) & (plane.shifts["run"] != plane.baseline.name)
    frame: pd.DataFrame = plane.shifts[is_shown]
    return frame


def _empty(row: Any, score: str) -> bool:
    return row is None or is_missing(row, score)


def _cell(row: Any, score: str) -> str:
    if _empty(row, score):
        return ""
    shown = points(row[f"{score}_change"])
    return f"<b>{shown}</b>" if row[f"{score}_holm"] <= _ALPHA else shown
