"""Tests of paired scores that rest on counting, and the correction for their number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import special, stats

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Alternative = Literal["two-sided", "less", "greater"]


#: Numbers that a Monte Carlo test draws at once: 32 MB.
_MAX_DRAWN = 4_000_000


def mcnemar(gains: int, losses: int, alternative: Alternative = "two-sided") -> float:
    """Exact p-value of McNemar's test: would a coin have divided the changed documents so unevenly?

    Args:
        gains, losses: documents whose score rose and fell.
        alternative: "less" asks for a loss, "greater" for a gain.
    """
    if gains < 0 or losses < 0:
        raise ValueError(f"counts cannot be negative, got {gains} and {losses}")
    if not gains + losses:
        return 1.0
    return float(stats.binomtest(gains, gains + losses, 0.5, alternative).pvalue)


def sign_flip(
    contributions: ArrayLike,
    alternative: Alternative = "two-sided",
    *,
    resamples: int = 10_000,
    seed: int = 0,
    exact: bool = False,
) -> float:
    """P-value of the sum of differences per cluster, were baseline and candidate interchangeable in each.

    Under that null hypothesis every cluster's difference might as well have the other sign (Fisher's randomisation test).
    Clusters of one size of change are flipped together, as one binomial draw. With one size only, as for right-or-wrong
    answers in one language, the p-value is exact and McNemar's; else Monte Carlo, never below 1 / (resamples + 1).

    Args:
        contributions: [clusters] summed differences, such as `ClusterBootstrap.contributions`.
        alternative: "less" asks for a loss, "greater" for a gain.
        resamples, seed: of the Monte Carlo test.
        exact: compute the p-value instead of drawing it where all differences are whole numbers, as those of
            right-or-wrong answers summed over languages.
    """
    values = np.asarray(contributions, dtype=np.float64)
    # Sums of thirds or sixths differ in their last bits although they are the same change.
    sizes, which = np.unique(np.round(np.abs(values[values != 0]), 12), return_inverse=True)
    if len(sizes) <= 1:
        return mcnemar(int((values > 0).sum()), int((values < 0).sum()), alternative)
    repeats = np.bincount(which)
    if exact and np.all(sizes == np.round(sizes)):
        return _exact_sign_flip(sizes.astype(int), repeats, int(np.round(values.sum())), alternative)
    rng = np.random.default_rng(seed)
    rows = max(1, _MAX_DRAWN // len(sizes))
    drawn = np.concatenate(
        [
            (2 * rng.binomial(repeats, 0.5, size=(min(rows, resamples - start), len(sizes))) - repeats) @ sizes
            for start in range(0, resamples, rows)
        ]
    )
    observed, slack = values.sum(), 1e-9 * np.abs(values).sum()
    extreme = {
        "less": drawn <= observed + slack,
        "greater": drawn >= observed - slack,
        "two-sided": np.abs(drawn) >= abs(observed) - slack,
    }[alternative]
    return float((1 + extreme.sum()) / (resamples + 1))


def _exact_sign_flip(
    sizes: NDArray[np.int_], repeats: NDArray[np.intp], observed: int, alternative: Alternative
) -> float:
    """The exact law of a sum of whole numbers with random signs: binomial laws, stretched by size and convolved."""
    law = np.ones(1)
    for size, number in zip(sizes, repeats, strict=True):
        stretched = np.zeros(size * number + 1)
        stretched[::size] = stats.binom.pmf(np.arange(number + 1), number, 0.5)
        law = np.convolve(law, stretched)
    sums = 2 * np.arange(len(law)) - (len(law) - 1)
    extreme = {
        "less": sums <= observed,
        "greater": sums >= observed,
        "two-sided": np.abs(sums) >= abs(observed),
    }[alternative]
    return min(1.0, float(law[extreme].sum()))


def share_test(share: float, n: float, reference: float, alternative: Literal["less", "greater"]) -> float:
    """Exact binomial p-value of a share of right answers below ("less") or above a reference.

    `n` need not be whole: for clustered documents it is their effective number, share (1 - share) / variance (Korn &
    Graubard 1998, Survey Methodology 24), for which the binomial sums become incomplete beta functions.
    """
    if not (0 <= share <= 1 and 0 <= reference <= 1 and n > 0):
        raise ValueError(f"shares lie between 0 and 1 and n above 0, got {share}, {reference} and {n}")
    right = share * n
    if alternative == "greater":
        return 1.0 if right <= 0 else float(special.betainc(right, n - right + 1, reference))
    return 1.0 if right >= n else float(special.betaincc(right + 1, n - right, reference))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """P-values adjusted for their number (Holm 1979): those at most alpha keep all false alarms together below alpha.

    NaN (no test was made) stays NaN and does not count.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted
