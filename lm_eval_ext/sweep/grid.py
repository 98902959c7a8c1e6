"""The grid of a sweep: steering plans of one vector each, the controls that go with them, and pairs of the best."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING

from lm_eval_ext.errors import LanguageError, PlanError, VectorFileError
from lm_eval_ext.steering.plan import Gamma, Intervention, Plan, Position
from lm_eval_ext.steering.table import SteeringTable
from lm_eval_ext.sweep.settings import N_RANDOM

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lm_eval_ext.steering.controls import Control
    from lm_eval_ext.steering.vectors import VectorSet

#: The condition that every other one is compared with.
UNSTEERED = ""


@dataclass(frozen=True)
class Condition:
    """One plan of the grid.

    Attributes:
        plan: with explicit positions, so that it means the same in `--model_args steer=`.
        control: the kind of control, None for a plan that is none.
        of: the plan that it is a control of; the plan itself where it is no control.
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
        """Whether only the prompts' last tokens are steered."""
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
        n_shuffled: for each kind, how many fits of shuffled pairs the vector file has; all of them are controls.
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
    n_shuffled: Mapping[str, int] = field(default_factory=dict)

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
            Plan((*lower.interventions, *upper.interventions))
            for lower, upper in product(first, second)
            if lower.interventions[0].first.value <= upper.interventions[0].first.value
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
        """The controls of a plan."""
        conditions = [
            Condition(_with_control(plan, f"random{seed}"), "random", str(plan)) for seed in range(self.n_random)
        ]
        n_shuffled = min(self.n_shuffled.get(term.kind, 0) for term in plan.interventions)
        conditions += [
            Condition(_with_control(plan, f"shuffled{number}"), "shuffled", str(plan)) for number in range(n_shuffled)
        ]
        if self.with_controls:
            negated = Plan(
                tuple(replace(term, gamma=replace(term.gamma, value=-term.gamma.value)) for term in plan.interventions)
            )
            conditions.append(Condition(_with_control(plan, "other"), "other_language", str(plan)))
            conditions.append(Condition(negated, "negated", str(plan)))
        return conditions


def intervention(kind: str, layer: int, gamma: Gamma, position: Position) -> Intervention:
    """One term of a plan."""
    return Plan.parse(f"{kind}@{layer}:{gamma}/{position}").interventions[0]


def problems(conditions: Sequence[Condition], vectors: VectorSet, n_layers: int, languages: Sequence[str]) -> list[str]:
    """Why some conditions cannot run: a layer that the model or the file lacks, a kind or a language without vectors."""
    names_by_problem: dict[str, list[str]] = {}
    for condition in conditions:
        try:
            table = SteeringTable.build(condition.plan, vectors, n_layers)
            for language in languages:
                table.row(language)
        except (PlanError, VectorFileError, LanguageError) as error:
            names_by_problem.setdefault(str(error).replace(condition.name, "a plan"), []).append(condition.name)
    return [f"{_first_names(names)}: {problem}" for problem, names in names_by_problem.items()]


def _with_control(plan: Plan, control: str) -> Plan:
    return Plan(tuple(replace(term, control=control) for term in plan.interventions))


def _first_names(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
