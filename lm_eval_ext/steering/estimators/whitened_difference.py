"""Whitened mean difference: v = |d| S^-1 d / |S^-1 d|, d the mean difference and S the states' covariance.

S is the covariance of the states around the mean of their side, shrunk towards a multiple of the identity by Ledoit and
Wolf's shrinkage: directions in which states vary anyway count less. Fisher's discriminant (Marks and Tegmark 2023 for
probes of this form). With shrinkage 1 it is the mean difference. Cost: all states in memory, O(pairs^2 hidden) per layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from lm_eval_ext.steering.estimators.algebra import ledoit_wolf, solve_covariance, with_length_of, within
from lm_eval_ext.steering.estimators.base import Estimator, Fitted, PairStates
from lm_eval_ext.steering.transforms.add import Add

if TYPE_CHECKING:
    from lm_eval_ext.steering.transforms.base import Transform


@dataclass(frozen=True)
class WhitenedDifference(Estimator):
    """The mean difference times the inverse of the states' covariance, as long as the mean difference.

    Attributes:
        shrinkage: 0 to 1; Ledoit and Wolf's of each layer where left out.
    """

    name: ClassVar[str] = "whitened_difference"
    transform: ClassVar[type[Transform]] = Add
    shrinkage: float | None = None

    def __post_init__(self) -> None:
        """Refuse a shrinkage outside of 0 to 1."""
        if self.shrinkage is not None and not 0 <= self.shrinkage <= 1:
            raise ValueError(f"shrinkage {self.shrinkage} must be between 0 and 1")

    def fit(self, states: PairStates) -> Fitted:
        """`vector` [layers, hidden]. See `Estimator.fit`."""
        positive, negative = states.collect()
        differences = (positive - negative).mean(1)
        whitened, shrinkages = [], []
        for sides, difference in zip(zip(positive, negative, strict=True), differences, strict=True):
            centred = within(*sides)
            shrinkages.append(ledoit_wolf(centred) if self.shrinkage is None else self.shrinkage)
            whitened.append(solve_covariance(centred, difference.double()[:, None], shrinkages[-1])[:, 0])
        return Fitted({"vector": with_length_of(torch.stack(whitened), differences)}, {"shrinkage": shrinkages})
