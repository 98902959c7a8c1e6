"""Least-squares map: h + s D h, with D = argmin sum over pairs |h(negative) + D h(negative) - h(positive)|^2 + ridge |D|^2.

INCLINE (Wang et al. 2024): a map without intercept from the other language's states to English ones, W = I + D, applied
as h + a (W h - h), a in -1..1. The ridge draws W to the identity, so that a state unlike any pair is left alone; it is
chosen for each layer on held-out pairs. Of rank at most `rank`: the reduced-rank regression (Izenman 1975). Cost: all
states in memory; per layer and fold an eigendecomposition of [pairs, pairs] for each ridge. Extract at the tokens that
are steered (`--pooling last` for `/last`): a map learnt on means is applied to single tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from lm_eval_ext.steering.estimators.base import Estimator, Fitted, PairStates
from lm_eval_ext.steering.transforms.affine import Affine

if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_ext.steering.transforms.base import Transform

#: Ridges that are tried, as multiples of the mean eigenvalue of the states' Gram matrix (our default).
_MULTIPLES = tuple(10.0**power for power in range(-4, 3))


@dataclass(frozen=True)
class LeastSquares(Estimator):
    """A linear map of low rank from negative to positive states.

    Attributes:
        ridge: strength of the regularisation; chosen for each layer on held-out pairs where left out.
        rank: most directions that the map writes; never more than pairs (our default).
        folds: of the cross-validation that chooses the ridge.
        seed: of its folds.
    """

    name: ClassVar[str] = "least_squares"
    transform: ClassVar[type[Transform]] = Affine
    ridge: float | None = None
    rank: int = 32
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse parameters out of range."""
        if self.ridge is not None and self.ridge < 0:
            raise ValueError(f"ridge {self.ridge} must be at least 0")
        if self.rank < 1 or self.folds < 2:
            raise ValueError(f"rank {self.rank} must be at least 1, and folds {self.folds} at least 2")

    def fit(self, states: PairStates) -> Fitted:
        """`left`, `right` and an `offset` of zeros, for each layer. See `Estimator.fit`."""
        positive, negative = states.collect()
        left, right, ridges = [], [], []
        for source, target in zip(negative.double(), positive.double(), strict=True):
            change = target - source
            ridges.append(self._chosen(source, change) if self.ridge is None else self.ridge)
            of_layer = reduced_rank(source, change, ridges[-1], self.rank)
            left.append(of_layer[0].float())
            right.append(of_layer[1].float())
        offset = torch.zeros(len(left), left[0].shape[1])
        return Fitted({"left": torch.stack(left), "right": torch.stack(right), "offset": offset}, {"ridge": ridges})

    def _chosen(self, source: Tensor, change: Tensor) -> float:
        """The ridge of least squared error on held-out pairs; the middle one where there is one pair only."""
        n = len(source)
        scale = float(source.square().sum()) / n or 1.0
        if n < 2:
            return scale
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))
        errors = torch.zeros(len(_MULTIPLES), dtype=torch.float64)
        for held_out in order.tensor_split(min(self.folds, n)):
            kept = torch.ones(n, dtype=torch.bool)
            kept[held_out] = False
            for number, multiple in enumerate(_MULTIPLES):
                left, right = reduced_rank(source[kept], change[kept], multiple * scale, self.rank)
                errors[number] += (change[held_out] - source[held_out] @ left @ right).square().sum()
        return _MULTIPLES[int(errors.argmin())] * scale


def reduced_rank(source: Tensor, change: Tensor, ridge: float, rank: int) -> tuple[Tensor, Tensor]:
    """The map D = L R of at most `rank` that minimises |Y - X D|^2 + ridge |D|^2, by the Gram matrix of X.

    Args:
        source: X [n, hidden].
        change: Y [n, hidden].
        ridge: 0 gives the least-norm solution.
        rank: cut to n.

    Returns:
        L [hidden, rank] and R [rank, hidden], whose rows are orthonormal.
    """
    values, vectors = torch.linalg.eigh(source @ source.T)
    values = values.clamp_min(0)
    is_used = values > 1e-12 * values.max()
    inverse = torch.where(is_used, 1 / (values + ridge), 0.0)
    rotated = vectors.T @ change
    fitted = (values * inverse).sqrt()[:, None] * rotated
    right = torch.linalg.svd(fitted, full_matrices=False).Vh[: min(rank, len(source))]
    left = source.T @ (vectors @ (inverse[:, None] * (rotated @ right.T)))
    return left, right
