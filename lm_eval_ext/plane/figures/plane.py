"""The plane as a plotly figure: the baseline at the origin, four named quadrants, an arrow to every steered variant."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.plane.figures.panels import run_style
from lm_eval_ext.plane.wording import interval, is_missing, levels, likeliest_quadrant, quadrant_name, view_name
from lm_eval_ext.stats import on_front
from lm_eval_ext.stats.region import ellipse
from lm_eval_ext.steering.controls import CONTROL_NAMES
from lm_eval_ext.viz import labels, theme
from lm_eval_ext.viz.chart import Chart
from lm_eval_ext.viz.panels import text

if TYPE_CHECKING:
    from lm_eval_ext.plane.shifts import Plane
    from lm_eval_ext.results.axes import Axis
    from lm_eval_ext.results.run import Run

#: Quadrant: its tint, and whether it lies right and up.
_QUADRANTS = {
    "upper_right": ("gain", 1, 1),
    "lower_right": ("erasure", 1, 0),
    "lower_left": ("loss", 0, 0),
    "upper_left": ("local", 0, 1),
}

#: With more runs than this the legend and the hover name the points, and regions are left to the hover's intervals.
MAX_LABELS = 16

_SIZE = 12
_FRONT = "Pareto front"


def draw(plane: Plane) -> go.Figure:
    """The figure, with menus: the average, each language, every language at once; intervals, joint regions, both.

    All names are escaped: a hostile model or run name is shown, not executed.
    """
    views = [_view(plane, language) for language in (AVERAGE, *plane.languages)]
    if len(plane.languages) > 1:
        views.append(_every_language(plane))
    views = [view for view in views if any(trace["x"] for trace in view.traces)]
    styles = _styles(plane)
    figure = go.Figure(layout=_layout(plane, views, styles))
    for style, data in zip(styles, views[0].traces, strict=True):
        figure.add_trace(go.Scatter(style))
        for key, value in data.items():
            figure.data[-1][key] = value
    return figure


def plane_chart(plane: Plane) -> Chart:
    """The figure with its caption, and what it draws."""
    return Chart(
        "plane",
        "The transfer-localization plane"
        if plane.is_transfer_localization
        else f"{text(plane.x.title)} against {text(plane.y.title)}",
        f"Change of both scores against {plane.baseline.name}, which stands at the origin. Arrows lead from a model to "
        f"its steered variants{_controls(plane)}. Whiskers are "
        f"{plane.level:.0%} intervals of each axis, shaded regions hold the whole position with {plane.level:.0%}. "
        "The stepped line is the Pareto front: no run beyond it is as good on both axes.",
        draw(plane),
        plane.shifts,
        height=620,
    )


def _controls(plane: Plane) -> str:
    """What the hollow grey points are, where there are some."""
    kinds = [names for kind, (_, names) in CONTROL_NAMES.items() if any(run.control == kind for run in plane.runs)]
    return f"; hollow grey points are controls: {', '.join(kinds)}" if kinds else ""


class _View(NamedTuple):
    """What one entry of the menu shows: every trace's data by plotly's dotted names, and the ranges of the axes."""

    name: str
    traces: list[dict[str, list[Any]]]
    ranges: dict[str, list[float]]


def _runs(plane: Plane) -> list[Run]:
    return [plane.baseline, *plane.runs]


def _has_regions(plane: Plane) -> bool:
    return len(plane.runs) < MAX_LABELS


def _styles(plane: Plane) -> list[dict[str, Any]]:
    """What never changes: a region per run (where they are few), the front, an arrow per run, a point per run."""
    regions, arrows, points = [], [], []
    for number, run in enumerate(_runs(plane)):
        style = run_style(plane, run)
        colour = style["colour"]
        shared = {"name": text(run.name), "legendgroup": str(number), "cliponaxis": False, "opacity": 1}
        regions.append(
            {
                **shared,
                "mode": "lines",
                "line": {"color": colour, "width": 1, "dash": "dot" if run.is_control else "solid"},
                "fill": "toself",
                "fillcolor": colour,
                "opacity": 0.14,
                "hoverinfo": "skip",
                "showlegend": False,
                "visible": False,
            }
        )
        arrows.append(
            {
                **shared,
                "mode": "lines+markers",
                "line": {"color": colour, "width": 1.6, "dash": "dot" if run.is_control else "solid"},
                "marker": {
                    "color": colour,
                    "symbol": ["circle", "arrow-wide"],
                    "opacity": 1,
                    "size": [0, 12],
                    "standoff": [0, _SIZE / 2],
                    "angleref": "previous",
                    "line": {"width": 0},
                },
                "hoverinfo": "skip",
                "showlegend": False,
            }
        )
        whiskers = {"color": colour, "thickness": 1.2, "width": 0, "symmetric": False}
        points.append(
            {
                **shared,
                "mode": "markers+text",
                "marker": {
                    "color": colour,
                    "symbol": style["symbol"],
                    "size": _SIZE if number else _SIZE + 4,
                    "line": {"color": colour, "width": 2 if run.is_control or not number else 0},
                    "opacity": 1,
                },
                "error_x": whiskers,
                "error_y": whiskers,
                "textfont": {"color": colour, "size": 13},
                "hoverinfo": "text",
            }
        )
    front = {
        "name": _FRONT,
        "mode": "lines",
        "line": {"color": theme.QUIET, "width": 1.5, "dash": "dash", "shape": "vh"},
        "hoverinfo": "skip",
        "showlegend": True,
        "cliponaxis": True,
    }
    return [*(regions if _has_regions(plane) else []), front, *arrows, *points]


def _data(x: list[float], y: list[float], **columns: list[Any]) -> dict[str, list[Any]]:
    """The part of a trace that changes with the view; the menu needs every key at every trace."""
    data = {"x": x, "y": y, "text": [], "textposition": [], "hovertext": []}
    data |= {f"error_{axis}.{end}": [] for axis in "xy" for end in ("array", "arrayminus")}
    return data | columns


def _rows(plane: Plane, language: str) -> list[dict[str, Any] | None]:
    """One row of the shifts per run; None where a run lacks the language."""
    frame = plane.shifts[plane.shifts["language"] == language]
    by_run = {row["run"]: row for row in frame.to_dict("records")}
    return [by_run.get(run.name) for run in _runs(plane)]


def _view(plane: Plane, language: str) -> _View:
    """Every run at one language, or at the average, with intervals, regions, arrows and front."""
    rows = _rows(plane, language)
    present = [row for row in rows if row]
    ends = ranges(
        [100 * row[f"x_{end}"] for row in present for end in ("low", "high")],
        [100 * row[f"y_{end}"] for row in present for end in ("low", "high")],
    )
    starts = [_start(plane, number, rows) for number in range(len(rows))]
    lines = [(start, _at(row)) for row, start in zip(rows, starts, strict=True) if row and start]
    lines += [line for row in present for line in _whiskers(row)]
    named = len(rows) <= MAX_LABELS
    positions = iter(
        labels.positions([_at(row) for row in present], [row["run"] for row in present], ends, lines) if named else []
    )
    regions: list[dict[str, list[Any]]] = []
    arrows: list[dict[str, list[Any]]] = []
    points: list[dict[str, list[Any]]] = []
    for row, start in zip(rows, starts, strict=True):
        if row is None:
            for traces in (regions, arrows, points):
                traces.append(_data([], []))
            continue
        x, y = _at(row)
        regions.append(_region(plane, row))
        arrows.append(_data([start[0], x], [start[1], y]) if start else _data([], []))
        whiskers = {
            f"error_{score}.{key}": [100 * abs(row[f"{score}_{end}"] - row[f"{score}_change"])]
            for score in "xy"
            for key, end in (("array", "high"), ("arrayminus", "low"))
        }
        points.append(
            _data(
                [x],
                [y],
                text=[text(row["run"])] if named else [],
                textposition=[next(positions)] if named else [],
                hovertext=[hover(plane, row)],
                **whiskers,
            )
        )
    name = view_name(plane, language)
    above = [*(regions if _has_regions(plane) else []), _front(plane, rows, ends)]
    return _View(text(name[:1].upper() + name[1:]), above + arrows + points, ends)


def _every_language(plane: Plane) -> _View:
    """Every run at every language: points named by their codes, without intervals."""
    by_language = [_rows(plane, language) for language in plane.languages]
    # The baseline stands at the origin in every language: one point is enough.
    of_run = [[row for row in rows if row] for rows in zip(*by_language, strict=True)]
    of_run[0] = of_run[0][:1]
    every = [row for rows in of_run for row in rows]
    ends = ranges(*([_at(row)[axis] for row in every] for axis in (0, 1)))
    named = len(of_run) <= MAX_LABELS
    names = [row["run"] if row in of_run[0] else row["language"] for row in every] if named else []
    positions = iter(labels.positions([_at(row) for row in every], names, ends, []) if named else [])
    labelled = iter(names)
    points = [
        _data(
            [_at(row)[0] for row in rows],
            [_at(row)[1] for row in rows],
            text=[text(next(labelled)) for _ in rows] if named else [],
            textposition=[next(positions) for _ in rows] if named else [],
            hovertext=[hover(plane, row) for row in rows],
        )
        for rows in of_run
    ]
    return _View("Every language", [_data([], [])] * (len(_styles(plane)) - len(points)) + points, ends)


def _at(row: dict[str, Any]) -> tuple[float, float]:
    return 100 * row["x_change"], 100 * row["y_change"]


def _whiskers(row: dict[str, Any]) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Both intervals as lines through the point."""
    x, y = _at(row)
    return [
        ((100 * row["x_low"], y), (100 * row["x_high"], y)),
        ((x, 100 * row["y_low"]), (x, 100 * row["y_high"])),
    ]


