"""An affine map of low rank: h + s (h L + b) R."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from lm_eval_ext.steering.transforms.base import Artifact, Transform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


class Affine(Transform):
    """h + s (h L + b) R: reads the state in a few directions and writes in a few.

    Covers a linear map W of low rank distance from the identity, h + s (h W - h) with W - I = L R and b = 0 (INCLINE), and
    LoReFT, h + s R^T (W h + b - R h). Cost: 2 rank multiplications per entry of the state.
    """

    name: ClassVar[str] = "affine"
    shapes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "left": ("hidden", "rank"),
        "right": ("rank", "hidden"),
        "offset": ("rank",),
    }

    def apply(self, residual: Tensor, artifact: Artifact, strength: float) -> Tensor:
        """See `Transform.apply`."""
        return residual + strength * ((residual @ artifact["left"] + artifact["offset"]) @ artifact["right"])

    def random(self, artifact: Artifact, draw: Callable[[str, Tensor], Tensor]) -> Artifact:
        """A map with the singular values of L R between random directions, and a random shift as long as b R."""
        left, right, offset = (artifact[name] for name in ("left", "right", "offset"))
        tall, wide = torch.linalg.qr(left), torch.linalg.qr(right.T)
        spectrum = torch.linalg.svdvals(tall.R @ wide.R.T)
        reads = torch.linalg.qr(draw("left", left)).Q
        writes = torch.linalg.qr(draw("right", right).T).Q.T
        length = (offset @ right).norm()
        drawn = torch.nn.functional.normalize(draw("offset", offset), dim=0) * length
        return {"left": reads * spectrum, "right": writes, "offset": drawn}
