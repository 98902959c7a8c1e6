"""The transfer-localization plane: changes against a baseline with paired intervals, as a picture and in sentences.

plane = plane.measure(results.load("results"), baseline="unsteered")
plane.plot()           # a plotly figure
plane.table()          # a pandas frame, in percentage points
plane.conclusions()    # sentences
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm_eval_ext.plane.shifts import Plane, measure

__all__ = ["Plane", "measure"]


def __getattr__(name: str) -> object:
    """The public names, imported when they are used: pandas takes its time."""
    if name in __all__:
        from lm_eval_ext.plane import shifts

        return getattr(shifts, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
