"""Questions are divided among processes by what they cost."""

from __future__ import annotations

import random

import pytest

from lm_eval_ext.scoring.batching import divide_by_cost


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_shares_differ_by_no_more_than_the_dearest_item(n: int) -> None:
    draw = random.Random(n)
    costs = [draw.paretovariate(1) for _ in range(200)]
    shares = divide_by_cost(costs, n)
    assert sorted(index for share in shares for index in share) == list(range(200))
    totals = [sum(costs[index] for index in share) for share in shares]
    assert max(totals) - min(totals) <= max(costs)


def test_one_long_question_is_worth_many_short_ones() -> None:
    assert divide_by_cost([100, 10, 10, 10, 10], 2) == [[0], [1, 2, 3, 4]]
    assert divide_by_cost([], 2) == [[], []]
