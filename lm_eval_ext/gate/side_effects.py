"""Rules on side effects: the panel of `lm-eval-ext side-effects --json`, held to limits.

A bound of one side of the interval over texts decides: pass where it excludes what is beyond the limit, fail where it
excludes what is within, else inconclusive. No test is made, so these rules do not count in the correction of the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lm_eval_ext.errors import GateError
from lm_eval_ext.gate.verdicts import Measured
from lm_eval_ext.results.run import short_model
from lm_eval_ext.side_effects.panel import Panel

if TYPE_CHECKING:
    from pathlib import Path

    from lm_eval_ext.gate.rules import Gate
    from lm_eval_ext.results.run import Run


def read_panel(path: Path, candidate: Run) -> Panel:
    """The side effects of a candidate.

    Raises:
        ResultsError: no such file, or something else in it.
        GateError: of another model or plan.
    """
    panel = Panel.read(path)
    got, wanted = (panel.model, panel.plan), (short_model(candidate.model), candidate.plan or "")
    if got != wanted:
        model, plan = (" with ".join(filter(None, one)) for one in (got, wanted))
        raise GateError(
            f"{path} has the side effects of {model}, the candidate is {plan}; "
            "measure them anew: lm-eval-ext side-effects --json"
        )
    return panel


def measure_side_effects(gate: Gate, panel: Panel) -> list[Measured]:
    """Each rule on side effects in each of its languages.

    Raises:
        ResultsError: a measure or a language that the panel lacks.
    """
    measured = []
    for rule in gate.side_effects:
        for language in rule.languages or panel.languages(rule.metric) or ("all",):
            one = panel.levels(rule.metric, language, resamples=gate.resamples, seed=gate.seed)
            of_level = rule.bound in ("max", "min")
            value, drawn = (one.value, one.values) if of_level else (one.change, one.changes)
            # What is left to the limit, so that positive is better.
            sign = -1.0 if rule.bound in ("max", "max_rise") else 1.0
            limit = -rule.limit if rule.bound == "max_fall" else rule.limit
            low, high = np.nanquantile(sign * (drawn - limit), [rule.alpha, 1 - rule.alpha])
            measured.append(
                Measured(
                    rule=rule,
                    language=language,
                    baseline=one.baseline,
                    candidate=one.value,
                    n=one.n,
                    questions=one.questions,
                    gains=one.rises,
                    losses=one.falls,
                    change=sign * (value - limit),
                    low=float(low),
                    high=float(high),
                    p=float("nan"),
                    smallest=float("inf"),
                )
            )
    return measured
