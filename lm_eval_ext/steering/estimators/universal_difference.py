"""What is common to the other cultures: the mean over their mean differences, this one's left out.

v_c = mean over k != c of d_k, with d_k^l the mean difference of language k: the "universal" vector of Veselovsky et al.
2025, which cannot hold the culture that it is tested on. Cost: that of the mean difference, streamed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lm_eval_ext.steering.estimators.culture_difference import CultureDifference

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class UniversalDifference(CultureDifference):
    """The mean of the other languages' mean differences. Needs at least two languages."""

    name: ClassVar[str] = "universal_difference"

    def _of(self, mean: Tensor, others: Tensor) -> Tensor:
        return others
