"""The leaderboard as a static site: one page, sortable, filterable, by language, with links to every view."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from lm_eval_ext.io import write_file
from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.leaderboard.tables import to_csv, to_markdown
from lm_eval_ext.results.run import short_model
from lm_eval_ext.steering.controls import Control, control_of
from lm_eval_ext.viz import labels, theme
from lm_eval_ext.viz.chart import Chart
from lm_eval_ext.viz.page import figure_part, render
from lm_eval_ext.viz.panels import text

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from lm_eval_ext.leaderboard.collect import Board
    from lm_eval_ext.results.axes import Axis

_HERE = Path(__file__).parent / "templates"

#: With more points than this the hover names them.
_MAX_LABELS = 16

#: What a run may be: how its points look. Controls are hollow: told apart without colour.
_KINDS = (
    ("unsteered", "circle", theme.INK),
    ("steered", "diamond", theme.SERIES[0]),
    ("random direction", "triangle-up-open", theme.QUIET),
    ("shuffled pairs", "star-open", theme.QUIET),
    ("other language's vector", "square-open", theme.QUIET),
    ("negated vector", "triangle-down-open", theme.QUIET),
)
_CONTROL_KINDS: dict[Control, str] = {
    "random": "random direction",
    "shuffled": "shuffled pairs",
    "other_language": "other language's vector",
    "negated": "negated vector",
}


def write_site(board: Board, folder: Path, *, title: str = "") -> list[Path]:
    """Write `index.html`, `leaderboard.csv` and `leaderboard.md`."""
    files = {
        "index.html": page(board, title=title),
        "leaderboard.csv": to_csv(board),
        "leaderboard.md": to_markdown(board),
    }
    for name, content in files.items():
        write_file(folder / name, content)
    return [folder / name for name in files]


def page(board: Board, *, title: str = "") -> str:
    """The page. Every name in it is escaped."""
    chart = level_chart(board)
    charts = [chart] if chart else []
    return render(
        "leaderboard.html",
        folder=_HERE,
        title=title or "Leaderboard",
        charts=charts,
        chart=figure_part(chart) if chart else None,
        scripts=[(_HERE / "leaderboard.js").read_text(encoding="utf-8")],
        data={"board-data": _data(board)},
        board=board,
        n_runs=board.scores["run"].nunique(),
        level=f"{board.level:.0%}",
        rules=[(family, axis.rule) for family, axis in board.axes.items()],
    )


def level_chart(board: Board) -> Chart | None:
    """Localization against transfer, as levels; None unless the board has one family of each."""
    x, y = (_only(board, subject) for subject in ("transfer", "localization"))
    if x is None or y is None:
        return None
    frame = _beside(board, x, y)
    views = [view for view in (AVERAGE, *board.languages) if view in set(frame["language"])]
    if not views:
        return None
    named = frame["run"].nunique() <= _MAX_LABELS
    kinds = _kinds(frame)
    traces = [_arrows(frame, views[0]), *(_points(board, frame, views[0], *kind, named=named) for kind in kinds)]
    figure = go.Figure(
        traces,
        layout=theme.layout(
            margin={"l": 20, "r": 20, "t": 50, "b": 20},
            xaxis=theme.axis(title=_title(x), ticksuffix="%", zeroline=False),
            yaxis=theme.axis(title=_title(y), ticksuffix="%", zeroline=False),
            updatemenus=[theme.menu([_button(board, frame, view, named=named) for view in views])],
        ),
    )
    return Chart(
        "levels",
        "Transfer and localization",
        f"Scores with {board.level:.0%} intervals, up and to the right is better; lines lead from an unsteered model to its "
        "steered variants. Only runs that were asked the same as most.",
        figure,
        frame,
        height=560,
    )


def _only(board: Board, subject: str) -> Axis | None:
    """The only axis of a subject; variants of another family, such as the country named, do not count."""
    variants = {
        record.family for run in board.runs.values() for record in run.tasks.values() if record.variant_of is not None
    }
    axes = [axis for axis in board.axes.values() if axis.subject == subject and axis.name not in variants]
    return axes[0] if len(axes) == 1 else None


def _beside(board: Board, x: Axis, y: Axis) -> pd.DataFrame:
    """One row per comparable run and language with both scores."""
    names = ["run", "model", "plan", "is_control", "language"]
    frame = board.scores[board.scores["comparable"]]
    across, up = (
        frame[frame["family"] == axis.name][[*names, "score", "low", "high"]].rename(
            columns={column: f"{score}_{column}" for column in ("score", "low", "high")}
        )
        for axis, score in ((x, "x"), (y, "y"))
    )
    both: pd.DataFrame = across.merge(up, on=names)
    return both


def _kind(row: Mapping[Any, Any]) -> str:
    control = control_of(row["plan"])
    return _CONTROL_KINDS[control] if control else "steered" if row["plan"] else "unsteered"


def _kinds(frame: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Kinds of runs that are drawn; of the controls only those that there are."""
    present = {_kind(row) for row in frame.to_dict("records")}
    return [kind for kind in _KINDS if kind[0] in present or kind[0] not in _CONTROL_KINDS.values()]


