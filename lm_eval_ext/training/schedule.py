"""Which rows each optimiser step sees: decided before the first step by the seed alone.

A run is one pass over this order, however often the order goes through the data. So a resumed run continues where it
stopped, and several processes share the steps that one process would take.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


class BatchItem(NamedTuple):
    """One item of a batch: the number of an instruction (or tuple), that of a group of sentence pairs, or both."""

    row: int | None
    pairs: int | None = None


def order(
    steps: int,
    items_per_step: int,
    n_rows: int,
    n_groups: int = 0,
    *,
    contrastive_steps: int = 0,
    summed: bool = False,
    seed: int = 0,
) -> list[BatchItem]:
    """The items of all batches, in the order of the optimiser steps.

    Args:
        steps: optimiser steps.
        items_per_step: items of a step, over all processes and accumulated batches.
        n_rows: instructions or tuples; every pass goes through them in a new order.
        n_groups: groups of sentence pairs, of which an item of a contrastive step holds one; none occurs twice in a step.
        contrastive_steps: how many of the steps are contrastive only, spread evenly, the last one among them.
        summed: every step has both an instruction and pairs in each item.
        seed: of the two orders.
    """
    rows = _shuffled(n_rows, (seed, 0))
    groups = _shuffled(n_groups, (seed, 1), n_groups // items_per_step * items_per_step)
    items: list[BatchItem] = []
    for step in range(steps):
        if (step + 1) * contrastive_steps // steps > step * contrastive_steps // steps:
            items += [BatchItem(None, group) for group in islice(groups, items_per_step)]
        elif summed:
            items += [
                BatchItem(row, group)
                for row, group in zip(islice(rows, items_per_step), islice(groups, items_per_step), strict=True)
            ]
        else:
            items += [BatchItem(row) for row in islice(rows, items_per_step)]
    return items


def shuffle(n: int, seed: tuple[int, int]) -> list[int]:
    """The numbers below n in a random order; the second part of the seed keeps the uses of one seed apart."""
    import numpy as np

    numbers: list[int] = np.random.default_rng(seed).permutation(n).tolist()
    return numbers


def _shuffled(n: int, seed: tuple[int, int], used: int | None = None) -> Iterator[int]:
    """Pass after pass over n rows (or so many of them), each in an order of its own."""
    import numpy as np

    generator = np.random.default_rng(seed)
    while True:
        yield from generator.permutation(n)[:used].tolist()
