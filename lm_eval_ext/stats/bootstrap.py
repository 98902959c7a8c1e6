"""Paired differences and their bootstrap intervals: pure functions on arrays.

One question asked in several languages is one cluster: its answers stand and fall together, so questions are drawn
with replacement, never single documents (the cluster bootstrap of Field & Welsh 2007, JRSS B 69(3)). Intervals are
percentile intervals (Efron & Tibshirani 1993, chapter 13), a little wider where questions are few: resamples of n
questions vary by 1 / n too little and ignore the t distribution, which moves the tails outwards (the expanded percentile
interval of Hesterberg 2015, The American Statistician 69(4)).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import special

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

#: Our defaults.
RESAMPLES = 10_000
LEVEL = 0.95

#: Fewer changed questions than this cannot differ from chance at 5%, whatever their direction: 2 * 0.5 ** 5 > 0.05.
MIN_CHANGED = 6

_MAX_CELLS = 4_000_000  # resamples x distinct clusters drawn at a time: 32 MB


class Interval(NamedTuple):
    """An estimate and the two ends of its interval, in the units of the differences."""

    value: float
    low: float
    high: float


def expanded_tail(tail: float, n: int) -> float:
    """The tail of the resamples of n clusters that stands for a tail of the truth."""
    if n < 2:
        return tail
    return float(special.ndtr(np.sqrt(n / (n - 1)) * special.stdtrit(n - 1, tail)))


def paired_difference(baseline: ArrayLike, candidate: ArrayLike) -> NDArray[np.float64]:
    """`candidate - baseline`, one value per document.

    Raises:
        ValueError: the arrays are not two vectors of one length, are empty, or hold NaN or infinity.
    """
    before, after = np.asarray(baseline, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if before.ndim != 1 or before.shape != after.shape:
        raise ValueError(f"scores must be two vectors of one length, got shapes {before.shape} and {after.shape}")
    if not before.size:
        raise ValueError("no documents to pair")
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise ValueError("scores must be finite numbers")
    return after - before


@dataclass(frozen=True)
class ClusterBootstrap:
    """Mean difference per stratum (language), with every resample kept so that averages share the same draws.

    Attributes:
        strata: names of the strata, sorted.
        means: the observed mean difference per stratum.
        resampled: [resamples, strata] means of the resamples; NaN where a resample holds no document of a stratum.
        clusters: the ids of the clusters, sorted.
        sums: [clusters, strata] summed differences.
        counts: [clusters, strata] numbers of documents.
    """

    strata: tuple[Any, ...]
    means: NDArray[np.float64]
    resampled: NDArray[np.float64]
    clusters: NDArray[Any]
    sums: NDArray[np.float64]
    counts: NDArray[np.float64]

    def interval(self, strata: Sequence[Any] | None = None, level: float = LEVEL) -> Interval:
        """The macro average over some strata (all of them if none are named), each weighing the same.

        Raises:
            ValueError: a stratum that has no documents, or a level outside (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"the level of an interval lies between 0 and 1, got {level}")
        columns = self._columns(strata)
        tail = expanded_tail((1 - level) / 2, self.n_clusters(strata))
        low, high = np.nanquantile(self.draws(strata), [tail, 1 - tail])
        return Interval(float(self.means[columns].mean()), float(low), float(high))

    def draws(self, strata: Sequence[Any] | None = None) -> NDArray[np.float64]:
        """[resamples] of the macro average over some strata."""
        drawn: NDArray[np.float64] = self.resampled[:, self._columns(strata)].mean(axis=1)
        return drawn

    def contributions(self, strata: Sequence[Any] | None = None) -> NDArray[np.float64]:
        """[clusters] what each adds to the macro average over some strata; they sum to it."""
        columns = self._columns(strata)
        parts: NDArray[np.float64] = (self.sums[:, columns] / self.counts[:, columns].sum(axis=0)).mean(axis=1)
        return parts

    def n_documents(self, strata: Sequence[Any] | None = None) -> int:
        """Paired documents in some strata."""
        return int(self.counts[:, self._columns(strata)].sum())

    def n_clusters(self, strata: Sequence[Any] | None = None) -> int:
        """Clusters with a document in some strata."""
        return int(np.count_nonzero(self.counts[:, self._columns(strata)].sum(axis=1)))

    def n_changed(self, strata: Sequence[Any] | None = None) -> int:
        """Clusters whose score over some strata changed."""
        return int(np.count_nonzero(self.sums[:, self._columns(strata)].sum(axis=1)))

    def _columns(self, strata: Sequence[Any] | None) -> list[int]:
        chosen = self.strata if strata is None else strata
        if missing := [stratum for stratum in chosen if stratum not in self.strata]:
            raise ValueError(f"no documents in {missing}; there are {list(self.strata)}")
        return [self.strata.index(stratum) for stratum in chosen]


