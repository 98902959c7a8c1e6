"""The grid of a sweep: steering plans of one vector each, the controls that go with them, and pairs of the best."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from lm_eval_ext.errors import LanguageError, PlanError, VectorFileError
from lm_eval_ext.steering.plan import Gamma, Intervention, Plan, Position
from lm_eval_ext.steering.table import SteeringTable
from lm_eval_ext.sweep.settings import N_RANDOM

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lm_eval_ext.steering.controls import Control
    from lm_eval_ext.steering.vectors import VectorSet

#: The condition that every other one is compared with.
UNSTEERED = ""


@dataclass(frozen=True)
class Condition:
    """One plan of the grid.

    Attributes:
        plan: with its positions written out, so that it means the same in `--model_args steer=`.
        control: what it is a control for `of`, None for a plan in its own right.
        of: the plan that it is a control of; the plan itself where it is none.
    """

    plan: Plan
    control: Control | None = None
    of: str = UNSTEERED

    @property
    def name(self) -> str:
        """The plan as text: unique in a grid."""
        return str(self.plan)

    @property
    def kinds(self) -> str:
        """Kinds of vectors, joined by +: a pair has two."""
        return "+".join(term.kind for term in self.plan.interventions)

    def first_layer(self, n_layers: int) -> int:
        """The lowest steered layer."""
        return min(term.layers(n_layers)[0] for term in self.plan.interventions)

    @property
    def is_last_only(self) -> bool:
        """Whether nothing but the prompts' last tokens is steered."""
        return all(term.position == "last" for term in self.plan.interventions)


@dataclass(frozen=True)
class Grid:
    """What to evaluate: every kind at every layer with every gamma and position.

    Attributes:
        kinds: of vectors.
        layers: 0-based.
        gammas: strengths.
        positions: tokens to steer.
        n_random: random directions for each plan; 0 for none.
        with_controls: whether another language's vector and the negated vector are tried too.
        control_gammas: strengths whose plans get controls; all where empty.
    """

    kinds: tuple[str, ...]
    layers: tuple[int, ...]
    gammas: tuple[Gamma, ...]
    positions: tuple[Position, ...]
    n_random: int = N_RANDOM
    with_controls: bool = True
    control_gammas: tuple[Gamma, ...] = ()

    def singles(self) -> list[Condition]:
        """The plans of one vector, each followed by its controls."""
        plans = [
            Plan((intervention(kind, layer, gamma, position),))
            for kind, position, layer, gamma in product(self.kinds, self.positions, self.layers, self.gammas)
        ]
        return self._with_controls(plans)

    def pairs(self, first: Iterable[Plan], second: Iterable[Plan]) -> list[Condition]:
        """Combinations of two plans of one vector, the first no deeper than the second, each with its controls."""
        plans = [
            Plan((*one.interventions, *other.interventions))
            for one, other in product(first, second)
            if one.interventions[0].first.value <= other.interventions[0].first.value
        ]
        return self._with_controls(plans)

    def _with_controls(self, plans: Iterable[Plan]) -> list[Condition]:
        return [
            condition
            for plan in plans
            for condition in (
                Condition(plan, of=str(plan)),
                *(self.controls(plan) if self._is_controlled(plan) else []),
            )
        ]

    def _is_controlled(self, plan: Plan) -> bool:
        return not self.control_gammas or all(term.gamma in self.control_gammas for term in plan.interventions)

    def controls(self, plan: Plan) -> list[Condition]:
        """What a plan is compared with."""
        found = [
            Condition(_changed(plan, control=f"random{seed}"), "random", str(plan)) for seed in range(self.n_random)
        ]
        if self.with_controls:
            negated = Plan(
                tuple(replace(term, gamma=replace(term.gamma, value=-term.gamma.value)) for term in plan.interventions)
            )
            found.append(Condition(_changed(plan, control="other"), "other_language", str(plan)))
            found.append(Condition(negated, "negated", str(plan)))
        return found


def intervention(kind: str, layer: int, gamma: Gamma, position: Position) -> Intervention:
    """One term of a plan."""
    return Plan.parse(f"{kind}@{layer}:{gamma}/{position}").interventions[0]


def problems(conditions: Sequence[Condition], vectors: VectorSet, n_layers: int, languages: Sequence[str]) -> list[str]:
    """Why some conditions cannot run: a layer that the model or the file lacks, a kind or a language without vectors."""
    found: dict[str, list[str]] = {}
    for condition in conditions:
        try:
            table = SteeringTable.build(condition.plan, vectors, n_layers)
            for language in languages:
                table.row(language)
        except (PlanError, VectorFileError, LanguageError) as error:
            found.setdefault(str(error).replace(condition.name, "a plan"), []).append(condition.name)
    return [f"{_some(names)}: {problem}" for problem, names in found.items()]


def _changed(plan: Plan, control: str) -> Plan:
    return Plan(tuple(replace(term, control=control) for term in plan.interventions))


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
