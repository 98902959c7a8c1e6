"""Drift: the candidate held against a baseline that is frozen, beside the one that moves with every release.

A baseline that is renewed at every release hides losses that are each within the margin: ten of 0.4 points are four. The
rules that compare two runs hold for the frozen baseline too, with a margin of their own, and all items together say how
much was lost since then, and how much of it now.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lm_eval_ext.errors import GateError
from lm_eval_ext.gate.measuring import Side, pair_rules

if TYPE_CHECKING:
    from pathlib import Path

    from lm_eval_ext.gate.measuring import RulePair
    from lm_eval_ext.gate.rules import Drift, Gate

#: The role of the baseline that is not renewed.
FROZEN = "frozen baseline"


def read_frozen(drift: Drift, baseline: Side, *, any_order: bool = False) -> Side:
    """The frozen baseline.

    Raises:
        ResultsError: no results.
        GateError: several runs, the baseline itself, or a newer one.
    """
    frozen = Side.read(FROZEN, drift.frozen)
    if frozen.run.path.resolve() == baseline.run.path.resolve():
        raise GateError(
            f"drift: the frozen baseline {frozen.run.path} is the baseline itself; a frozen one is not renewed: "
            "keep it in a folder of its own"
        )
    if frozen.run.date > baseline.run.date and not any_order:
        raise GateError(
            f"drift: the frozen baseline was evaluated on {frozen.run.date}, after the baseline, on {baseline.run.date}: "
            "are they swapped? If this is meant, say --any-order"
        )
    return frozen


def pair_drift(gate: Gate, frozen: Side, candidate: Side, *, any_order: bool = False) -> list[RulePair]:
    """The candidate against the frozen baseline, by every rule that compares two runs, each axis and language once.

    Raises:
        GateError, ResultsError: as `pair_rules`.
    """
    assert gate.drift is not None  # whoever read the frozen baseline knows
    known: set[tuple[str, str, tuple[str, ...]]] = set()
    rules = []
    for rule in gate.rules:
        key = (rule.axis, rule.metric, rule.languages)
        if rule.kind == "non-inferiority" and key not in known:
            known.add(key)
            rules.append(replace(rule, margin=gate.drift.margin, severity=gate.drift.severity, since=frozen.title))
    return pair_rules(replace(gate, rules=tuple(rules), baseline={}), frozen, candidate, any_order=any_order)


def check_not_frozen(gate: Gate, folder: Path) -> None:
    """Refuse to renew the frozen baseline.

    Raises:
        GateError: `folder` is the frozen baseline.
    """
    if gate.drift is not None and gate.drift.frozen.resolve() == folder.resolve():
        raise GateError(
            f"{folder} is the frozen baseline of the gate's drift, which is not renewed; give --baseline the folder of the "
            "baseline that moves, or freeze another one (drift: {frozen: ...})"
        )
