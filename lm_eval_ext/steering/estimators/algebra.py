"""What the estimators share: lengths, and covariances of more dimensions than states."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def with_length_of(directions: Tensor, differences: Tensor) -> Tensor:
    """Directions [layers, hidden] with the lengths of the mean differences [layers, hidden], on their side.

    A strength then means the same change for every estimator of a direction, and random controls are as long.
    """
    side = torch.where((directions * differences).sum(1, keepdim=True) < 0, -1.0, 1.0)
    unit = torch.nn.functional.normalize(directions.double(), dim=1)
    scaled: Tensor = side * unit * differences.double().norm(dim=1, keepdim=True)
    return scaled.float()


def within(*groups: Tensor) -> Tensor:
    """States [n, hidden] of several groups, each around its own mean, in float64."""
    return torch.cat([group.double() - group.double().mean(0) for group in groups])


def ledoit_wolf(centred: Tensor) -> float:
    """The shrinkage of the covariance of centred states [n, hidden] towards a multiple of the identity (Ledoit and Wolf
    2004).
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    return float(ledoit_wolf_shrinkage(centred.numpy(), assume_centered=True))


def solve_covariance(centred: Tensor, right: Tensor, shrinkage: float) -> Tensor:
    """S^-1 r, with S = (1 - a) X^T X / n + a m I, m the mean variance and a the shrinkage.

    By the Woodbury identity where there are fewer states than dimensions: O(n^2 hidden) instead of O(hidden^3).

    Args:
        centred: X [n, hidden] in float64.
        right: r [hidden, columns].
        shrinkage: a in 0..1.

    Returns:
        [hidden, columns]; `right` itself where the states do not vary, or the covariance cannot be inverted for lack of
        shrinkage its least-norm solution.
    """
    n, width = centred.shape
    mean_variance = float(centred.square().sum()) / n / width
    if not mean_variance:
        return right
    diagonal, scale = shrinkage * mean_variance, (1 - shrinkage) / n
    if diagonal and n < width:
        small = torch.eye(n, dtype=centred.dtype) * diagonal / scale + centred @ centred.T if scale else None
        inner = right if small is None else right - centred.T @ torch.linalg.solve(small, centred @ right)
        solved: Tensor = inner / diagonal
        return solved
    covariance = scale * centred.T @ centred + diagonal * torch.eye(width, dtype=centred.dtype)
    inverse: Tensor = torch.linalg.pinv(covariance, hermitian=True)
    return inverse @ right
