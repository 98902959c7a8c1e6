"""Estimators that use the vector of another estimator with a transform of their own."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_eval_ext.steering import registry
from lm_eval_ext.steering.estimators.base import Estimator, PairStates
from lm_eval_ext.steering.transforms.add import Add

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass(frozen=True)
class OfDirection(Estimator):
    """An estimator that does something else with a vector than adding it.

    Attributes:
        direction: name of the estimator of the vector, with its default parameters.
    """

    direction: str = registry.DEFAULT_ESTIMATOR

    def __post_init__(self) -> None:
        """Refuse an estimator that is unknown or whose artifact is no vector."""
        if (transform := registry.estimator_class(self.direction).transform) is not Add:
            raise ValueError(
                f"direction {self.direction!r} gives no vector (its transform is {transform.name!r}), such as "
                f"{registry.DEFAULT_ESTIMATOR!r} does"
            )

    def fit(self, states: PairStates) -> dict[str, Tensor]:
        """See `Estimator.fit`."""
        return self.fit_languages({"": states})[""]

    def fit_languages(self, states: Mapping[str, PairStates]) -> Mapping[str, dict[str, Tensor]]:
        """See `Estimator.fit_languages`."""
        return {code: self.artifact(vector) for code, vector in self.vectors(states).items()}

    def vectors(self, states: Mapping[str, PairStates]) -> dict[str, Tensor]:
        """The vectors [layers, hidden] of the other estimator, by language."""
        fitted = registry.make_estimator(self.direction).fit_languages(states)
        return {code: tensors["vector"] for code, tensors in fitted.items()}

    @abstractmethod
    def artifact(self, vector: Tensor) -> dict[str, Tensor]:
        """The tensors of the transform from a vector [layers, hidden]."""
