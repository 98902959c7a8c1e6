"""Which rows each optimiser step sees: decided before the first step by the seed alone.

A run is one pass over the order made here, however often that goes through the data: so a resumed run goes on where it
stopped, and several processes share the very steps of one.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator


class Place(NamedTuple):
    """What one place of a batch holds: an instruction (or tuple), a group of sentence pairs, or both."""

    row: int | None
    pairs: int | None = None


def order(
    steps: int,
    batch: int,
    n_rows: int,
    n_groups: int = 0,
    *,
    contrastive_steps: int = 0,
    summed: bool = False,
    seed: int = 0,
) -> list[Place]:
    """The places of all steps, `batch` of them for each.

    Args:
        steps: optimiser steps.
        batch: places per step, over all processes and accumulated batches.
        n_rows: instructions or tuples; every pass goes through them in a new order.
        n_groups: groups of sentence pairs, of which a place of a contrastive step holds one; none occurs twice in a step.
        contrastive_steps: how many of the steps are contrastive only, spread evenly, the last one among them.
        summed: every step has both an instruction and pairs in each place.
        seed: of the two orders.
    """
    rows = _shuffled(n_rows, (seed, 0))
    groups = _shuffled(n_groups, (seed, 1), n_groups // batch * batch)
    places: list[Place] = []
    for step in range(steps):
        if (step + 1) * contrastive_steps // steps > step * contrastive_steps // steps:
            places += [Place(None, group) for group in islice(groups, batch)]
        elif summed:
            places += [Place(row, group) for row, group in zip(islice(rows, batch), islice(groups, batch), strict=True)]
        else:
            places += [Place(row) for row in islice(rows, batch)]
    return places


def _shuffled(n: int, seed: tuple[int, int], used: int | None = None) -> Iterator[int]:
    """Pass after pass over n rows (or so many of them), each in an order of its own."""
    generator = np.random.default_rng(seed)
    while True:
        yield from generator.permutation(n)[:used].tolist()
