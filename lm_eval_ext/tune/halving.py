"""Successive halving: many plans on few questions, the best of them on more, the last on all.

Jamieson & Talwalkar 2016 (arXiv 1502.07943): each rung keeps the best 1 / `reduction` and gives them `reduction` times the
questions, so that every rung costs about the same. Here later rungs go on from the cells of earlier ones, which makes them
cheaper than that.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

#: Questions of each task and language that a plan is asked at least.
MIN_QUESTIONS = 4


@dataclass(frozen=True)
class Rung:
    """`n_plans` plans on the first `n_questions` questions of each task and language."""

    n_plans: int
    n_questions: int


def schedule(n_plans: int, n_questions: int, reduction: int) -> list[Rung]:
    """The rungs of `n_plans` plans: the last one is asked all questions.

    Args:
        n_plans: that begin.
        n_questions: of the task and language that has most.
        reduction: at least 2.
    """
    n_rungs = 1
    while reduction**n_rungs < n_plans and n_questions // reduction**n_rungs >= MIN_QUESTIONS:
        n_rungs += 1
    return [
        Rung(math.ceil(n_plans / reduction**rung), n_questions // reduction ** (n_rungs - 1 - rung))
        for rung in range(n_rungs)
    ]


def cost(rungs: Sequence[Rung], prompts: Callable[[int], int]) -> int:
    """Cells of a schedule.

    Args:
        rungs: of the schedule.
        prompts: how many prompts the first so many questions of each task and language have.
    """
    total, before = 0, 0
    for rung in rungs:
        asked = prompts(rung.n_questions)
        total += rung.n_plans * (asked - before)
        before = asked
    return total


def within_budget(
    plans: Sequence[T], n_questions: int, prompts: Callable[[int], int], cells: int, reduction: int, seed: int
) -> tuple[list[T], list[Rung]]:
    """The plans that can be tried with so many cells, and their rungs.

    Where not all can be, as many as possible are drawn at random with `seed`, and keep their order; at least one is.
    """
    low, high = 1, len(plans)
    while low < high:
        middle = (low + high + 1) // 2
        if cost(schedule(middle, n_questions, reduction), prompts) <= cells:
            low = middle
        else:
            high = middle - 1
    chosen = sorted(random.Random(seed).sample(range(len(plans)), low))  # noqa: S311 - not for secrets
    return [plans[index] for index in chosen], schedule(low, n_questions, reduction)


def halve(plans: Sequence[T], rungs: Sequence[Rung], rank: Callable[[Sequence[T], int, bool], list[T]]) -> list[T]:
    """The plans of the last rung, best first.

    Args:
        plans: that begin.
        rungs: their schedule.
        rank: orders plans by their results on the first so many questions; its last argument says whether it is the last
            rung.
    """
    left = list(plans)
    for number, rung in enumerate(rungs):
        left = rank(left[: rung.n_plans], rung.n_questions, number == len(rungs) - 1)
    return left
