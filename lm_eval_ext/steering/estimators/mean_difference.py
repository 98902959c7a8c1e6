"""Mean difference: v^l = mean over pairs of h^l(positive) - h^l(negative).

The paper's vectors (English minus other; country named minus not) and contrastive activation addition (Rimsky et al.
2024). Streamed: one sum per layer is kept, never the states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from lm_eval_ext.steering.estimators.base import Estimator, PairStates
from lm_eval_ext.steering.transforms.add import Add

if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_ext.steering.transforms.base import Transform


@dataclass(frozen=True)
class MeanDifference(Estimator):
    """The mean of the differences of the pairs' hidden states, summed in float64."""

    name: ClassVar[str] = "mean_difference"
    transform: ClassVar[type[Transform]] = Add

    def fit(self, states: PairStates) -> dict[str, Tensor]:
        """`vector` [layers, hidden] in float32. See `Estimator.fit`."""
        total = torch.zeros(states.n_layers, states.hidden_size, dtype=torch.float64)
        for batch in states:
            signs = torch.where(batch.is_positive, 1.0, -1.0).double()
            total += torch.einsum("b,lbh->lh", signs, batch.states.double())
        return {"vector": (total / states.n_pairs).float()}