def _region(plane: Plane, row: dict[str, Any]) -> dict[str, list[Any]]:
    """The ellipse that holds the whole position."""
    if row["run"] == plane.baseline.name:
        return _data([], [])
    outline = 100 * ellipse(
        (row["x_change"], row["y_change"]), (row["x_error"], row["y_error"]), row["correlation"], plane.level
    )
    across, up = np.round(outline, 3).T.tolist()
    return _data(across, up)


def _front(plane: Plane, rows: list[dict[str, Any] | None], ends: dict[str, list[float]]) -> dict[str, list[Any]]:
    """The steps of the Pareto front over all runs but the controls, from one end of the plane to the other."""
    controls = {run.name for run in plane.runs if run.is_control}
    places = np.array([_at(row) for row in rows if row and row["run"] not in controls])
    if len(places) < 2:
        return _data([], [])
    front = np.unique(places[on_front(places)], axis=0)
    front = front[np.argsort(front[:, 0], kind="stable")].tolist()
    return _data(
        [ends["xaxis"][0], *(x for x, _ in front), front[-1][0]],
        [front[0][1], *(y for _, y in front), ends["yaxis"][0]],
    )


def _start(plane: Plane, number: int, rows: list[dict[str, Any] | None]) -> tuple[float, float] | None:
    """Where the arrow to a steered run starts: at the unsteered run of the same model, the baseline if it is one."""
    run = _runs(plane)[number]
    if not run.plan:
        return None
    unsteered = (
        row for other, row in zip(_runs(plane), rows, strict=True) if other.model == run.model and not other.plan
    )
    return next((_at(row) for row in unsteered if row), None)


