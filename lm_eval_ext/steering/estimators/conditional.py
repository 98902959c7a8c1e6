"""Conditional addition: h + s v where cos(h, c) > t, else h.

CAST (Lee et al. 2024). The vector v is that of any estimator: `conditional:direction=lda`. The condition c = mean
h(negative) - mean h(positive) of the fitted pairs points at what is to be steered: a question without its country, a text
that is not English. The threshold t is the one that tells negative from positive states best (balanced accuracy) on
held-out pairs. A text that is already as the vector would have it is left alone. Cost: all states in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn.functional import cosine_similarity

from lm_eval_ext.steering.estimators.base import Fitted, PairStates
from lm_eval_ext.steering.estimators.of_direction import OfDirection
from lm_eval_ext.steering.transforms.conditional import Conditional as Transformation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lm_eval_ext.steering.transforms.base import Transform


@dataclass(frozen=True)
class Conditional(OfDirection):
    """A vector that is added to states which look like those of the pairs' negative texts.

    Attributes:
        held_out: share of the pairs that the threshold is chosen on (our default); the condition is fitted on the rest.
        seed: of the split.
    """

    name: ClassVar[str] = "conditional"
    transform: ClassVar[type[Transform]] = Transformation
    held_out: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse parameters out of range."""
        super().__post_init__()
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out {self.held_out} must be between 0 and 1")

    def artifact(self, vector: Tensor) -> dict[str, Tensor]:
        """`vector` [layers, hidden]; the condition is fitted to the states."""
        return {"vector": vector}

    def fit_languages(self, states: Mapping[str, PairStates]) -> Mapping[str, dict[str, Tensor]]:
        """`vector` and `condition` [layers, hidden], `threshold` [layers]. See `Estimator.fit_languages`."""
        kept = {code: list(of_language) for code, of_language in states.items()}

        def again(code: str) -> PairStates:
            return states[code].again(kept[code])

        vectors = self.vectors({code: again(code) for code in states})
        return {code: self._gated(vectors[code], again(code)) for code in states}

    def _gated(self, vector: Tensor, states: PairStates) -> Fitted:
        positive, negative = states.collect()
        n = states.n_pairs
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))
        held_out = order[: max(1, round(self.held_out * n))]
        fitted = order[len(held_out) :] if len(held_out) < n else order
        condition = (negative[:, fitted] - positive[:, fitted]).mean(1)
        steered, spared = (
            cosine_similarity(side[:, held_out], condition[:, None], dim=-1) for side in (negative, positive)
        )
        best = [best_threshold(*of_layer) for of_layer in zip(steered, spared, strict=True)]
        thresholds = torch.tensor([threshold for threshold, _ in best])
        return Fitted(
            {"vector": vector, "condition": condition, "threshold": thresholds},
            {"balanced_accuracy": [accuracy for _, accuracy in best]},
        )


def best_threshold(above: Tensor, below: Tensor) -> tuple[float, float]:
    """The threshold that most of `above` pass and most of `below` do not, and its balanced accuracy.

    Halfway between two neighbouring values, or below all of them; of several as good ones the middle one.
    """
    values = torch.unique(torch.cat([above, below]).double())
    candidates = torch.cat([values[:1] - 1e-3, (values[1:] + values[:-1]) / 2])
    passed = (above[None] > candidates[:, None]).double().mean(1)
    accuracy = (passed + (below[None] <= candidates[:, None]).double().mean(1)) / 2
    best = (accuracy >= accuracy.max() - 1e-12).nonzero()[:, 0]
    chosen = int(best[len(best) // 2])
    return float(candidates[chosen]), float(accuracy[chosen])
