"""The budget that is halved when memory runs out."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_ext.scoring.batching import Budget, by_cost

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True, scope="module")
def _no_collections() -> Iterator[None]:
    """A garbage collection for each failure takes long in a process that has imported much."""
    with mock.patch("lm_eval_ext.scoring.batching.clear_device_cache"):
        yield


COSTS = st.lists(st.floats(0.01, 0.9), max_size=20)


@given(COSTS, st.floats(0.01, 2))
def test_every_item_is_worked_on_once_in_batches_that_memory_holds(costs: list[float], memory: float) -> None:
    budget, failures, done = Budget(), [], []

    def work(batch: list[tuple[int, float]]) -> float:
        if len(batch) > 1 and len(batch) * max(cost for _, cost in batch) > memory:
            failures.append(len(batch))
            raise MemoryError
        return sum(cost for _, cost in batch)

    for batch, total in budget.run(list(enumerate(costs)), by_cost(lambda item: item[1]), work):
        done += batch
        assert total == sum(cost for _, cost in batch)
    assert sorted(done) == list(enumerate(costs))
    assert budget.share <= 0.5 ** len(failures)


def test_what_one_run_learnt_serves_the_next_and_those_that_surround_it() -> None:
    budget, sizes = Budget(), []

    def inner(batch: list[int]) -> None:
        if len(batch) > 2:
            raise MemoryError

    def outer(batch: list[int]) -> None:
        sizes.append(len(batch))
        for _ in budget.run(batch, by_cost(lambda item: 0.125), inner):
            pass

    for _ in budget.run(list(range(20)), by_cost(lambda item: 0.125), outer):
        pass
    assert sizes == [8, 2, 2, 2, 2, 2, 2]
    assert budget.share == 0.25


def test_one_item_is_tried_with_fewer_tokens_while_there_are_any() -> None:
    budget, tried = Budget(tokens=12, memory=100), []

    def work(batch: list[str]) -> str:
        tried.append((budget.tokens, budget.memory))
        if budget.tokens > 2:
            raise MemoryError
        return batch[0]

    def whole(items: list[str], budget: Budget) -> list[list[str]]:
        return [[item] for item in items]

    assert list(budget.run(["a"], whole, work)) == [(["a"], "a")]
    assert tried == [(12, 100), (6, 50), (3, 25), (1, 12)]
    with pytest.raises(MemoryError):
        list(Budget(tokens=4).run(["a"], whole, lambda batch: (_ for _ in ()).throw(MemoryError)))
    with pytest.raises(ZeroDivisionError):
        list(Budget(tokens=4).run(["a"], whole, lambda batch: 1 / 0))
