"""Addition under a condition on the state."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from lm_eval_ext.steering.transforms.add import Add

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from lm_eval_ext.steering.transforms.base import Artifact


class Conditional(Add):
    """h + s v where cos(h, c) > t, else h (conditional activation steering, Lee et al. 2024), token by token."""

    name: ClassVar[str] = "conditional"
    shapes: ClassVar[Mapping[str, tuple[str, ...]]] = {"vector": ("hidden",), "condition": ("hidden",), "threshold": ()}

    def apply(self, residual: Tensor, artifact: Artifact, strength: float) -> Tensor:
        """See `Transform.apply`."""
        cosines = torch.nn.functional.cosine_similarity(residual, artifact["condition"][None], dim=-1)
        passes = (cosines > artifact["threshold"]).to(residual.dtype)
        return residual + strength * passes[:, None] * artifact["vector"]

    def addition(self, artifact: Artifact, strength: float) -> None:
        """None: the change depends on the state."""

    def random(self, artifact: Artifact, draw: Callable[[str, Tensor], Tensor]) -> Artifact:
        """A random vector behind the same condition."""
        return {**artifact, "vector": draw("vector", artifact["vector"])}
