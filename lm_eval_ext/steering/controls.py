"""Which plans are controls, with which the effect of a vector is compared.

`random`: the plan adds a random direction of the same norm, or applies a random map of the same spectrum
(`loc~random7@58%:2`). `shuffled`: it uses what the estimator learnt from shuffled pairs (`loc~shuffled2@58%:2`, see
`steering.shuffling`). `other_language`: it adds another language's vector (`loc~other`, `loc~zh`). `negated`: it adds the
vector with its sign changed (`loc@58%:-2`). A random direction with a negative strength is still a random direction, and one
control makes the whole plan a control.
"""

from __future__ import annotations

from typing import Literal

from lm_eval_ext.errors import PlanError
from lm_eval_ext.steering.plan import Plan

Control = Literal["random", "shuffled", "other_language", "negated"]

#: The kinds in words: one control, several.
CONTROL_NAMES: dict[Control, tuple[str, str]] = {
    "random": ("a random direction", "random directions"),
    "shuffled": ("a fit of shuffled pairs", "fits of shuffled pairs"),
    "other_language": ("another language's vector", "vectors of other languages"),
    "negated": ("a negated vector", "negated vectors"),
}


def control_of(plan: Plan | str) -> Control | None:
    """Which kind of control a plan is; None for a plan that is no control, and for text that is no plan."""
    if isinstance(plan, str):
        try:
            plan = Plan.parse(plan)
        except PlanError:
            return None
    terms = plan.interventions
    if any(term.random_seed is not None for term in terms):
        return "random"
    if any(term.shuffled is not None for term in terms):
        return "shuffled"
    if any(term.control for term in terms):
        return "other_language"
    return "negated" if any(term.gamma.value < 0 for term in terms) else None
