"""The plane in words: changes with their intervals, and what the intervals allow to conclude."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from lm_eval_ext.languages import AVERAGE, KNOWN
from lm_eval_ext.stats import MIN_CHANGED
from lm_eval_ext.steering.controls import CONTROL_NAMES
from lm_eval_ext.viz.numbers import points_interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lm_eval_ext.plane.shifts import Plane
    from lm_eval_ext.results.run import Run

Verdict = Literal["up", "down", "undecided"]

GLYPHS: dict[Verdict, str] = {"up": "▲", "down": "▼", "undecided": ""}

#: Quadrant: its name for transfer against localization, its name for other tasks.
QUADRANT_NAMES = {
    "upper_right": ("Gains on both", "Both up"),
    "lower_right": ("Cultural erasure", "x up, y down"),
    "lower_left": ("Losses on both", "Both down"),
    "upper_left": ("Local gain, transfer loss", "x down, y up"),
}


def conclusions(plane: Plane) -> list[str]:
    """What the paired intervals of the average say: a sentence or two per run, then what they leave open.

    An axis is up or down where the whole interval lies on one side of zero and at least `MIN_CHANGED` questions changed
    (fewer cannot differ from chance); else it is undecided, which is not the same as unchanged. A steered run is also
    compared with every random direction of its model: only what goes beyond it speaks for the vector.
    """
    sentences = [_conclude(plane, run) for run in plane.runs]
    if any(run.plan and not run.is_control for run in plane.runs) and plane.contrasts.empty:
        sentences.append(
            "No random direction was evaluated on these models: whether a vector without meaning does the same is open."
        )
    sentences.append(
        f"Each {plane.level:.0%} interval stands for itself, without correction for their number, and covers the "
        "choice of questions, not that of prompts, seeds or extraction pairs."
    )
    return sentences


def verdict(row: Mapping[str, Any], score: str) -> Verdict:
    """What one interval allows to say of `score` ("x", "y" or "bias")."""
    if row[f"{score}_changed"] >= MIN_CHANGED:
        if row[f"{score}_low"] > 0:
            return "up"
        if row[f"{score}_high"] < 0:
            return "down"
    return "undecided"


def interval(row: Mapping[str, Any], score: str) -> str:
    """A change with its interval, in points: `+3.1 [+0.2, +6.0]`."""
    return points_interval(row[f"{score}_change"], row[f"{score}_low"], row[f"{score}_high"])


def levels(row: Mapping[str, Any], score: str) -> str:
    """Both levels in per cent: `41.7% -> 44.4%`."""
    return f"{row[f'{score}_baseline']:.1%} → {row[f'{score}_run']:.1%}"


def quadrant_name(plane: Plane, quadrant: str) -> str:
    """What a quadrant of a plane is called."""
    return QUADRANT_NAMES[quadrant][not plane.is_transfer_localization]


def likeliest_quadrant(plane: Plane, row: Mapping[str, Any]) -> str:
    """The quadrant that most resamples of a row fall into, and how many: `cultural erasure, 97%`."""
    quadrant = max(QUADRANT_NAMES, key=lambda name: row[name])
    return f"{quadrant_name(plane, quadrant).lower()}, {row[quadrant]:.0%}"


def is_missing(row: Mapping[str, Any], score: str) -> bool:
    """Whether a row says nothing of `score` (the English bias is not scored everywhere)."""
    return bool(row[f"{score}_change"] != row[f"{score}_change"])


def view_name(plane: Plane, language: str) -> str:
    """A row's language in words."""
    if language == AVERAGE:
        return plane.average_name
    return KNOWN[language].name if language in KNOWN else language


def _conclude(plane: Plane, run: Run) -> str:
    rows = plane.shifts[(plane.shifts["run"] == run.name) & (plane.shifts["language"] == AVERAGE)].to_dict("records")
    who = f"{run.name} ({CONTROL_NAMES[run.control][0]}, a control)" if run.control else run.name
    if not rows:
        return f"{who}: no average, because languages are missing; nothing is concluded."
    row = rows[0]
    text = f"{who}: {_axes(plane, row)}."
    if not is_missing(row, "bias") and verdict(row, "bias") != "undecided":
        text += f" English bias {verdict(row, 'bias')}: {interval(row, 'bias')}."
    if run.control == "random" and {verdict(row, "x"), verdict(row, "y")} != {"undecided"}:
        text += " A shift of this size needs no particular direction."
    against = plane.contrasts[(plane.contrasts["run"] == run.name) & (plane.contrasts["language"] == AVERAGE)]
    for contrast in against.to_dict("records"):
        text += f" Beyond the control {contrast['control']}: {_axes(plane, contrast)}."
    return text


def _axes(plane: Plane, row: Mapping[str, Any]) -> str:
    return "; ".join(f"{axis.title} {_verdict(row, score)}" for score, axis in (("x", plane.x), ("y", plane.y)))


def _verdict(row: Mapping[str, Any], score: str) -> str:
    changed = int(row[f"{score}_changed"])
    why = f", only {changed} of {row[f'{score}_questions']} questions changed" if changed < MIN_CHANGED else ""
    return f"{verdict(row, score)}, {interval(row, score)}{why}"
