"""What vectors without the meaning do: a band of control effects, and an effect's place in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lm_eval_ext.stats.bootstrap import LEVEL

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


class NullBand(NamedTuple):
    """The range in which another control's effect would fall.

    Attributes:
        low, high: ends of the band.
        coverage: how often another control would fall inside; below the level asked for where controls are few.
        n: number of controls.
        below: share of the controls below the effect, ties counting half.
        p: two-sided p-value of the effect among the controls, never below 2 / (n + 1).
    """

    low: float
    high: float
    coverage: float
    n: int
    below: float
    p: float


def null_band(controls: ArrayLike, effect: float, level: float = LEVEL) -> NullBand:
    """Hold an effect against those of controls of the same norm: random directions, vectors of other languages.

    If the vector meant nothing, its effect and the controls' would be interchangeable, so another effect falls between
    the k-th smallest and the k-th largest of n controls with probability (n + 1 - 2 k) / (n + 1), whatever their
    distribution. The band uses the largest k that keeps `level`, or k = 1: 39 controls are needed for 95%, and `coverage`
    says what fewer give.

    Args:
        controls: [n] effects of controls on the same documents.
        effect: that of the vector.
        level: wanted coverage.
    """
    values = np.sort(np.asarray(controls, dtype=np.float64))
    n = len(values)
    if not n or not np.isfinite(values).all():
        raise ValueError("a null band needs at least one control, and finite effects")
    k = min(max(1, int((n + 1) * (1 - level) / 2 + 1e-9)), (n + 1) // 2)
    at_most, at_least = int((values <= effect).sum()), int((values >= effect).sum())
    return NullBand(
        low=float(values[k - 1]),
        high=float(values[n - k]),
        coverage=(n + 1 - 2 * k) / (n + 1),
        n=n,
        below=(at_most + n - at_least) / (2 * n),
        p=min(1.0, 2 * (1 + min(at_most, at_least)) / (n + 1)),
    )
