"""Many positions at once: which of them no other beats, how far the rest is behind, what area they cover.

Positions have shape [..., runs, 2]: leading axes, such as resamples, are taken one by one. On both axes more is better.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

#: Differences below this are rounding: thirds and sixths have no exact sum.
_SLACK = 1e-12


def on_front(positions: ArrayLike) -> NDArray[np.bool_]:
    """[..., runs] whether no run is at least as good on both axes and better on one. Equal positions share the front."""
    x, y = _axes(positions)
    beaten = np.zeros(x.shape, dtype=bool)
    for other in range(x.shape[-1]):  # one column at a time: no [resamples, runs, runs] array
        ahead, above = x[..., [other]] - x, y[..., [other]] - y
        beaten |= (np.minimum(ahead, above) >= -_SLACK) & (np.maximum(ahead, above) > _SLACK)
    return ~beaten


def front_distance(positions: ArrayLike) -> NDArray[np.float64]:
    """[..., runs] by how much both scores must rise until no run is better on both; 0 on the front.

    This is the additive epsilon indicator of a single point (Zitzler et al. 2003), in the units of the axes.
    """
    x, y = _axes(positions)
    behind = np.zeros(x.shape)
    for other in range(x.shape[-1]):
        np.maximum(behind, np.minimum(x[..., [other]] - x, y[..., [other]] - y), out=behind)
    return np.where(behind > _SLACK, behind, 0.0)


def dominated_by(positions: ArrayLike) -> list[list[int]]:
    """For each run of [runs, 2] the runs that are at least as good on both axes and better on one."""
    points = np.asarray(positions, dtype=np.float64)
    better = points[None, :, :] - points[:, None, :]
    beats = (better.min(axis=2) >= -_SLACK) & (better.max(axis=2) > _SLACK)
    return [np.flatnonzero(row).tolist() for row in beats]


def hypervolume(positions: ArrayLike, reference: tuple[float, float]) -> NDArray[np.float64]:
    """[...] area between the front and a reference point, in squared units of the axes.

    Only what lies right of and above the reference counts. The reference decides the value: state it with the number.
    """
    x, y = _axes(positions)
    x, y = np.maximum(x - reference[0], 0), np.maximum(y - reference[1], 0)
    order = np.argsort(-x, axis=-1, kind="stable")
    x, y = np.take_along_axis(x, order, -1), np.maximum.accumulate(np.take_along_axis(y, order, -1), axis=-1)
    widths = x - np.concatenate([x[..., 1:], np.zeros((*x.shape[:-1], 1))], axis=-1)
    area: NDArray[np.float64] = (widths * y).sum(axis=-1)
    return area


def _axes(positions: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points = np.asarray(positions, dtype=np.float64)
    if points.ndim < 2 or points.shape[-1] != 2 or not points.shape[-2]:
        raise ValueError(f"positions must have the shape [..., runs, 2], got {points.shape}")
    return points[..., 0], points[..., 1]
