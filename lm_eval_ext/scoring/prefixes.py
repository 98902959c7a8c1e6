"""Which sequences begin alike for long enough to share the computation of that beginning."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    Tokens = tuple[int, ...]

#: Shorter beginnings are not worth a forward of their own and copies of their keys and values (our default).
MIN_SHARED = 32


class Group(NamedTuple):
    """Sequences, by index, whose first `length` tokens are the same; 0 where they share none."""

    members: list[int]
    length: int


@dataclass
class _Interval:
    """Neighbours in sorted order from `first` on that share `length` tokens; the best way found to group them so far."""

    length: int
    first: int
    saved: int = 0
    groups: list[tuple[int, int, int]] = field(default_factory=list)  # first, end, shared length

    def close(self, end: int) -> None:
        """Make one group of all, unless smaller groups save more tokens."""
        saved = (end - self.first - 1) * self.length
        if self.length >= MIN_SHARED and saved >= self.saved:
            self.saved, self.groups = saved, [(self.first, end, self.length)]

    def adopt(self, inner: _Interval) -> None:
        """Add what was found for a part of this one."""
        self.saved += inner.saved
        self.groups += inner.groups


def shared_prefixes(sequences: Sequence[Tokens]) -> list[Group]:
    """A partition of sequences into groups with a common beginning, each sequence in one group.

    Bottom-up over the lcp-interval tree of the sorted sequences (Abouelhoda et al. 2004): sequences that share a beginning
    form one group, unless the groups found among those that share a longer one save more tokens.
    """
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    common = [_common(sequences[a], sequences[b]) for a, b in pairwise(order)]
    stack = [_Interval(0, 0)]
    for at, length in enumerate([*common, 0], start=1):
        first, inner = at - 1, None
        while stack[-1].length > length:
            inner = stack.pop()
            inner.close(at)
            first = inner.first
            if stack[-1].length >= length:
                stack[-1].adopt(inner)
                inner = None
        if length > stack[-1].length:
            stack.append(_Interval(length, first))
            if inner is not None:
                stack[-1].adopt(inner)
    found = [Group(order[first:end], length) for first, end, length in stack[0].groups]
    grouped = {index for group in found for index in group.members}
    return [*found, *(Group([index], 0) for index in range(len(sequences)) if index not in grouped)]


def _common(a: Tokens, b: Tokens) -> int:
    """Length of the common beginning."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low