def cluster_bootstrap(
    differences: ArrayLike,
    clusters: ArrayLike,
    strata: ArrayLike | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int | Sequence[int] = 0,
) -> ClusterBootstrap:
    """Resample whole clusters with replacement and average the differences of each stratum.

    Clusters that look alike are drawn together: `n` draws from `n` clusters of which `k` are equal are one multinomial
    draw with probability `k / n`. With right-or-wrong scores few distinct clusters exist, so a resample costs as many
    binomial draws as there are patterns of change, not as there are questions, and the result depends neither on the
    order of the documents nor (but for the sign) on which of the two runs is the baseline.

    Args:
        differences: [documents] paired differences.
        clusters: [documents] question ids.
        strata: [documents] languages; one stratum if not given.
        resamples: number of resamples.
        seed: seed of numpy's default generator.

    Raises:
        ValueError: arrays of different lengths, no documents, NaN, or fewer than one resample.
    """
    values = np.asarray(differences, dtype=np.float64)
    clustered, rows = _places(clusters)
    names, columns = _places(np.zeros(len(values), dtype=int) if strata is None else strata)
    if not values.size or values.ndim != 1 or not len(values) == len(rows) == len(columns):
        raise ValueError("differences, clusters and strata must be vectors of one length, and not empty")
    if not np.isfinite(values).all():
        raise ValueError("differences must be finite numbers")
    if resamples < 1:
        raise ValueError(f"at least one resample is needed, got {resamples}")

    sums = np.zeros((rows.max() + 1, len(names)))
    counts = np.zeros_like(sums)
    np.add.at(sums, (rows, columns), values)
    np.add.at(counts, (rows, columns), 1)

    drawn = _draw_means(sums, counts, resamples, seed)
    means = sums.sum(axis=0) / counts.sum(axis=0)
    return ClusterBootstrap(tuple(names.tolist()), means, drawn, clustered, sums, counts)


def _places(values: ArrayLike) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """The distinct values, sorted, and the place of every value among them."""
    # Hashed, not sorted: for text of a full-size task sorting is most of the time of a bootstrap.
    places, distinct = pd.factorize(values if isinstance(values, pd.Series) else np.asarray(values), sort=True)
    return np.asarray(distinct), places


def _distinct_rows(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """`np.unique` of rows, sorted, with how often each stands there; ten times as fast."""
    # Compared as bytes; adding zero makes one zero of both.
    whole = np.ascontiguousarray(rows + 0.0)
    _, first, repeats = np.unique(
        whole.view(np.dtype((np.void, whole.itemsize * whole.shape[1]))).ravel(), return_index=True, return_counts=True
    )
    distinct = whole[first]
    order = np.lexsort(distinct.T[::-1])
    return distinct[order], repeats[order]


def _draw_means(
    sums: NDArray[np.float64], counts: NDArray[np.float64], resamples: int, seed: int | Sequence[int]
) -> NDArray[np.float64]:
    """[resamples, strata] means of resampled clusters."""
    width = sums.shape[1]
    patterns, repeats = _distinct_rows(np.hstack([sums, counts]))
    mirrored = np.hstack([-patterns[:, :width] + 0.0, patterns[:, width:]])
    order = np.lexsort(mirrored.T[::-1])
    mirrored, mirrored_repeats = mirrored[order], repeats[order]
    # Draw for that one of the two signs that sorts first, so that swapping the runs mirrors the draws exactly.
    here = np.column_stack([patterns, repeats]).ravel().tolist()
    there = np.column_stack([mirrored, mirrored_repeats]).ravel().tolist()
    sign = 1.0 if here <= there else -1.0
    if sign < 0:
        patterns, repeats = mirrored, mirrored_repeats

    n_clusters = int(repeats.sum())
    rng = np.random.default_rng(seed)
    chunk = max(1, _MAX_CELLS // len(patterns))
    totals = np.empty((resamples, 2 * width))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        totals[start : start + size] = rng.multinomial(n_clusters, repeats / n_clusters, size=size) @ patterns
    with np.errstate(invalid="ignore"):  # 0 / 0: a resample without a document of this stratum
        means: NDArray[np.float64] = sign * totals[:, :width] / totals[:, width:]
    if here == there:  # gains and losses mirror each other, and so must the draws
        means[1::2] = -means[: len(means) // 2 * 2 : 2]
    return means


def resample_together(
    contributions: ArrayLike, *, resamples: int = RESAMPLES, seed: int | Sequence[int] = 0
) -> NDArray[np.float64]:
    """[resamples, runs] sums of many runs' contributions, every run seeing the same questions drawn.

    What runs have in common, the hard and the easy questions, cancels in comparisons of such draws. Denominators are
    held at what was observed, which for a fixed number of questions is what `cluster_bootstrap` does too.

    Args:
        contributions: [clusters, runs] what each question adds to each run's average; 0 where a run lacks it.
        resamples, seed: of the bootstrap.
    """
    parts = np.asarray(contributions, dtype=np.float64)
    if parts.ndim != 2 or not parts.size or not np.isfinite(parts).all():
        raise ValueError(f"contributions must be finite, with the shape [clusters, runs], got {parts.shape}")
    patterns, repeats = _distinct_rows(parts)
    rng = np.random.default_rng(seed)
    n = len(parts)
    drawn = np.empty((resamples, parts.shape[1]))
    chunk = max(1, _MAX_CELLS // len(patterns))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn[start : start + size] = rng.multinomial(n, repeats / n, size=size) @ patterns
    return drawn
