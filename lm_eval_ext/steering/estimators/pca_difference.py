"""First principal component of the differences: v = |d| u, with u the unit vector that maximises sum over pairs (u . d_i)^2.

d_i = h(positive) - h(negative) of a pair, not centred; d their mean, which gives the sign and the length. Linear artificial
tomography (Zou et al. 2023, "representation engineering"). Cost: all states in memory and one thin SVD per layer,
O(pairs^2 hidden). The direction does not depend on which text of a pair is the positive one, only its sign does: fits of
shuffled labels differ from it by sign alone, so hold it against random directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from lm_eval_ext.steering.estimators.algebra import with_length_of
from lm_eval_ext.steering.estimators.base import Estimator, PairStates
from lm_eval_ext.steering.transforms.add import Add

if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_ext.steering.transforms.base import Transform


@dataclass(frozen=True)
class PcaDifference(Estimator):
    """The direction along which the pairs differ most, as long as their mean difference."""

    name: ClassVar[str] = "pca_difference"
    transform: ClassVar[type[Transform]] = Add

    def fit(self, states: PairStates) -> dict[str, Tensor]:
        """`vector` [layers, hidden]. See `Estimator.fit`."""
        positive, negative = states.collect()
        differences = positive - negative
        first = torch.stack(
            [torch.linalg.svd(of_layer, full_matrices=False).Vh[0] for of_layer in differences.double()]
        )
        return {"vector": with_length_of(first, differences.mean(1))}
