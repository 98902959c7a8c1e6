"""The interface of a transform: how the residual stream of a token changes, given an artifact and a strength."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from lm_eval_ext.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor

#: What an estimator fitted for one layer: float32 tensors by name.
Artifact = Mapping[str, "Tensor"]


class Transform(ABC):
    """Changes the residual stream after a decoder layer.

    A subclass sets `name` and `shapes` and implements `apply`; all else has a default. Instances have no state: a change
    depends on the artifact and the strength only.

    Attributes:
        name: as vector files record it.
        shapes: the tensors of an artifact with the names of their axes, the one over layers left out. `hidden` is the width
            of the residual stream; any other name stands for a size of the artifact's own, the same in all its tensors.

    Example:
        >>> class Ablate(lx.Transform):
        ...     '''Removes a direction: h - s (h . u) u.'''
        ...
        ...     name = "ablate"
        ...     shapes = {"direction": ("hidden",)}
        ...
        ...     def apply(self, residual, artifact, strength):
        ...         unit = artifact["direction"]
        ...         return residual - strength * (residual @ unit)[:, None] * unit
        >>> Ablate().apply(torch.ones(1, 2), {"direction": torch.tensor([1.0, 0.0])}, 1.0)
        tensor([[0., 1.]])
    """

    name: ClassVar[str]
    shapes: ClassVar[Mapping[str, tuple[str, ...]]] = {"vector": ("hidden",)}

    @abstractmethod
    def apply(self, residual: Tensor, artifact: Artifact, strength: float) -> Tensor:
        """The changed residual stream.

        Args:
            residual: [tokens, hidden] in float32. Not to be edited in place.
            artifact: of one layer and language, on the same device.
            strength: gamma of the plan; 0 must change nothing.

        Returns:
            [tokens, hidden] in float32.
        """

    def addition(self, artifact: Artifact, strength: float) -> Tensor | None:
        """[hidden], where the change is one vector whatever the state; None where it depends on the state.

        Additions of several terms are summed once and cost one addition per layer, so override it where it applies.
        """
        return None

    def strength_of_share(self, artifact: Artifact, share: float, residual_norm: float) -> float:
        """The strength whose change has `share` of the norm of the residual stream: what `5%` in a plan means.

        Raises:
            PlanError: the transform has no such strength.
        """
        raise PlanError(
            f"a strength in per cent of the residual norm means nothing to the transform {self.name!r}; give a number"
        )

    def random(self, artifact: Artifact, draw: Callable[[str, Tensor], Tensor]) -> Artifact:
        """A random artifact, as a control.

        Args:
            artifact: the one that it replaces.
            draw: given the name of a tensor and the tensor, a random one of the same shape and norm, the same every time.
        """
        return {name: draw(name, tensor) for name, tensor in artifact.items()}
