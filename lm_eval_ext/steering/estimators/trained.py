"""A vector trained by gradient: v = argmin of the loss of `estimators.gradient` over |v| <= budget * mean residual norm.

Steering vectors optimised for an outcome (Subramani et al. 2022; Cao et al. 2024): the most that an added vector can do, and
so the bound by which the estimators of states are judged. See `estimators.gradient` for the loss and the cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from lm_eval_ext.steering.estimators.gradient import Trained
from lm_eval_ext.steering.transforms.add import Add

if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_ext.steering.transforms.base import Transform


@dataclass(frozen=True)
class TrainedVector(Trained):
    """A vector that is trained by gradient. Plans use it with strength 1."""

    name: ClassVar[str] = "trained"
    transform: ClassVar[type[Transform]] = Add

    def start(self, width: int) -> dict[str, Tensor]:
        """A vector of zeros, in units of the residual norm."""
        return {"vector": torch.zeros(width)}

    def artifact(self, tensors: dict[str, Tensor], norm: float) -> dict[str, Tensor]:
        """`vector` [hidden]."""
        return {"vector": tensors["vector"] * norm}
