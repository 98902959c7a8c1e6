"""Addition that keeps the norm: a rotation in the plane of the state and the vector."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lm_eval_ext.steering.transforms.add import Add

if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_ext.steering.transforms.base import Artifact


class Rotate(Add):
    """|h| (h + s v) / |h + s v|: the state turns towards v, in the plane of the two, and stays as long as it was."""

    name: ClassVar[str] = "rotate"

    def apply(self, residual: Tensor, artifact: Artifact, strength: float) -> Tensor:
        """See `Transform.apply`; a state without length, or one that v cancels, stays at zero."""
        moved = residual + strength * artifact["vector"]
        length = moved.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        turned: Tensor = moved * (residual.norm(dim=-1, keepdim=True) / length)
        return turned if strength else residual

    def addition(self, artifact: Artifact, strength: float) -> None:
        """None: the change depends on the state."""
