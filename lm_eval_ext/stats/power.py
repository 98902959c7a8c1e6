"""What a number of documents can show: the smallest loss that a test would find."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Callable

#: Our default: the share of real losses of this size that the test finds.
POWER = 0.8

_STEPS = 20  # halvings of the interval that is searched: a millionth


@lru_cache(maxsize=4096)
def smallest_difference(n: float, discordant: float, *, alpha: float = 0.05, power: float = POWER) -> float:
    """The smallest loss that the one-sided exact McNemar test at `alpha` shows with probability `power`.

    The same number says when non-inferiority can be shown: the bound of an unchanged candidate clears a margin of this
    size about as often. A loss changes at least as many answers as it is large, so `discordant` counts only where it is
    larger: without any changed answer the result is that of a loss that nothing compensates.

    Args:
        n: paired documents (effective number, where they are clustered).
        discordant: share of documents whose score changes, 0 to 1.
        alpha: of the one-sided test.
        power: between alpha and 1.

    Returns:
        a share between 0 and 1; infinity where even the loss of every answer would not be shown.
    """
    _check(n, alpha, power)
    if not 0 <= discordant <= 1:
        raise ValueError(f"the share of discordant documents lies between 0 and 1, got {discordant}")
    whole = math.floor(n + 1e-9)
    return _smallest(lambda loss: _mcnemar_power(whole, max(discordant, loss), loss, alpha) >= power)


@lru_cache(maxsize=4096)
def smallest_shortfall(n: float, reference: float, *, alpha: float = 0.05, power: float = POWER) -> float:
    """The smallest shortfall below a fixed share that the one-sided exact binomial test shows with probability `power`.

    Returns:
        a share between 0 and `reference`; infinity where even no right answer at all would not be shown.
    """
    _check(n, alpha, power)
    if not 0 < reference <= 1:
        raise ValueError(f"the reference is a share above 0, got {reference}")
    whole = math.floor(n + 1e-9)
    # The most right answers that still speak for a shortfall.
    most = int(stats.binom.ppf(alpha, whole, reference))
    most -= stats.binom.cdf(most, whole, reference) > alpha
    return _smallest(
        lambda loss: most >= 0 and float(stats.binom.cdf(most, whole, reference - loss)) >= power, up_to=reference
    )


def _check(n: float, alpha: float, power: float) -> None:
    if not (n > 0 and 0 < alpha < power < 1):
        raise ValueError(f"n must be above 0 and 0 < alpha < power < 1, got {n}, {alpha} and {power}")


def _smallest(is_found: Callable[[float], bool], up_to: float = 1.0) -> float:
    """The smallest loss that is found; larger ones are too."""
    if not is_found(up_to):
        return math.inf
    low, high = 0.0, up_to
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_found(middle) else (middle, high)
    return high


def _mcnemar_power(n: int, discordant: float, loss: float, alpha: float) -> float:
    """Probability that the losses among n documents are too many for a coin."""
    spread = 8 * math.sqrt(n * discordant * (1 - discordant)) + 1
    changed = np.arange(max(1, math.floor(n * discordant - spread)), min(n, math.ceil(n * discordant + spread)) + 1)
    needed = stats.binom.isf(alpha, changed, 0.5) + 1  # losses that a coin exceeds with probability alpha at most
    power = stats.binom.sf(needed - 1, changed, min(1.0, (discordant + loss) / (2 * discordant)))
    return float(stats.binom.pmf(changed, n, discordant) @ power)
