"""The gate: hold a candidate against a baseline, item by item, and say pass, fail or inconclusive.

`read_gate` reads the rules, `measure` compares two runs by them, `judge` gives the verdicts; `pool` tests all items
together.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval_ext.gate.config import read_gate as read_gate
    from lm_eval_ext.gate.measuring import measure as measure
    from lm_eval_ext.gate.pooled import pool as pool
    from lm_eval_ext.gate.verdicts import judge as judge

_HOME = {"judge": "verdicts", "measure": "measuring", "pool": "pooled", "read_gate": "config"}
__all__ = ["judge", "measure", "pool", "read_gate"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