def ranges(x: list[float], y: list[float]) -> dict[str, list[float]]:
    """Ranges of the axes that hold the values and the origin, and show something of all four quadrants."""
    ends = {}
    for axis, values in (("xaxis", x), ("yaxis", y)):
        low, high = min([0.0, *values]), max([0.0, *values])
        span = max(high - low, 1.0)
        ends[axis] = [min(low - 0.08 * span, -0.35 * span), max(high + 0.08 * span, 0.35 * span)]
    return ends


def hover(plane: Plane, row: dict[str, Any]) -> str:
    """What a point says of itself."""
    lines = [f"<b>{text(row['run'])}</b>, {text(view_name(plane, row['language']))}"]
    if row["plan"]:
        lines.append(f"plan {text(row['plan'])}")
    named = [("x", plane.x.title, plane.x), ("y", plane.y.title, plane.y), ("bias", "English bias", None)]
    for score, title, axis in named:
        if is_missing(row, score):
            continue
        lines += [
            f"<b>{text(title)}</b> {interval(row, score)} points" + (f" ({text(axis.score)})" if axis else ""),
            f"  {levels(row, score)}; n = {row[f'{score}_n']} on {row[f'{score}_questions']} questions; "
            f"{row[f'{score}_gains']} up, {row[f'{score}_losses']} down",
        ]
    if row["run"] != plane.baseline.name:
        lines.append(f"most resamples lie in: {likeliest_quadrant(plane, row)}")
    return "<br>".join(lines)


