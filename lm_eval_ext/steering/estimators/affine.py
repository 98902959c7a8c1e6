"""An affine map of low rank, trained by gradient: h + (h A + b) R, with orthonormal rows R.

LoReFT (Wu et al. 2024), h + R^T (W h + b - R h), with A^T = W - R trained instead of W. The norms of A and of b (in units
of the residual norm) keep the budget, so that the change is at most 2 budget |h| for a state of mean norm. See
`estimators.gradient` for the loss and the cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from lm_eval_ext.steering.estimators.gradient import Trained
from lm_eval_ext.steering.transforms.affine import Affine

if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_ext.steering.transforms.base import Transform


@dataclass(frozen=True)
class TrainedAffine(Trained):
    """An affine map that is trained by gradient. Plans use it with strength 1.

    Attributes:
        rank: directions that it writes (our default).
    """

    name: ClassVar[str] = "affine"
    transform: ClassVar[type[Transform]] = Affine
    rank: int = 4

    def __post_init__(self) -> None:
        """Refuse parameters out of range."""
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"rank {self.rank} must be at least 1")

    def start(self, width: int) -> dict[str, Tensor]:
        """A map that changes nothing, and random directions to write."""
        rank = min(self.rank, width)
        directions = torch.randn(rank, width, generator=torch.Generator().manual_seed(self.seed))
        directions *= self.budget / directions.norm()  # only their span matters; the budget then leaves them alone
        return {"left": torch.zeros(width, rank), "right": directions, "offset": torch.zeros(rank)}

    def artifact(self, tensors: dict[str, Tensor], norm: float) -> dict[str, Tensor]:
        """`left` [hidden, rank], `right` [rank, hidden] and `offset` [rank]."""
        right = torch.linalg.qr(tensors["right"].T).Q.T
        return {"left": tensors["left"], "right": right, "offset": tensors["offset"] * norm}
