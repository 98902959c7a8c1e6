"""Norm-preserving addition: |h| (h + s v) / |h + s v|, a rotation in the plane of h and v.

The vector v is that of any estimator: `rotation:direction=lda`. Keeps the scale of the residual stream, which later layers
normalise by (angular steering, Vu and Nguyen 2025, is a rotation in a fixed plane). Cost: that of the other estimator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lm_eval_ext.steering.estimators.of_direction import OfDirection
from lm_eval_ext.steering.transforms.rotate import Rotate

if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_ext.steering.transforms.base import Transform


@dataclass(frozen=True)
class Rotation(OfDirection):
    """Turns the residual stream towards a vector."""

    name: ClassVar[str] = "rotation"
    transform: ClassVar[type[Transform]] = Rotate

    def artifact(self, vector: Tensor) -> dict[str, Tensor]:
        """`vector` [layers, hidden]."""
        return {"vector": vector}
