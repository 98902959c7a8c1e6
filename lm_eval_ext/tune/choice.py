"""The choice among plans on development questions."""

from __future__ import annotations

import time
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_ext.console import notes
from lm_eval_ext.data import axes
from lm_eval_ext.errors import UserError
from lm_eval_ext.fingerprints import hash_json
from lm_eval_ext.steering.plan import Plan, parse_position
from lm_eval_ext.sweep.grid import Condition, intervention, problems
from lm_eval_ext.sweep.run import parse_gamma
from lm_eval_ext.sweep.summary import ENGLISH, PROBABILITY, probability
from lm_eval_ext.tune.candidates import FOR_CHOICE, families_of, half
from lm_eval_ext.tune.halving import MIN_QUESTIONS, halve, within_budget
from lm_eval_ext.tune.objective import Effect, Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lm_eval_ext.steering.vectors import VectorSet
    from lm_eval_ext.sweep.cells import Cells
    from lm_eval_ext.sweep.questions import Question, ScoredTree
    from lm_eval_ext.tune.candidates import Candidate
    from lm_eval_ext.tune.objective import Objective
    from lm_eval_ext.tune.settings import Settings

_TRANSFER, _LOCALIZATION = AXES = ("transfer", "localization")


class Chooser:
    """Chooses a plan by successive halving: plans of one vector first, then the best of both kinds together.

    Args:
        settings: of the choice.
        objective: what is better.
        wanted: the kinds of vectors, by the names that they have in `vectors`.
        cells: of the development questions.
        vectors: of all candidates.

    Attributes:
        tried: a row for each plan on each number of questions.
        n_cells: how many prompts under plans were computed.
        best_of_each: the best plan of each kind of vectors, where each is given its share of the cells.
    """

    def __init__(
        self, settings: Settings, objective: Objective, wanted: Sequence[Candidate], cells: Cells, vectors: VectorSet
    ) -> None:
        self._settings, self._objective = settings, objective
        self._candidates = {candidate.name: candidate for candidate in wanted}
        self._cells, self._vectors = cells, vectors
        self.tried: list[dict[str, Any]] = []
        self.n_cells = 0
        self.best_of_each: dict[str, Plan] = {}
        divided = {family for candidate in wanted for family in candidate.divided}
        self._groups = self._questions_by_group(divided)
        self._place: dict[int, tuple[str, int]] = {
            index: (tree.key, position)
            for tree in cells.trees
            for position, indices in enumerate(tree.requests)
            for index in indices
        }
        self._tree = {tree.key: tree for tree in cells.trees}
        self._unsteered = Condition(Plan())

    def _questions_by_group(self, divided: set[str]) -> dict[tuple[str, str, str], list[Question]]:
        """The questions of each axis, family and language, in an order that the seed decides, alike in every language."""
        questions = self._cells.questions
        families = {
            task: families_of([axes.metadata(task, questions.metadata(task))])
            for task in {question.task for question in questions.questions}
        }
        groups: dict[tuple[str, str, str], list[Question]] = {}
        for question in questions.questions:
            if question.axis not in AXES:
                continue
            if families[question.task] & divided and half(question.question_id) != FOR_CHOICE:
                continue
            groups.setdefault((question.axis, question.family, question.language), []).append(question)
        for of_group in groups.values():
            of_group.sort(key=lambda question: hash_json([self._settings.seed, question.question_id]))
        return groups

    def choose(self) -> tuple[Plan, Outcome]:
        """The plan, and its outcome on all development questions."""
        settings = self._settings
        plans = self._singles()
        budget = self._cells_in(settings.minutes, plans) if settings.minutes else settings.cells
        groups = [[plan for plan in plans if self._is_for_transfer(plan) is flag] for flag in (True, False)]
        groups = [group for group in groups if group]
        stages = len(groups) + (len(groups) == 2)
        finalists = [self._finalists(group, budget // stages) for group in groups]
        if len(finalists) == 1:
            best = finalists[0][0]
        else:
            both = [
                Plan((*lower.interventions, *upper.interventions))
                for lower, upper in product(*finalists)
                if lower.interventions[0].first.value <= upper.interventions[0].first.value
            ]
            best = self._halve([*finalists[0], *finalists[1], *both], "together", budget // stages)[0]
        return best, self._outcomes([best], self._most)[0]

    def _finalists(self, plans: list[Plan], cells: int) -> list[Plan]:
        """The best plans of one vector; where kinds of vectors are compared, the best one of each."""
        settings = self._settings
        if not settings.compare:
            return self._halve(plans, "one vector", cells)[: settings.finalists]
        by_kind: dict[str, list[Plan]] = {}
        for plan in plans:
            by_kind.setdefault(plan.interventions[0].kind, []).append(plan)
        best = {kind: self._halve(of_kind, "one vector", cells // len(by_kind))[0] for kind, of_kind in by_kind.items()}
        self.best_of_each |= best
        return self._rank(list(best.values()), self._most, "one vector", is_last=True)[: settings.finalists]

    @property
    def _most(self) -> int:
        return max(len(of_group) for of_group in self._groups.values())

    def _is_for_transfer(self, plan: Plan) -> bool:
        return self._candidates[plan.interventions[0].kind].is_for_transfer

    def _singles(self) -> list[Plan]:
        from lm_eval_ext.steering.extraction import parse_layers

        settings, n_layers = self._settings, self._vectors.model.n_layers
        layers = parse_layers(settings.layers, n_layers)
        plans = [
            Plan((intervention(name, layer, gamma, position),))
            for name, position, layer, gamma in product(
                self._candidates,
                [parse_position(text) for text in settings.positions],
                layers,
                [parse_gamma(text) for text in settings.gammas],
            )
        ]
        languages = list(dict.fromkeys(language for _, _, language in self._groups))
        if errors := problems([Condition(plan) for plan in plans], self._vectors, n_layers, languages):
            raise UserError("these plans cannot be tried:\n" + "\n".join(f"  {error}" for error in errors))
        return plans

    def _cells_in(self, minutes: float, plans: Sequence[Plan]) -> int:
        """How many cells can be computed in that time here, by the time that some take."""
        conditions = [self._unsteered, *(Condition(plan) for plan in plans[:: max(1, len(plans) // 8)])]
        trees = self._trees(MIN_QUESTIONS)
        started = time.monotonic()
        self._cells.compute(conditions, "Calibrating", trees)
        seconds = max(time.monotonic() - started, 1e-3)
        return max(1, int(minutes * 60 / seconds * len(conditions) * len(trees)))

    def _halve(self, plans: list[Plan], stage: str, cells: int) -> list[Plan]:
        console = notes()
        tried, rungs = within_budget(
            plans,
            self._most,
            cache(lambda n_questions: len(self._trees(n_questions))),  # asked for many times
            cells,
            self._settings.reduction,
            self._settings.seed,
        )
        if len(tried) < len(plans):
            console.print(
                f"note: {len(tried)} of {len(plans)} plans ({stage}) are tried, drawn at random: more cells or minutes "
                "try more",
                style="yellow",
            )
        console.print(
            f"{stage}: " + ", ".join(f"{rung.n_plans} plans on {rung.n_questions} questions" for rung in rungs)
        )
        return halve(tried, rungs, lambda some, n, is_last: self._rank(some, n, stage, is_last))

    def _rank(self, plans: Sequence[Plan], n_questions: int, stage: str, is_last: bool) -> list[Plan]:
        outcomes = self._outcomes(plans, n_questions)
        objective = self._objective
        for plan, outcome in zip(plans, outcomes, strict=True):
            self.tried.append(self._row(plan, outcome, n_questions, stage))
        # On few questions a plan is left out for its loss only where that is clear.
        keys = [objective.key(outcome, 0.0 if is_last else 1.0) for outcome in outcomes]
        order = sorted(range(len(plans)), key=lambda index: keys[index], reverse=True)  # of equals the first
        return [plans[index] for index in order]

    def _row(self, plan: Plan, outcome: Outcome, n_questions: int, stage: str) -> dict[str, Any]:
        terms = plan.interventions
        n_layers = self._vectors.model.n_layers
        single = terms[0] if len(terms) == 1 else None
        return {
            "stage": stage,
            "questions": n_questions,
            "plan": str(plan),
            "kinds": "+".join(term.kind for term in terms),
            "layer": int(single.first.value) if single else None,
            "depth": (1 + single.first.value) / n_layers if single else None,
            "gamma": single.gamma.value if single else None,
            "share_of_norm": self._share_of_norm(plan) if single else None,
            "position": "+".join(str(term.position) for term in terms),
            "localization": outcome.localization.change if outcome.localization else None,
            "localization_error": outcome.localization.error if outcome.localization else None,
            "transfer": outcome.transfer.change if outcome.transfer else None,
            "transfer_error": outcome.transfer.error if outcome.transfer else None,
            "value": self._objective.value(outcome),
            "is_allowed": self._objective.is_allowed(outcome),
        }

    def _share_of_norm(self, plan: Plan) -> float:
        """How far the plan moves the residual stream, as a share of its mean norm; the average over languages."""
        term = plan.interventions[0]
        layer = int(term.first.value)
        shares = []
        for (kind, _), entry in self._vectors.vectors.items():
            if kind == term.kind:
                norm = entry.residual_norm(layer)
                moved = float(entry.displacement(layer).norm()) / norm
                shares.append(term.gamma.value / 100 if term.gamma.is_relative else term.gamma.value * moved)
        return float(np.mean(shares))

    def _outcomes(self, plans: Sequence[Plan], n_questions: int) -> list[Outcome]:
        trees = self._trees(n_questions)
        conditions = [self._unsteered, *map(Condition, plans)]
        store = self._cells.store
        self.n_cells += sum(store.get(condition.name, tree.key) is None for condition in conditions for tree in trees)
        self._cells.compute(conditions, f"{len(plans)} plans", trees)
        groups = {key: group[:n_questions] for key, group in self._groups.items()}
        unsteered = {key: self._scores(self._unsteered, group) for key, group in groups.items()}
        return [
            self._outcome({key: self._scores(condition, group) - unsteered[key] for key, group in groups.items()})
            for condition in conditions[1:]
        ]

    @staticmethod
    def _outcome(changes: Mapping[tuple[str, str, str], NDArray[np.float64]]) -> Outcome:
        """The outcome of the changes of each axis, family and language."""
        effects: dict[str, Effect | None] = {}
        for axis in (_LOCALIZATION, _TRANSFER):
            differences = {key: values for key, values in changes.items() if key[0] == axis}
            others = {key: values for key, values in differences.items() if key[2] != ENGLISH}
            effects[axis] = Effect.of(list((others or differences).values())) if differences else None
        return Outcome(effects[_LOCALIZATION], effects[_TRANSFER])

    def _scores(self, condition: Condition, questions: Sequence[Question]) -> NDArray[np.float64]:
        scores = []
        for question in questions:
            values = []
            for index in question.instances[: question.n_options]:
                key, position = self._place[index]
                of_tree = self._cells.store.get(condition.name, key)
                assert of_tree is not None  # computed before
                values.append(of_tree[position])
            if self._settings.metric == PROBABILITY:
                scores.append(probability(question, values))
            else:
                scores.append(float(int(np.argmax(values)) == question.gold))
        return np.array(scores)

    def _trees(self, n_questions: int) -> list[ScoredTree]:
        keys = dict.fromkeys(
            self._place[index][0]
            for group in self._groups.values()
            for question in group[:n_questions]
            for index in question.instances[: question.n_options]
        )
        return [self._tree[key] for key in keys]
