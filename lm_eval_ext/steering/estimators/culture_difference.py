"""What is particular to a culture: its mean difference minus the mean over the other languages' mean differences.

v_c = d_c - mean over k != c of d_k, with d_c^l = mean over the pairs of c of h^l(positive) - h^l(negative). Takes out what
naming any country does (Veselovsky et al. 2025 compare vectors per culture with one of all other cultures). Cost: that of
the mean difference, streamed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NoReturn

import torch

from lm_eval_ext.errors import EstimatorError
from lm_eval_ext.steering.estimators.base import Estimator, PairStates
from lm_eval_ext.steering.estimators.mean_difference import MeanDifference
from lm_eval_ext.steering.transforms.add import Add

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lm_eval_ext.steering.transforms.base import Transform


@dataclass(frozen=True)
class CultureDifference(Estimator):
    """The mean difference of a language less the mean of the others'. Needs at least two languages."""

    name: ClassVar[str] = "culture_difference"
    transform: ClassVar[type[Transform]] = Add

    def fit(self, states: PairStates) -> NoReturn:
        """One language has no others; see `fit_languages`."""
        raise EstimatorError(f"the estimator {self.name!r} compares languages: give pairs of two or more")

    def fit_languages(self, states: Mapping[str, PairStates]) -> Mapping[str, dict[str, Tensor]]:
        """`vector` [layers, hidden] of each language. See `Estimator.fit_languages`."""
        if len(states) < 2:
            self.fit(next(iter(states.values())))
        single = MeanDifference()
        means = {code: single.fit(of_language)["vector"] for code, of_language in states.items()}
        return {
            code: {"vector": self._of(mean, torch.stack([means[other] for other in means if other != code]).mean(0))}
            for code, mean in means.items()
        }

    def _of(self, mean: Tensor, others: Tensor) -> Tensor:
        return mean - others
