"""The panel in the terminal: one line per measure and language."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

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
    for row in panel.summary(level).to_dict("records"):
        kind = scale(row["measure"])
        changes = (change_text(row[key], kind) for key in ("change", "low", "high"))
        value, low, high = changes
        name = "" if row["measure"] == before else row["measure"]
        before = row["measure"]
        levels = (level_text(row[key], kind) for key in ("baseline", "value"))
        cells = (name, row["language"], str(row["n"]), *levels, f"{value} [{low}, {high}]")
        shown.add_row(*map(Text, cells), end_section=row["language"] == "average")
    named = [f"{name}: {measure.title}" for name, measure in MEASURES.items() if name in set(panel.frame["measure"])]
    shown.caption, shown.caption_justify = Text("\n".join(named)), "left"
    return shown
