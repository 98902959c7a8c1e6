"""The plane as rows: for the terminal, for the page, as CSV."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from lm_eval_ext.plane.wording import GLYPHS, conclusions, interval, is_missing, verdict
from lm_eval_ext.spreadsheets import frame_to_csv
from lm_eval_ext.stats import MIN_CHANGED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lm_eval_ext.plane.shifts import Plane


#: How to read the rows.
LEGEND = (
    "the baseline's row holds its scores, the others the change in percentage points with its interval; "
    f"▲ ▼: the interval excludes zero and at least {MIN_CHANGED} questions changed; n: documents"
)


def header(plane: Plane) -> list[str]:
    """Column titles; the English bias only where it was scored."""
    titles = ["run", "language", *(f"{axis.title} ({axis.score})" for axis in (plane.x, plane.y))]
    return [*titles, *(["English bias"] if _has_bias(plane) else []), "n"]


def rows(plane: Plane, *, of: tuple[str, ...] | None = None) -> list[list[str]]:
    """One row of text per run and language: the change in points with its interval; of the baseline, its scores.

    Args:
        plane: the plane.
        of: only these languages (`average` is one).
    """
    texts = []
    for record in plane.shifts.to_dict("records"):
        row = {str(column): value for column, value in record.items()}
        if of is None or row["language"] in of:
            scores = ("x", "y", "bias") if _has_bias(plane) else ("x", "y")
            counts = dict.fromkeys(str(row[f"{score}_n"]) for score in ("x", "y"))
            cell = _level if row["run"] == plane.baseline.name else _change
            texts.append([row["run"], row["language"], *(cell(row, score) for score in scores), " / ".join(counts)])
    return texts


def terminal_table(plane: Plane) -> Table:
    """All rows, a section per run."""
    table = Table(
        title=Text(f"Change against {plane.baseline.name}, percentage points [{plane.level:.0%} interval]"),
        caption=Text("\n".join([*describe(plane), LEGEND])),
        caption_justify="left",
        box=box.SIMPLE,
    )
    for title in header(plane):
        table.add_column(Text(title), justify="left" if title in ("run", "language") else "right", overflow="fold")
    shown = ""
    for name, *texts in rows(plane):
        if name != shown and shown:
            table.add_section()
        table.add_row(Text(name if name != shown else ""), *map(Text, texts))
        shown = name
    return table


def to_records(plane: Plane) -> dict[str, Any]:
    """The plane for a script: what was scored, the rows of `to_csv`, and what the intervals allow to conclude."""
    return {
        "baseline": plane.baseline.name,
        "level": plane.level,
        "axes": {name: {"task": axis.name, "score": axis.score} for name, axis in (("x", plane.x), ("y", plane.y))},
        "rows": _frame(plane).to_dict("records"),
        "conclusions": conclusions(plane),
        "notes": list(plane.notes),
    }


def to_csv(plane: Plane) -> str:
    """`Plane.shifts` and `Plane.contrasts` as one table; `against` is the run that a row is compared with.

    Shares lie between 0 and 1; the other columns say what was scored, on which level the intervals are, and whether a
    change is up, down or undecided.
    """
    return frame_to_csv(_frame(plane), "%.6f")


def _frame(plane: Plane) -> pd.DataFrame:
    parts = [
        plane.shifts.assign(against=plane.baseline.name),
        plane.contrasts.rename(columns={"control": "against"}),
    ]
    frame = pd.concat([part for part in parts if len(part)], ignore_index=True)
    for score, axis in (("x", plane.x), ("y", plane.y)):
        frame[f"{score}_task"], frame[f"{score}_score"] = axis.name, axis.score
        frame[f"{score}_verdict"] = [verdict(row, score) for row in frame.to_dict("records")]
    frame["level"] = plane.level
    names = ["run", "model", "plan", "against", "language"]
    ordered = [f"{score}_{column}" for score in ("x", "y") for column in ("task", "score", "verdict")]
    figures = [column for column in frame if column not in {*names, *ordered, "level"}]
    whole: pd.DataFrame = frame[[*names, *ordered, *figures, "level"]]
    return whole


def describe(plane: Plane) -> list[str]:
    """What the numbers are: the scoring rule and the size of both axes, the average, the intervals."""
    of_baseline = plane.shifts.iloc[0]  # its average
    weights = ", each language weighing the same" if len(plane.averaged) > 1 else ""
    return [
        *(
            f"{axis.title}: {axis.name}, {axis.rule}; {of_baseline[f'{score}_n']} documents on "
            f"{of_baseline[f'{score}_questions']} questions"
            for score, axis in (("x", plane.x), ("y", plane.y))
        ),
        f"average: {plane.average_name.removeprefix('average of ')}{weights}",
        f"{plane.level:.0%} intervals: paired bootstrap over questions, {plane.resamples:,} resamples, seed {plane.seed}",
    ]


def _has_bias(plane: Plane) -> bool:
    return not plane.shifts["bias_change"].isna().all()


def _change(row: Mapping[str, Any], score: str) -> str:
    return "" if is_missing(row, score) else f"{interval(row, score)} {GLYPHS[verdict(row, score)]}".rstrip()


def _level(row: Mapping[str, Any], score: str) -> str:
    return "" if is_missing(row, score) else f"{row[f'{score}_baseline']:.1%}"
