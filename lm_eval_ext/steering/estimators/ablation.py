"""Projection: h - s (h . u) u, with u the unit vector of a direction, so that the direction is ablated at strength 1.

Arditi et al. 2024 ("refusal is mediated by a single direction"). The direction is that of any estimator of a vector:
`ablation:direction=whitened_difference`. Cost: that of the other estimator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch.nn.functional import normalize

from lm_eval_ext.steering.estimators.of_direction import OfDirection
from lm_eval_ext.steering.transforms.project import Ablate

if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_ext.steering.transforms.base import Transform


@dataclass(frozen=True)
class Ablation(OfDirection):
    """Removes a direction from the residual stream."""

    name: ClassVar[str] = "ablation"
    transform: ClassVar[type[Transform]] = Ablate

    def artifact(self, vector: Tensor) -> dict[str, Tensor]:
        """`directions` [layers, 1, hidden]."""
        return {"directions": normalize(vector, dim=1)[:, None]}
