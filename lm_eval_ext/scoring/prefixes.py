"""Groups of sequences with a common prefix long enough to be computed once for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    Tokens = tuple[int, ...]

#: Shorter prefixes are not worth a separate forward and copies of their keys and values (our default).
MIN_SHARED = 32


class Group(NamedTuple):
    """Sequences, by index, whose first `length` tokens are the same; 0 for a sequence that shares none."""

    members: list[int]
    length: int


@dataclass
class _Interval:
    """Neighbours in sorted order from `first` on that share `length` tokens, and the best grouping of them so far."""

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
        """Add the grouping of a part of this interval."""
        self.saved += inner.saved
        self.groups += inner.groups


def shared_prefixes(sequences: Sequence[Tokens]) -> list[Group]:
    """A partition of the sequences into groups with a common prefix.

    Bottom-up over the lcp-interval tree of the sorted sequences (Abouelhoda et al. 2004): sequences that share a prefix
    form one group, unless the groups of those that share longer prefixes save more tokens.
    """
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    common = [_common_length(sequences[a], sequences[b]) for a, b in pairwise(order)]
    stack = [_Interval(0, 0)]
    for end, length in enumerate([*common, 0], start=1):
        first, inner = end - 1, None
        while stack[-1].length > length:
            inner = stack.pop()
            inner.close(end)
            first = inner.first
            if stack[-1].length >= length:
                stack[-1].adopt(inner)
                inner = None
        if length > stack[-1].length:
            stack.append(_Interval(length, first))
            if inner is not None:
                stack[-1].adopt(inner)
    groups = [Group(order[first:end], length) for first, end, length in stack[0].groups]
    grouped = {index for group in groups for index in group.members}
    return [*groups, *(Group([index], 0) for index in range(len(sequences)) if index not in grouped)]


def _common_length(a: Tokens, b: Tokens) -> int:
    """Length of the longest common prefix."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low
