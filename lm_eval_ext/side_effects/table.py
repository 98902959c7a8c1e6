"""The panel as a table: one line per measure and language."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.side_effects.measures import MEASURES, change_text, level_text, scale

if TYPE_CHECKING:
    from lm_eval_ext.side_effects.panel import Panel


def table(panel: Panel, level: float) -> Table:
    """One line per measure and language.

    Args:
        panel: what was measured.
        level: of the intervals.
    """
    steered = f", {panel.plan}" if panel.plan else ""
    shown = Table(box=box.SIMPLE, title=Text(f"Side effects: {panel.model}{steered}, against {panel.baseline}"))
    for title in ("measure", "language", "texts", "baseline", "measured", f"change, {level:.0%} interval"):
        shown.add_column(title, justify="left" if title in ("measure", "language") else "right", overflow="fold")
    before = ""
    for measure, language, *cells in rows(panel, level):
        shown.add_row(
            *map(Text, ("" if measure == before else measure, language, *cells)), end_section=language == AVERAGE
        )
        before = measure
    named = [f"{name}: {measure.title}" for name, measure in MEASURES.items() if name in set(panel.frame["measure"])]
    shown.caption, shown.caption_justify = Text("\n".join(named)), "left"
    return shown


def rows(panel: Panel, level: float) -> list[list[str]]:
    """The cells of each measure and language: both, number of texts, both levels, the change with its interval."""
    cells = []
    for row in panel.summary(level).to_dict("records"):
        kind = scale(row["measure"])
        value, low, high = (change_text(row[key], kind) for key in ("change", "low", "high"))
        levels = (level_text(row[key], kind) for key in ("baseline", "value"))
        cells.append([row["measure"], row["language"], str(row["n"]), *levels, f"{value} [{low}, {high}]"])
    return cells
