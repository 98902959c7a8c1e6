"""The complement of the projection: h - s (h - (h . u) u), so that only a direction is left at strength 1.

A check of how much of an effect lies along the direction that `ablation` removes: the two changes sum to -s h. Cost: that of
the other estimator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lm_eval_ext.steering.estimators.ablation import Ablation
from lm_eval_ext.steering.transforms.project import Keep

if TYPE_CHECKING:
    from lm_eval_ext.steering.transforms.base import Transform


@dataclass(frozen=True)
class Complement(Ablation):
    """Removes all but a direction from the residual stream."""

    name: ClassVar[str] = "complement"
    transform: ClassVar[type[Transform]] = Keep
