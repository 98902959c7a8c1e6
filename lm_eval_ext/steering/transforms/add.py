"""Addition of a vector: h + gamma v."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lm_eval_ext.steering.transforms.base import Artifact, Transform

if TYPE_CHECKING:
    from torch import Tensor


class Add(Transform):
    """h + gamma v, without normalisation (activation addition, Turner et al. 2023; the paper's steering)."""

    name: ClassVar[str] = "add"

    def apply(self, residual: Tensor, artifact: Artifact, strength: float) -> Tensor:
        """See `Transform.apply`."""
        return residual + artifact["vector"] * strength

    def addition(self, artifact: Artifact, strength: float) -> Tensor | None:
        """gamma v."""
        return artifact["vector"] * strength

    def strength_of_share(self, artifact: Artifact, share: float, residual_norm: float) -> float:
        """`share` of the residual norm over the norm of v; 0 for a vector of zeros."""
        length = float(artifact["vector"].norm())
        return share * residual_norm / length if length else 0.0
