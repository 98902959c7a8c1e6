"""The transfer-localization plane: read the harness's result files, pair documents, bootstrap, draw.

`load` gives every document's score as a tidy pandas frame; `measure` gives the changes against a baseline with their
intervals; `draw` and `conclusions` say them as a picture and in sentences. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval_ext.plane.figure import draw as draw
    from lm_eval_ext.plane.results import load as load
    from lm_eval_ext.plane.runs import read_tree as read_tree
    from lm_eval_ext.plane.shifts import measure as measure
    from lm_eval_ext.plane.standing import null_bands as null_bands
    from lm_eval_ext.plane.standing import pareto as pareto
    from lm_eval_ext.plane.standing import recoveries as recoveries
    from lm_eval_ext.plane.wording import conclusions as conclusions

_HOME = {
    "conclusions": "wording",
    "draw": "figure",
    "load": "results",
    "measure": "shifts",
    "null_bands": "standing",
    "pareto": "standing",
    "read_tree": "runs",
    "recoveries": "standing",
}
__all__ = ["conclusions", "draw", "load", "measure", "null_bands", "pareto", "read_tree", "recoveries"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
