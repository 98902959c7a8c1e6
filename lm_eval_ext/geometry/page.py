"""The geometry in words, as tables of averages, and as one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext.geometry.tables import CHANGE, MINUS
from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.steering.vectors import ranges
from lm_eval_ext.viz.page import figure_part, render

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import rich.table

    from lm_eval_ext.viz.chart import Chart

TEMPLATES = Path(__file__).parent / "templates"

#: Column titles, rows of text, heading.
Table = tuple[list[str], list[list[str]], str]
Row = dict[str, Any]


def page(charts: Sequence[Chart], frames: dict[str, pd.DataFrame], description: Sequence[str]) -> str:
    """One self-contained page.

    Args:
        charts: of `figures.charts`.
        frames: of `tables.vector_tables` and `StateTables.frames`.
        description: what was measured, a line each.
    """
    return render(
        "geometry.html",
        title="Geometry of languages, layer by layer",
        charts=charts,
        folder=TEMPLATES,
        parts_of_charts=[figure_part(chart) for chart in charts],
        description=description,
        findings=findings(frames),
        tables=tables(frames),
    )


def findings(frames: dict[str, pd.DataFrame]) -> list[str]:
    """The extremes along the layers, and which differences the intervals support, in sentences."""
    sentences = []
    by_layer = _groups(frames, "angles", "layer")
    averages = [row for row in _rows(frames, "angles") if row["language"] == AVERAGE]
    for word, choose in (("most", max), ("least", min)) if averages else ():
        row = choose(averages, key=lambda row: row["s_per"])
        angles = [other["degrees"] for other in by_layer[row["layer"],] if other["language"] != AVERAGE]
        sentences.append(
            f"{_kind_names(frames)} are {word} orthogonal after layer {row['layer']}: S_PER {row['s_per']:.1f} on average, "
            f"{min(angles):.0f} to {max(angles):.0f} degrees."
        )
    for (model, questions, measure), rows in _groups(frames, "separation", "model", "questions", "measure").items():
        what = f"{measure}, {model}, {questions}"
        if MINUS in questions or model.startswith(CHANGE):
            sentences.append(_clear(what, rows))
        else:
            low, high = min(rows, key=_size), max(rows, key=_size)
            sentences.append(
                f"{what}: from {_value(low)} after layer {low['layer']} to {_value(high)} after layer {high['layer']}."
            )
    for (model,), rows in _groups(frames, "mexa", "model").items():
        average = _of_all(rows)
        best = max(average, key=_size)
        sentences.append(
            _clear(f"MEXA, {model}", average)
            if model.startswith(CHANGE)
            else f"MEXA, {model}: highest after layer {best['layer']}, {_value(best)}."
        )
    return sentences


def tables(frames: dict[str, pd.DataFrame]) -> list[Table]:
    """A table of averages for the vectors, and one for each measure and model (or change)."""
    all_tables: list[Table] = []
    if average := [row for row in _rows(frames, "angles") if row["language"] == AVERAGE]:
        columns = {
            "S_PER": {row["layer"]: f"{row['s_per']:.1f}" for row in average},
            "degrees": {row["layer"]: f"{row['degrees']:.1f}" for row in average},
        }
        for (kind,), rows in _groups(frames, "norms", "kind").items():
            columns[f"{kind.upper()} norm"] = _means(rows, "norm", 1, "{:.3g}")
            columns[f"{kind.upper()} % of residual"] = _means(rows, "relative_norm", 100, "{:.1f}")
        all_tables.append(_table(columns, "Vectors, averages over languages"))
    for (model, measure), rows in _groups(frames, "separation", "model", "measure").items():
        sets: dict[str, dict[int, str]] = {}
        for row in rows:
            if MINUS not in row["questions"]:
                sets.setdefault(row["questions"], {})[row["layer"]] = _value(row)
        all_tables.append(_table(sets, f"{measure}, {model}"))
    for (model,), rows in _groups(frames, "mexa", "model").items():
        columns = {"average": {row["layer"]: _value(row) for row in _of_all(rows)}}
        for row in rows:
            if row["language"] != AVERAGE:
                columns.setdefault(row["language"], {})[row["layer"]] = f"{row['value']:.2f}"
        all_tables.append(_table(columns, f"MEXA, {model}"))
    return all_tables


def _kind_names(frames: dict[str, pd.DataFrame]) -> str:
    """The two kinds of vectors, as in `EN and LOC`."""
    return " and ".join(kind.upper() for (kind,) in _groups(frames, "norms", "kind"))


def terminal_table(table: Table) -> rich.table.Table:
    """A table for the terminal."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    titles, rows, heading = table
    shown = RichTable(title=Text(heading), box=box.SIMPLE)
    for title in titles:
        shown.add_column(Text(title), justify="right", overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))
    return shown


def _rows(frames: dict[str, pd.DataFrame], name: str) -> list[Row]:
    return (
        [{str(key): value for key, value in row.items()} for row in frames[name].to_dict("records")]
        if name in frames
        else []
    )


def _groups(frames: dict[str, pd.DataFrame], name: str, *columns: str) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in _rows(frames, name):
        groups.setdefault(tuple(row[column] for column in columns), []).append(row)
    return groups


def _of_all(rows: list[Row]) -> list[Row]:
    """The rows of the average; of the language itself where there is only one."""
    return [row for row in rows if row["language"] == AVERAGE] or rows


def _means(rows: list[Row], column: str, factor: float, form: str) -> dict[int, str]:
    by_layer: dict[int, list[float]] = {}
    for row in rows:
        by_layer.setdefault(row["layer"], []).append(factor * row[column])
    return {layer: form.format(sum(values) / len(values)) for layer, values in by_layer.items()}


def _table(columns: dict[str, dict[int, str]], heading: str) -> Table:
    layers = sorted(set().union(*columns.values()))
    rows = [[str(layer), *(column.get(layer, "") for column in columns.values())] for layer in layers]
    return ["layer", *columns], rows, heading


def _size(row: Row) -> float:
    return float(row["value"])


def _value(row: Row) -> str:
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _clear(what: str, rows: list[Row]) -> str:
    """At which layers the interval of a difference excludes zero."""
    signs = {"above": [r["layer"] for r in rows if r["low"] > 0], "below": [r["layer"] for r in rows if r["high"] < 0]}
    parts = [
        f"{word} zero after layer{'s' * (len(layers) > 1)} {ranges(tuple(layers))}"
        for word, layers in signs.items()
        if layers
    ]
    return f"{what}: {' and '.join(parts) or 'no layer can be told from zero'}."