def _point_data(board: Board, frame: pd.DataFrame, view: str, kind: str, *, named: bool) -> dict[str, Any]:
    everyone = frame[frame["language"] == view].to_dict("records")
    rows = [row for row in everyone if _kind(row) == kind]
    positions = _positions(everyone) if named and everyone else {}

    def away(score: str, end: str) -> list[float]:
        return [100 * abs(row[f"{score}_{end}"] - row[f"{score}_score"]) for row in rows]

    return {
        "x": [100 * row["x_score"] for row in rows],
        "y": [100 * row["y_score"] for row in rows],
        "text": [text(row["run"]) if named else "" for row in rows],
        "textposition": [positions.get(row["run"], "top right") for row in rows],
        "hovertext": [
            f"<b>{text(row['run'])}</b><br>{text(row['model'])}, {text(row['plan'] or 'unsteered')}<br>"
            f"across {row['x_score']:.1%} [{100 * row['x_low']:.1f}, {100 * row['x_high']:.1f}]<br>"
            f"up {row['y_score']:.1%} [{100 * row['y_low']:.1f}, {100 * row['y_high']:.1f}]"
            for row in rows
        ],
        "error_x.array": away("x", "high"),
        "error_x.arrayminus": away("x", "low"),
        "error_y.array": away("y", "high"),
        "error_y.arrayminus": away("y", "low"),
    }


def _positions(rows: list[dict[Any, Any]]) -> dict[str, str]:
    """Where the names of all runs of a view go."""
    ends, whiskers = {}, []
    for axis in "xy":
        low, high = min(row[f"{axis}_low"] for row in rows), max(row[f"{axis}_high"] for row in rows)
        margin = 0.08 * max(high - low, 0.01)
        ends[f"{axis}axis"] = [low - margin, high + margin]
    for row in rows:
        x, y = row["x_score"], row["y_score"]
        whiskers += [((row["x_low"], y), (row["x_high"], y)), ((x, row["y_low"]), (x, row["y_high"]))]
    points = [(row["x_score"], row["y_score"]) for row in rows]
    names = [str(row["run"]) for row in rows]
    return dict(zip(names, labels.positions(points, names, ends, whiskers), strict=True))


def _points(
    board: Board, frame: pd.DataFrame, view: str, kind: str, symbol: str, colour: str, *, named: bool
) -> go.Scatter:
    whiskers = {"color": colour, "thickness": 0.8, "width": 0, "symmetric": False}
    trace = go.Scatter(
        name=kind,
        mode="markers+text" if named else "markers",
        textfont={"size": 12, "color": colour},
        marker={"symbol": symbol, "color": colour, "size": 10, "opacity": 0.9},
        error_x=whiskers,
        error_y=whiskers,
        hoverinfo="text",
    )
    for key, values in _point_data(board, frame, view, kind, named=named).items():
        trace[key] = values
    return trace


def _line_data(frame: pd.DataFrame, view: str) -> dict[str, list[float | None]]:
    """Lines from the unsteered run of a model to its steered ones."""
    rows = frame[frame["language"] == view].to_dict("records")
    origins = {row["model"]: row for row in reversed(rows) if not row["plan"]}
    pairs = [(origins[row["model"]], row) for row in rows if row["plan"] and row["model"] in origins]
    return {
        score: [
            value
            for start, end in pairs
            for value in (100 * start[f"{score}_score"], 100 * end[f"{score}_score"], None)
        ]
        for score in ("x", "y")
    }


def _arrows(frame: pd.DataFrame, view: str) -> go.Scatter:
    return go.Scatter(
        **_line_data(frame, view),
        mode="lines",
        line={"color": theme.QUIET, "width": 1},
        opacity=0.6,
        hoverinfo="skip",
        showlegend=False,
    )


def _button(board: Board, frame: pd.DataFrame, view: str, *, named: bool) -> dict[str, Any]:
    points = [_point_data(board, frame, view, kind, named=named) for kind, _, _ in _kinds(frame)]
    lines = {**{key: [] for key in points[0]}, **_line_data(frame, view)}
    moved = {key: [trace[key] for trace in (lines, *points)] for key in points[0]}
    return {"label": _view_name(board, view), "method": "restyle", "args": [moved]}


def _title(axis: Axis) -> dict[str, Any]:
    return {"text": f"<b>{axis.title.capitalize()}</b>: {text(axis.name)}, {text(axis.score)}", "standoff": 8}


def _view_name(board: Board, view: str) -> str:
    from lm_eval_ext.languages import KNOWN

    if view == AVERAGE:
        return "Average without English" if "en" in board.languages and len(board.languages) > 1 else "Average"
    return KNOWN[view].name if view in KNOWN else view


def _data(board: Board) -> dict[str, Any]:
    """For the page's script: runs, and their scores by family and language as [score, low, high, bias, change, ...]."""
    columns = ("score", "low", "high", "bias", "bias_low", "bias_high", "change", "change_low", "change_high")
    runs: dict[str, dict[str, Any]] = {}
    for row in board.scores.to_dict("records"):
        run = runs.setdefault(
            row["run"],
            {
                "name": row["run"],
                "model": row["model"],
                "plan": row["plan"],
                "kind": _kind(row),
                "date": row["date"],
                "details": {
                    key: short_model(value) for key, value in board.runs[row["run"]].details.items() if key != "steer"
                },
                "families": {},
            },
        )
        family = run["families"].setdefault(
            row["family"],
            {"comparable": row["comparable"], "version": row["version"], "items": row["items"], "scores": {}},
        )
        figures = [None if row[column] != row[column] else round(100 * row[column], 2) for column in columns]
        family["scores"][row["language"]] = [*figures, row["n"], row["questions"]]
    has_bias = board.scores[board.scores["bias"].notna()]["family"].unique().tolist()
    return {
        "runs": list(runs.values()),
        "families": [
            {"name": name, "title": axis.title, "bias": name in has_bias} for name, axis in board.axes.items()
        ],
        "languages": [[view, _view_name(board, view)] for view in (AVERAGE, *board.languages)],
    }
