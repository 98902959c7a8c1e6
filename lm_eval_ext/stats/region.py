"""The shift of the whole position: both axes of one run, their joint region, and the quadrant it lies in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_ext.stats.bootstrap import LEVEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lm_eval_ext.stats.bootstrap import ClusterBootstrap

#: Quadrants from the upper right on, clockwise.
QUADRANTS = ("upper_right", "lower_right", "lower_left", "upper_left")


@dataclass(frozen=True)
class JointShift:
    """A position with its uncertainty in both directions.

    Attributes:
        center: observed change on x and y.
        covariance: [2, 2] of the resamples.
        quadrants: share of the resamples in each of `QUADRANTS`; a resample on a line counts half on either side.
    """

    center: tuple[float, float]
    covariance: NDArray[np.float64]
    quadrants: tuple[float, float, float, float]

    @classmethod
    def of(
        cls, x: ClusterBootstrap, y: ClusterBootstrap, x_strata: Sequence[Any], y_strata: Sequence[Any]
    ) -> JointShift:
        """Both axes as resampled.

        Two question sets are independent, and must have been drawn with different seeds. Questions that stand on both
        axes must have been drawn together: give the same bootstrap twice, with the axis in its strata.
        """
        draws = np.column_stack([x.draws(x_strata), y.draws(y_strata)])
        draws = draws[np.isfinite(draws).all(axis=1)]
        right, up = ((np.sign(draws) + 1) / 2).T  # 1, 0, or one half on the line
        shares = (right * up, right * (1 - up), (1 - right) * (1 - up), (1 - right) * up)
        first, second, third, fourth = (float(share.mean()) for share in shares)
        center = (x.interval(x_strata).value, y.interval(y_strata).value)
        return cls(center, np.cov(draws, rowvar=False), (first, second, third, fourth))

    @property
    def errors(self) -> tuple[float, float]:
        """Standard errors of x and y."""
        return math.sqrt(self.covariance[0, 0]), math.sqrt(self.covariance[1, 1])

    @property
    def correlation(self) -> float:
        """Of x and y; 0 where one of them does not vary."""
        across, up = self.errors
        return float(self.covariance[0, 1] / (across * up)) if across and up else 0.0

    def contains(self, point: tuple[float, float], level: float = LEVEL) -> bool:
        """Whether the joint region of this level holds a point."""
        away = np.subtract(point, self.center)
        # Where there is no variance the region is a line or a point: the pseudo-inverse would hold everything beside it.
        inverse = np.linalg.pinv(self.covariance)
        if not np.allclose(self.covariance @ inverse @ away, away, atol=1e-12):
            return False
        return float(away @ inverse @ away) <= _radius(level) ** 2

    def outline(self, level: float = LEVEL, n_points: int = 60) -> NDArray[np.float64]:
        """[n_points, 2] of the ellipse that holds the true position with probability `level`; it is closed."""
        return ellipse(self.center, self.errors, self.correlation, level, n_points)


def ellipse(
    center: tuple[float, float],
    errors: tuple[float, float],
    correlation: float = 0.0,
    level: float = LEVEL,
    n_points: int = 60,
) -> NDArray[np.float64]:
    """[n_points, 2] of the ellipse that a joint normal distribution puts around a position; first and last point are one.

    The squared radius is the quantile of the chi-squared distribution with two degrees of freedom, -2 ln(1 - level): 1.25
    times as far as the ends of an interval for one axis alone.
    """
    angle = np.linspace(0, 2 * np.pi, n_points)
    across, along = np.cos(angle), np.sin(angle)
    tilted = correlation * across + math.sqrt(max(0.0, 1 - correlation**2)) * along
    points: NDArray[np.float64] = np.asarray(center) + _radius(level) * np.column_stack([across, tilted]) * errors
    return points


def _radius(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"the level of a region lies between 0 and 1, got {level}")
    return math.sqrt(-2 * math.log(1 - level))
