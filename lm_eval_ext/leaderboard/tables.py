"""The leaderboard as CSV and as Markdown."""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING, Any

from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.spreadsheets import frame_to_csv

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_ext.leaderboard.collect import Board


def to_csv(board: Board) -> str:
    """Every score in every language."""
    return frame_to_csv(board.scores, "%.6f")


def to_markdown(board: Board) -> str:
    """A table per family: the average and every language, ranked by the average; runs asked otherwise come last."""
    parts = ["# Leaderboard\n"]
    for family, axis in board.axes.items():
        frame = board.scores[board.scores["family"] == family]
        languages = [code for code in board.languages if code in set(frame["language"])]
        has_bias = bool(frame["bias"].notna().any())
        titles = ["#", "run", "model", "plan", f"average [{board.level:.0%}]", *languages]
        titles += ["English bias"] if has_bias else []
        by_run = {
            name: {row["language"]: row for row in rows.to_dict("records")} for name, rows in frame.groupby("run")
        }
        ranked = sorted(by_run.items(), key=lambda run: _rank(run[1]))
        lines = []
        for place, (name, rows) in enumerate(ranked, start=1):
            average = rows[AVERAGE]
            marks = str(place) if average["comparable"] else "≠"
            cells = [marks, name, average["model"], average["plan"] or "unsteered"]
            cells += [f"{average['score']:.1%} [{100 * average['low']:.1f}, {100 * average['high']:.1f}]"]
            cells += [f"{rows[code]['score']:.1%}" if code in rows else "" for code in languages]
            cells += [_share(average["bias"])] if has_bias else []
            lines.append(_line(cells))
        parts.append(f"## {_cell(family)}\n\nScore: {_cell(axis.rule)}.\n")
        parts.append("\n".join([_line(titles), _line(["---"] * len(titles)), *lines]) + "\n")
    if board.notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {_cell(note)}" for note in board.notes) + "\n")
    parts.append(
        f"Intervals: {board.level:.0%}, bootstrap over questions, {board.resamples:,} resamples, seed {board.seed}. "
        "The average leaves English out and weighs each language the same.\n"
    )
    return "\n".join(parts)


def _rank(rows: dict[str, dict[str, Any]]) -> tuple[bool, float, str]:
    average = rows[AVERAGE]
    return not average["comparable"], -average["score"], average["run"]


def _share(value: float) -> str:
    return "" if value != value else f"{value:.1%}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: str) -> str:
    """Text that Markdown shows as it is."""
    return " ".join(re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", escape(text, quote=False)).split())