def quadrants(number: str = "") -> list[dict[str, Any]]:
    """The tinted quadrants behind the axes `x{number}` and `y{number}`."""
    return [
        {
            "type": "rect",
            "xref": f"x{number}",
            "yref": f"y{number}",
            "x0": 0,
            "x1": 1e3 if right else -1e3,
            "y0": 0,
            "y1": 1e3 if top else -1e3,
            "fillcolor": theme.PALETTE[tint][0],
            "line_width": 0,
            "layer": "below",
        }
        for tint, right, top in _QUADRANTS.values()
    ]


def _layout(plane: Plane, views: list[_View], styles: list[dict[str, Any]]) -> dict[str, Any]:
    names = [
        {
            "text": quadrant_name(plane, quadrant)
            if right
            else fill(quadrant_name(plane, quadrant), 13).replace("\n", "<br>"),
            "xref": "paper",
            "yref": "paper",
            "x": right,
            "y": top,
            "xanchor": "right" if right else "left",
            "yanchor": "top" if top else "bottom",
            "showarrow": False,
            "align": "left",
            "borderpad": 6,
            "font": {"size": 12, "color": theme.QUIET, "style": "italic"},
        }
        for quadrant, (_, right, top) in _QUADRANTS.items()
    ]
    menus = [_views_menu(views)] if len(views) > 1 else []
    if _has_regions(plane) and plane.runs:
        menus.append(_uncertainty_menu(plane, styles))
    return theme.layout(
        shapes=quadrants(),
        annotations=names,
        xaxis=theme.axis(title=_axis_title(plane.x), range=views[0].ranges["xaxis"]),
        yaxis=theme.axis(title=_axis_title(plane.y), range=views[0].ranges["yaxis"]),
        showlegend=len(plane.runs) < 3 * MAX_LABELS,
        updatemenus=menus,
    )


def _views_menu(views: list[_View]) -> dict[str, Any]:
    buttons = [
        {
            "label": view.name,
            "method": "update",
            "args": [
                {key: [trace[key] for trace in view.traces] for key in view.traces[0]},
                {f"{axis}.range": ends for axis, ends in view.ranges.items()},
            ],
        }
        for view in views
    ]
    return theme.menu(buttons)


def _uncertainty_menu(plane: Plane, styles: list[dict[str, Any]]) -> dict[str, Any]:
    is_region = [style.get("fill") == "toself" for style in styles]

    def button(label: str, *, whiskers: bool, regions: bool) -> dict[str, Any]:
        shown = {f"error_{axis}.visible": whiskers for axis in "xy"}
        return {
            "label": label,
            "method": "restyle",
            "args": [{"visible": [regions or not region for region in is_region], **shown}],
        }

    region = f"{plane.level:.0%} regions"
    buttons = [
        button("Intervals", whiskers=True, regions=False),
        button(region, whiskers=False, regions=True),
        button(f"Intervals and {region}", whiskers=True, regions=True),
        button("Points only", whiskers=False, regions=False),
    ]
    return theme.menu(buttons, x=1, xanchor="right")


def _axis_title(axis: Axis) -> dict[str, Any]:
    name = axis.title if axis.subject is None else f"{axis.title.capitalize()}: {axis.name}"
    return {"text": f"<b>{text(name)}</b><br>change of {text(axis.score)}, percentage points", "standoff": 8}
