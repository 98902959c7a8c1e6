"""How much of what alignment took steering brings back."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lm_eval_ext.stats.bootstrap import LEVEL

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


class Recovery(NamedTuple):
    """A share with its interval; NaN where it is undefined, and `reason` says why.

    1: all that was lost is back. 0: nothing. Below 0: steering lost more. Above 1: more is back than was lost.
    """

    value: float
    low: float
    high: float
    reason: str = ""

    @property
    def is_defined(self) -> bool:
        """Whether something was lost that can come back."""
        return not self.reason


def recovery(
    lost: float, regained: float, draws_lost: ArrayLike, draws_regained: ArrayLike, level: float = LEVEL
) -> Recovery:
    """`regained / lost`, as a share of a loss that is certain.

    The interval takes the quantiles of the ratio over joint resamples. It means something only where the loss is clear
    of zero: if the interval of the loss, at the same level, reaches zero, the ratio may be anything and is undefined.

    Args:
        lost: unaligned minus aligned.
        regained: steered minus aligned.
        draws_lost, draws_regained: [resamples] of both, drawn together.
        level: of the interval.
    """
    losses, gains = (np.asarray(draws, dtype=np.float64) for draws in (draws_lost, draws_regained))
    if losses.shape != gains.shape or losses.ndim != 1:
        raise ValueError(f"draws must be two vectors of one length, got shapes {losses.shape} and {gains.shape}")
    tails = [(1 - level) / 2, (1 + level) / 2]
    least, most = np.quantile(losses, tails)
    undefined = (float("nan"),) * 3
    if lost <= 0:
        return Recovery(*undefined, reason="nothing was lost")
    if least <= 0:
        return Recovery(
            *undefined,
            reason=f"no loss is shown: {100 * lost:.1f} points, interval {100 * least:.1f} to {100 * most:.1f}",
        )
    # The few resamples without a loss have no finite share: they count as far out, on the side of what was regained.
    ratios = np.where(losses > 0, gains / np.where(losses > 0, losses, 1), np.where(gains < 0, -np.inf, np.inf))
    low, high = np.quantile(ratios, tails, method="nearest")
    return Recovery(regained / lost, float(low), float(high))
