"""Normal of a logistic probe: v = |d| w / |w|, with w of the regression that tells positive from negative states.

w minimises |w|^2 / 2 + C sum over states log(1 + exp(-y (w . h / a + b))), y = 1 for positive states and -1 for negative
ones, a the root mean square of the centred states' norms, d the mean difference. A linear probe's weight as a steering
direction (Li et al. 2023, "inference-time intervention"). Cost: all states in memory and one regression per layer
(scikit-learn, L-BFGS).
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
class LogisticProbe(Estimator):
    """The normal of a logistic regression, as long as the mean difference.

    Attributes:
        c: inverse strength of the regularisation (our default).
    """

    name: ClassVar[str] = "logistic_probe"
    transform: ClassVar[type[Transform]] = Add
    c: float = 10.0

    def __post_init__(self) -> None:
        """Refuse a C that is not positive."""
        if self.c <= 0:
            raise ValueError(f"c {self.c} must be above 0")

    def fit(self, states: PairStates) -> dict[str, Tensor]:
        """`vector` [layers, hidden]. See `Estimator.fit`."""
        positive, negative = states.collect()
        normals = torch.stack([self._normal(*sides) for sides in zip(positive, negative, strict=True)])
        return {"vector": with_length_of(normals, (positive - negative).mean(1))}

    def _normal(self, positive: Tensor, negative: Tensor) -> Tensor:
        from sklearn.linear_model import LogisticRegression

        both = torch.cat([positive, negative]).double()
        both = both - both.mean(0)
        scale = float(both.square().sum(1).mean().sqrt()) or 1.0
        labels = [1] * len(positive) + [0] * len(negative)
        probe = LogisticRegression(C=self.c, max_iter=1000, tol=1e-6).fit((both / scale).numpy(), labels)
        return torch.from_numpy(probe.coef_[0])
