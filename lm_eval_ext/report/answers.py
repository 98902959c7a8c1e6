"""The report in short: each question that a reader has, answered by one sentence and one picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.plane.wording import interval, is_missing, likeliest_quadrant, verdict, view_name
from lm_eval_ext.report.overview import forest, language_changes, moved_items

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_ext.plane.shifts import Plane
    from lm_eval_ext.viz.chart import Chart

_ALPHA = 0.05  # of the corrected tests in single languages


@dataclass(frozen=True)
class Answer:
    """A question, its answer in a sentence, and the picture of it where there is something to draw."""

    question: str
    sentence: str
    chart: Chart | None


def answers(plane: Plane) -> list[Answer]:
    """Did either axis change? The English bias? In which languages? On which items?"""
    asked = [
        Answer(f"Did {axis.title} change?", _level(plane, score), forest(plane, score)) for score, axis in _axes(plane)
    ]
    if plane.shifts["bias_change"].notna().any():
        asked.append(Answer("Did the English bias change?", _level(plane, "bias"), forest(plane, "bias")))
    if len(plane.languages) > 1:
        asked.append(Answer("In which languages?", _languages(plane), language_changes(plane)))
    return [*asked, Answer("On which items?", _items(plane), moved_items(plane))]


def run_table(plane: Plane) -> tuple[list[str], list[list[tuple[str, float | str]]]]:
    """Titles and rows, one per run; a cell is its text and what it is sorted by."""
    has_bias = bool(plane.shifts["bias_change"].notna().any())
    scores = [*_axes(plane), *([("bias", None)] if has_bias else [])]
    titles = ["run", *(axis.title if axis else "English bias" for _, axis in scores)]
    rows = []
    for row in _averages(plane):
        cells: list[tuple[str, float | str]] = [(row["run"], row["run"])]
        for score, _ in scores:
            missing = is_missing(row, score)
            text = "" if missing else f"{row[f'{score}_run']:.1%}, {interval(row, score)}"
            cells.append((f"{text} {_GLYPH[verdict(row, score)]}".strip(), -1e9 if missing else row[f"{score}_change"]))
        moved = int(row["x_gains"] + row["x_losses"] + row["y_gains"] + row["y_losses"])
        gained = int(row["x_gains"] + row["y_gains"])
        rows.append([*cells, (likeliest_quadrant(plane, row), likeliest_quadrant(plane, row)), *_counts(gained, moved)])
    return [*titles, "quadrant", "items gained", "items lost"], rows


_GLYPH = {"up": "▲", "down": "▼", "undecided": ""}


def _counts(gained: int, moved: int) -> list[tuple[str, float | str]]:
    return [(f"{n:,}", n) for n in (gained, moved - gained)]


def _axes(plane: Plane) -> list[tuple[str, Any]]:
    return [("x", plane.x), ("y", plane.y)]


def _averages(plane: Plane) -> list[dict[str, Any]]:
    rows = plane.shifts[(plane.shifts["language"] == AVERAGE) & (plane.shifts["run"] != plane.baseline.name)]
    return [{str(key): value for key, value in row.items()} for row in rows.to_dict("records")]


def _level(plane: Plane, score: str) -> str:
    """How many runs are up, down and undecided, with the largest change of either kind."""
    rows = [row for row in _averages(plane) if not is_missing(row, score)]
    if not rows:
        return "No run has an average that can be compared."
    up, down, undecided = ([row for row in rows if verdict(row, score) == kind] for kind in ("up", "down", "undecided"))
    if len(rows) == 1:
        word = {"up": "Yes, up", "down": "Yes, down", "undecided": "Undecided"}[verdict(rows[0], score)]
        return f"{word}: {rows[0]['run']} {interval(rows[0], score)} points against {plane.baseline.name}."
    if not up and not down:
        return f"In none of {len(rows)} runs is a change shown."
    parts = [f"Of {len(rows)} runs {len(up)} are up, {len(down)} down, {len(undecided)} undecided"]
    for most, word in ((max, "highest"), (min, "lowest")):
        of_kind = up if word == "highest" else down
        if of_kind:
            row = most(of_kind, key=lambda row: row[f"{score}_change"])
            parts.append(f"{word} {row['run']} {interval(row, score)} points")
    return f"{'; '.join(parts)}."


def _languages(plane: Plane) -> str:
    """The languages in which some run surely changed, after correction for the number of languages."""
    rows = plane.shifts[(plane.shifts["language"] != AVERAGE) & (plane.shifts["run"] != plane.baseline.name)]
    found = []
    for score, axis in _axes(plane):
        for word, sign in (("up", 1), ("down", -1)):
            sure = rows[(rows[f"{score}_holm"] <= _ALPHA) & (sign * rows[f"{score}_change"] > 0)]
            counts = sure["language"].value_counts()
            if len(counts):
                named = ", ".join(f"{view_name(plane, str(code))} ({n})" for code, n in counts.items())
                found.append(f"{axis.title} {word} in {named}")
    if not found:
        return "In no single language does a change survive the correction for their number (Holm, 5%)."
    n_runs = len(plane.runs)
    return (
        f"{'; '.join(found)}: languages with the number of runs, of {n_runs}, in which the change is sure (Holm, 5%)."
    )


def _items(plane: Plane) -> str:
    rows = _averages(plane)
    if not rows:
        return "No run has an average that can be compared."
    moved = {
        row["run"]: sum(int(row[f"{score}_{kind}"]) for score in ("x", "y") for kind in ("gains", "losses"))
        for row in rows
    }
    total = int(rows[0]["x_n"] + rows[0]["y_n"])
    most, least = (choose(moved, key=lambda name: moved[name]) for choose in (max, min))
    if len(rows) == 1:
        return f"{moved[most]:,} of {total:,} documents changed their score; the browser below holds them."
    return (
        f"Between {moved[least]:,} ({least}) and {moved[most]:,} ({most}) of {total:,} documents changed their score; the "
        "browser below holds them, and compares any two runs."
    )


def sentences(found: Sequence[Answer]) -> list[str]:
    """Questions and answers as lines for the terminal."""
    return [f"{answer.question} {answer.sentence}" for answer in found]
