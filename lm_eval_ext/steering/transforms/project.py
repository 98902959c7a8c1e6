"""Projections: removing directions from the residual stream, or all but them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from lm_eval_ext.steering.transforms.base import Artifact, Transform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


class Ablate(Transform):
    """h - s U^T U h, with orthonormal rows U: at strength 1 nothing is left along them (directional ablation, Arditi et al.
    2024).
    """

    name: ClassVar[str] = "ablate"
    shapes: ClassVar[Mapping[str, tuple[str, ...]]] = {"directions": ("rank", "hidden")}

    def apply(self, residual: Tensor, artifact: Artifact, strength: float) -> Tensor:
        """See `Transform.apply`."""
        return residual - strength * _projected(residual, artifact)

    def random(self, artifact: Artifact, draw: Callable[[str, Tensor], Tensor]) -> Artifact:
        """As many random orthonormal directions."""
        return {"directions": torch.linalg.qr(draw("directions", artifact["directions"]).T).Q.T}


class Keep(Ablate):
    """h - s (h - U^T U h): at strength 1 nothing is left but what lies along U, the complement of `Ablate`."""

    name: ClassVar[str] = "keep"

    def apply(self, residual: Tensor, artifact: Artifact, strength: float) -> Tensor:
        """See `Transform.apply`."""
        return residual - strength * (residual - _projected(residual, artifact))


def _projected(residual: Tensor, artifact: Artifact) -> Tensor:
    directions = artifact["directions"]
    return residual @ directions.T @ directions
