"""Successive halving, and which plan is better."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_ext.tune.halving import MIN_QUESTIONS, cost, halve, schedule, within_budget
from lm_eval_ext.tune.objective import Effect, Objective, Outcome


@given(st.integers(1, 500), st.integers(1, 400), st.integers(2, 5))
def test_the_last_rung_asks_all_questions_and_no_rung_asks_fewer_than_the_one_before(
    n_plans: int, n_questions: int, reduction: int
) -> None:
    rungs = schedule(n_plans, n_questions, reduction)
    assert rungs[0].n_plans == n_plans
    assert rungs[-1].n_questions == n_questions
    asked = [rung.n_questions for rung in rungs]
    assert asked == sorted(set(asked))
    assert all(first.n_plans > second.n_plans for first, second in itertools.pairwise(rungs))
    assert all(rung.n_questions >= min(MIN_QUESTIONS, n_questions) for rung in rungs)


@given(st.integers(1, 300), st.integers(1, 100), st.integers(1, 30_000), st.integers(0, 3))
def test_the_budget_is_kept_and_the_draw_is_the_seeds(n_plans: int, n_questions: int, cells: int, seed: int) -> None:
    tried, rungs = within_budget(range(n_plans), n_questions, lambda n: 3 * n, cells, 3, seed)
    assert cost(rungs, lambda n: 3 * n) <= cells or len(tried) == 1
    assert len(tried) == rungs[0].n_plans
    assert tried == sorted(set(tried))
    assert (tried, rungs) == within_budget(range(n_plans), n_questions, lambda n: 3 * n, cells, 3, seed)


def test_the_best_survives_where_every_rung_sees_it() -> None:
    seen = []

    def rank(plans: object, n_questions: int, is_last: bool) -> list[int]:
        seen.append((len(list(plans)), n_questions, is_last))  # type: ignore[call-overload]
        return sorted(plans, key=lambda plan: abs(plan - 70))  # type: ignore[call-overload]

    best = halve(range(100), schedule(100, 90, 3), rank)
    assert best[0] == 70
    assert seen == [(100, 10, False), (34, 30, False), (12, 90, True)]


def outcome(localization: float, transfer: float, error: float = 0.0) -> Outcome:
    return Outcome(Effect(localization, error), Effect(transfer, error))


def test_a_plan_that_loses_too_much_transfer_comes_after_all_others() -> None:
    objective = Objective(weight=0.75, max_loss=0.01)
    assert objective.value(outcome(0.2, -0.1)) == pytest.approx(0.125)
    worse, better = outcome(0.3, -0.02), outcome(0.01, -0.01)
    assert objective.key(better) > objective.key(worse)
    assert objective.key(worse) > objective.key(outcome(0.3, -0.03))
    # On few questions, only where the loss is clear.
    assert objective.key(outcome(0.3, -0.02, error=0.01), 1.0) > objective.key(better, 1.0)
    assert objective.value(Outcome(Effect(0.1, 0.0), None)) == 0.1
    assert objective.is_allowed(Outcome(Effect(0.1, 0.0), None))


def test_languages_have_equal_weight() -> None:
    effect = Effect.of([np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.0])])
    assert effect.change == 0.25
    assert effect.error == pytest.approx(np.sqrt((1 / 3) / 4) / 2)
