"""Linear discriminant analysis over languages: v = P (m_positive - m_negative), what separates the classes of the move.

The classes are the positive and the negative texts of each language. P is the orthogonal projection onto the leading
discriminants, the generalised eigenvectors of the classes' scatter against the covariance within classes (shrunk). Adding v
removes the source's mean and adds the target's, in the subspace that tells languages apart: ITLC (Lopo et al. 2025), which
uses 100 components at the middle layer. There are never more components than classes less one. Cost: the states of all
languages in memory; per layer O(min(states, hidden)^3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from lm_eval_ext.steering.estimators.algebra import ledoit_wolf, solve_covariance, within
from lm_eval_ext.steering.estimators.base import Estimator, Fitted, PairStates
from lm_eval_ext.steering.transforms.add import Add

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lm_eval_ext.steering.transforms.base import Transform


@dataclass(frozen=True)
class Lda(Estimator):
    """The mean difference, projected onto the discriminants of all classes.

    Attributes:
        components: most discriminants.
        shrinkage: of the covariance within classes, 0 to 1; Ledoit and Wolf's of each layer where left out.
    """

    name: ClassVar[str] = "lda"
    transform: ClassVar[type[Transform]] = Add
    components: int = 100
    shrinkage: float | None = None

    def __post_init__(self) -> None:
        """Refuse parameters out of range."""
        if self.components < 1:
            raise ValueError(f"components {self.components} must be at least 1")
        if self.shrinkage is not None and not 0 <= self.shrinkage <= 1:
            raise ValueError(f"shrinkage {self.shrinkage} must be between 0 and 1")

    def fit(self, states: PairStates) -> dict[str, Tensor]:
        """`vector` [layers, hidden], with two classes. See `Estimator.fit`."""
        return self.fit_languages({"": states})[""]

    def fit_languages(self, states: Mapping[str, PairStates]) -> Mapping[str, dict[str, Tensor]]:
        """`vector` [layers, hidden] of each language. See `Estimator.fit_languages`."""
        sides = {code: of_language.collect() for code, of_language in states.items()}
        shrinkages: list[float] = []
        vectors: dict[str, list[Tensor]] = {code: [] for code in sides}
        for layer in range(next(iter(states.values())).n_layers):
            classes = [side[layer] for both in sides.values() for side in both]
            basis, shrinkage = self._discriminants(classes)
            shrinkages.append(shrinkage)
            for code, (positive, negative) in sides.items():
                difference = (positive[layer].double() - negative[layer].double()).mean(0)
                vectors[code].append((basis @ (basis.T @ difference)).float())
        return {
            code: Fitted({"vector": torch.stack(of_code)}, {"shrinkage": shrinkages})
            for code, of_code in vectors.items()
        }

    def _discriminants(self, classes: list[Tensor]) -> tuple[Tensor, float]:
        """An orthonormal basis [hidden, components] of the span of the leading discriminants, and the shrinkage."""
        centred = within(*classes)
        shrinkage = ledoit_wolf(centred) if self.shrinkage is None else self.shrinkage
        means = torch.stack([of_class.double().mean(0) for of_class in classes])
        weights = torch.tensor([len(of_class) for of_class in classes], dtype=torch.float64)
        between = (means - (weights[:, None] * means).sum(0) / weights.sum()) * weights.sqrt()[:, None]
        solved = solve_covariance(centred, between.T, shrinkage)
        values, inside = torch.linalg.eigh(between @ solved)
        kept = [k for k in values.argsort(descending=True).tolist() if values[k] > 1e-10 * values.max()]
        return torch.linalg.qr(solved @ inside[:, kept[: self.components]]).Q, shrinkage
