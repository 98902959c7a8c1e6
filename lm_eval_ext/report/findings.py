"""What a plane shows in sentences with intervals, and what it leaves open."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.plane.standing import null_bands, pareto, recoveries
from lm_eval_ext.plane.wording import (
    conclusions,
    interval,
    is_missing,
    likeliest_quadrant,
    verdict,
    view_name,
)
from lm_eval_ext.stats import smallest_difference
from lm_eval_ext.steering.controls import CONTROL_NAMES
from lm_eval_ext.viz.numbers import points, points_interval

if TYPE_CHECKING:
    import pandas as pd

    from lm_eval_ext.plane.shifts import Plane


#: With more runs than this, sentences speak of the front only; the tables hold the rest.
MAX_RUNS = 24

_ALPHA = 0.05  # of the corrected tests in single languages


def findings(plane: Plane, context: pd.DataFrame | None = None) -> list[str]:
    """What the intervals support.

    Args:
        plane: of `measure`.
        context: of `context_gaps`, where the country was also named.
    """
    sentences = _many(plane) if len(plane.runs) > MAX_RUNS else conclusions(plane)[: len(plane.runs)]
    if len(plane.runs) <= MAX_RUNS:
        sentences += _places(plane)
    sentences += _front(plane)
    if len(plane.runs) <= MAX_RUNS:
        sentences += _languages(plane) + _recovered(plane) + _beyond_controls(plane)
    return sentences + _context(plane, context)


def open_questions(plane: Plane) -> list[str]:
    """What cannot be concluded, and why."""
    sentences = [] if len(plane.runs) > MAX_RUNS else conclusions(plane)[len(plane.runs) :]
    average = plane.shifts[(plane.shifts["language"] == AVERAGE) & (plane.shifts["run"] != plane.baseline.name)]
    rows: list[dict[str, Any]] = average.to_dict("records")
    undecided = [row["run"] for row in rows if {verdict(row, "x"), verdict(row, "y")} == {"undecided"}]
    if undecided:
        sentences.append(
            f"Undecided on both axes, which is not the same as unchanged: {_names(undecided)}. "
            "Their intervals hold zero, or too few questions changed."
        )
    sentences += [text for score in ("x", "y") for text in _power(plane, rows, score)]
    if any(run.plan for run in plane.runs) and len(plane.runs) > MAX_RUNS and plane.contrasts.empty:
        sentences.append("No random direction was evaluated: whether a vector without meaning does the same is open.")
    if len(plane.averaged) > 1:
        sentences.append(
            "An average can hide a language that moves the other way: see the languages before deciding for one of them."
        )
    return sentences


def _many(plane: Plane) -> list[str]:
    """Counts, where a sentence per run would be too many."""
    average = plane.shifts[plane.shifts["language"] == AVERAGE]
    rows = average[average["run"] != plane.baseline.name].to_dict("records")
    sentences = []
    for score, axis in (("x", plane.x), ("y", plane.y)):
        verdicts = [verdict(row, score) for row in rows]
        counts = ", ".join(f"{verdicts.count(kind)} {kind}" for kind in ("up", "down", "undecided"))
        sentences.append(f"{axis.title.capitalize()} against {plane.baseline.name}, of {len(rows)} runs: {counts}.")
    both = [row["run"] for row in rows if verdict(row, "x") == verdict(row, "y") == "up"]
    erased = [row["run"] for row in rows if (verdict(row, "x"), verdict(row, "y")) == ("up", "down")]
    sentences.append(f"Up on both axes: {_names(both) or 'none'}.")
    sentences.append(f"Transfer up and localization down (cultural erasure): {_names(erased) or 'none'}.")
    return sentences


def _places(plane: Plane) -> list[str]:
    """Where each run lies on the plane, with its probability."""
    rows = plane.shifts[plane.shifts["language"] == AVERAGE].to_dict("records")
    listed = "; ".join(
        f"{row['run']} {likeliest_quadrant(plane, row)}" for row in rows if row["run"] != plane.baseline.name
    )
    return [f"Quadrant of the average, with the share of the resamples that lie in it: {listed}."] if listed else []


def _front(plane: Plane) -> list[str]:
    if len(plane.runs) < 2:
        return []
    front = pareto(plane)
    rows = front.runs.to_dict("records")
    members = _names(
        [f"{row['run']} (in {row['front_probability']:.0%} of the resamples)" for row in rows if row["on_front"]],
        n_shown=8,
    )
    sentences = [f"On the Pareto front, where no other run is as good on both axes and better on one: {members}."]
    behind = [
        f"{row['run']} {100 * row['distance']:.1f} [{100 * row['distance_low']:.1f}, {100 * row['distance_high']:.1f}]"
        for row in sorted(rows, key=lambda row: row["distance"])
        if not row["on_front"]
    ]
    if behind:
        sentences.append(
            f"Behind the front, by as many points on both axes at once: {_names(behind, n_shown=8)}. "
            "Controls are left out of both."
        )
    area, low, high = (1e4 * value for value in front.hypervolume)
    x, y = (points(value) for value in front.reference)
    sentences.append(
        f"The front covers {area:.0f} [{low:.0f}, {high:.0f}] squared points above and right of ({x}, {y}) (hypervolume)."
    )
    return sentences


def _languages(plane: Plane) -> list[str]:
    """The languages in which a change survives the correction for their number."""
    if len(plane.languages) < 2 or not plane.runs:
        return []
    sentences = []
    for run in plane.runs:
        rows = plane.shifts[(plane.shifts["run"] == run.name) & (plane.shifts["language"] != AVERAGE)].to_dict(
            "records"
        )
        moved = [_moved(plane, rows, score, sign) for score in ("x", "y") for sign in (1, -1)]
        if any(moved):
            listed = "; ".join(filter(None, moved))
            sentences.append(f"{run.name}, single languages (Holm-corrected over {len(rows)}): {listed}.")
    if not sentences:
        sentences.append(
            f"In no single language does a change survive the correction for their number (Holm, {_ALPHA:.0%})."
        )
    return sentences


def _moved(plane: Plane, rows: list[dict[str, Any]], score: str, sign: int) -> str:
    """The languages in which one axis surely moved one way."""
    sure = [row for row in rows if row[f"{score}_holm"] <= _ALPHA and sign * row[f"{score}_change"] > 0]
    listed = ", ".join(f"{view_name(plane, row['language'])} {interval(row, score)}" for row in sure)
    axis = plane.x if score == "x" else plane.y
    return f"{axis.title} {'up' if sign > 0 else 'down'} in {listed}" if sure else ""


def _recovered(plane: Plane) -> list[str]:
    sentences = []
    for row in recoveries(plane).to_dict("records"):
        what = f"{row['run']} brings back of the {plane.y.title} that {row['aligned']} lost"
        if row["reason"]:
            sentences.append(f"What share {what} is undefined: {row['reason']}.")
        else:
            sentences.append(f"{what}: {row['recovery']:.0%} [{row['low']:.0%}, {row['high']:.0%}].")
    return sentences


def _beyond_controls(plane: Plane) -> list[str]:
    bands = null_bands(plane)
    bands = bands[(bands["language"] == AVERAGE) & (bands["n"] >= 2)]
    sentences = []
    for row in bands.to_dict("records"):
        axis = plane.x if row["axis"] == "x" else plane.y
        place = "inside" if row["low"] <= row["effect"] <= row["high"] else "outside"
        sentences.append(
            f"{row['run']}, {axis.title}: {points(row['effect'])} lies {place} the band of {row['n']} "
            f"{CONTROL_NAMES[row['control']][1]}, [{points(row['low'])}, {points(row['high'])}], which would hold another "
            f"one with {row['coverage']:.0%}."
        )
    return sentences


def _context(plane: Plane, context: pd.DataFrame | None) -> list[str]:
    if context is None or context.empty:
        return []
    rows = context[context["language"] == AVERAGE].to_dict("records")[:MAX_RUNS]
    listed = "; ".join(
        f"{row['run']} {points_interval(row['gap'], row['low'], row['high'])} ({row['plain']:.1%} → {row['named']:.1%})"
        for row in rows
    )
    return [f"Naming the country in the question changes {plane.y.title} by, in points: {listed}."]


def _power(plane: Plane, rows: list[dict[str, Any]], score: str) -> list[str]:
    """The smallest loss that this number of questions shows, at the share of answers that usually changes."""
    undecided = [row for row in rows if not is_missing(row, score) and verdict(row, score) == "undecided"]
    if not undecided:
        return []
    row = sorted(undecided, key=lambda row: row[f"{score}_changed"])[len(undecided) // 2]
    questions, changed = int(row[f"{score}_questions"]), int(row[f"{score}_changed"])
    smallest = smallest_difference(questions, changed / questions)
    axis = plane.x if score == "x" else plane.y
    seen = "no loss at all" if math.isinf(smallest) else f"a loss of {100 * smallest:.1f} points or more"
    return [
        f"{axis.title.capitalize()}: with {questions} questions, of which {changed} changed in {row['run']}, a single "
        f"language would show {seen} with 80% (one-sided exact McNemar test at 5%); smaller changes stay unseen."
    ]


def _names(names: list[str], n_shown: int = 12) -> str:
    rest = len(names) - n_shown
    return ", ".join(names[:n_shown]) + (f" and {rest} more" if rest > 0 else "")
