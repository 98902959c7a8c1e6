"""What a plan does to both axes on development questions, and which of two plans is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Effect:
    """Change of a score on one axis, averaged over languages, with its standard error; both as shares."""

    change: float
    error: float

    @classmethod
    def of(cls, by_language: list[NDArray[np.float64]]) -> Effect:
        """The effect of paired differences.

        Args:
            by_language: for each language [questions] differences from the unsteered model.
        """
        means = [float(values.mean()) for values in by_language]
        variances = [float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0 for values in by_language]
        return cls(float(np.mean(means)), float(np.sqrt(np.sum(variances))) / len(means))


@dataclass(frozen=True)
class Outcome:
    """The effects of a plan on both axes; None on an axis that has no development questions."""

    localization: Effect | None
    transfer: Effect | None


@dataclass(frozen=True)
class Objective:
    """A weighted point on the plane, and how much transfer may be lost.

    Attributes:
        weight: of the change of localization; 1 - weight is that of transfer.
        max_loss: of transfer, as a share.
    """

    weight: float
    max_loss: float

    def value(self, outcome: Outcome) -> float:
        """weight * localization + (1 - weight) * transfer; of one axis alone, its change."""
        if outcome.localization is None or outcome.transfer is None:
            effect = outcome.localization or outcome.transfer
            return effect.change if effect else 0.0
        return self.weight * outcome.localization.change + (1 - self.weight) * outcome.transfer.change

    def is_allowed(self, outcome: Outcome, errors: float = 0.0) -> bool:
        """Whether transfer loses no more than `max_loss`, give or take so many standard errors in the plan's favour."""
        transfer = outcome.transfer
        return transfer is None or transfer.change + errors * transfer.error >= -self.max_loss

    def key(self, outcome: Outcome, errors: float = 0.0) -> tuple[bool, float]:
        """A sort key, larger is better: plans that may be chosen by their value, then the others by their transfer."""
        if self.is_allowed(outcome, errors):
            return True, self.value(outcome)
        return False, outcome.transfer.change if outcome.transfer else 0.0
