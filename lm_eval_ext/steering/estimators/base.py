"""The interface of an estimator: from the hidden states of contrastive pairs to an artifact for every layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lm_eval_ext.data.pairs import Pair
    from lm_eval_ext.steering.transforms.base import Transform


@dataclass(frozen=True)
class StateBatch:
    """Hidden states of some texts of a set of pairs.

    Attributes:
        states: [layers, texts, hidden] in float32, on the CPU.
        pairs: [texts] number of the pair that each text is of.
        is_positive: [texts] whether it is the pair's positive text.

    Example:
        >>> states = torch.tensor([[[1.0, 2.0], [0.5, 0.0]]])  # one layer, two texts, hidden size 2
        >>> batch = lx.StateBatch(states, pairs=torch.tensor([0, 0]), is_positive=torch.tensor([True, False]))
        >>> batch.states[:, batch.is_positive].shape
        torch.Size([1, 1, 2])
    """

    states: Tensor
    pairs: Tensor
    is_positive: Tensor


@dataclass(frozen=True)
class Origin:
    """Where the states come from, for an estimator that runs the model itself.

    Attributes:
        model, tokenizer: what computed the states.
        pairs: their texts, in the order of the pairs' numbers.
        layers: the decoder layer of each row of the states.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pairs: tuple[Pair, ...]
    layers: tuple[int, ...]


class PairStates:
    """The hidden states of the pairs of one kind and language, batch by batch, in no particular order; read once.

    Args:
        batches: the states as they are computed.
        n_pairs, n_layers, hidden_size: sizes.
        origin: model and texts; None where there are only states.

    Example:
        >>> states = torch.tensor([[[1.0, 2.0], [0.5, 0.0]]])
        >>> batch = lx.StateBatch(states, pairs=torch.tensor([0, 0]), is_positive=torch.tensor([True, False]))
        >>> positive, negative = lx.PairStates([batch], n_pairs=1, n_layers=1, hidden_size=2).collect()
        >>> positive - negative
        tensor([[[0.5000, 2.0000]]])
    """

    def __init__(
        self,
        batches: Iterable[StateBatch],
        *,
        n_pairs: int,
        n_layers: int,
        hidden_size: int,
        origin: Origin | None = None,
    ) -> None:
        self.n_pairs = n_pairs
        self.n_layers = n_layers
        self.hidden_size = hidden_size
        self.origin = origin
        self._batches = iter(batches)

    def __iter__(self) -> Iterator[StateBatch]:
        return self._batches

    def collect(self) -> tuple[Tensor, Tensor]:
        """All states of the positive and of the negative texts, each [layers, pairs, hidden] in float32.

        Memory grows with the number of pairs; where the maths allows, iterate over the batches instead.
        """
        sides = torch.zeros(2, self.n_layers, self.n_pairs, self.hidden_size)
        for batch in self:
            for side, mask in enumerate((batch.is_positive, ~batch.is_positive)):
                sides[side][:, batch.pairs[mask]] = batch.states[:, mask]
        return sides[0], sides[1]

    def again(self, batches: Iterable[StateBatch]) -> PairStates:
        """The same pairs with batches that were kept, for a second reading."""
        sizes = {"n_pairs": self.n_pairs, "n_layers": self.n_layers, "hidden_size": self.hidden_size}
        return PairStates(batches, **sizes, origin=self.origin)


class Fitted(dict[str, "Tensor"]):
    """The tensors of an artifact, with the values that the data chose.

    Attributes:
        chosen: JSON values by name, such as the ridge of each layer; recorded with the estimator's parameters.
    """

    def __init__(self, tensors: Mapping[str, Tensor], chosen: Mapping[str, Any]) -> None:
        super().__init__(tensors)
        self.chosen = dict(chosen)


class Estimator(ABC):
    """Learns an artifact from contrastive pairs.

    A subclass sets `name` and `transform` and implements `fit`. Its parameters are the fields of a dataclass: they are
    passed as `--estimator NAME:field=value` and recorded in the vector file.

    Attributes:
        name: as it is asked for and as vector files record it.
        transform: the transform that uses what `fit` returns.

    Example:
        >>> from dataclasses import dataclass
        >>> from lm_eval_ext.steering.transforms.add import Add
        >>> @dataclass(frozen=True)
        ... class MedianDifference(lx.Estimator):
        ...     name = "median_difference"
        ...     transform = Add
        ...
        ...     def fit(self, states):
        ...         positive, negative = states.collect()
        ...         return {"vector": (positive - negative).median(dim=1).values}
        >>> vectors = lx.extract(model, tokenizer, pairs, estimator=MedianDifference())
        >>> vectors.vectors["loc", "ko"].info.estimator
        'median_difference'
    """

    name: ClassVar[str]
    transform: ClassVar[type[Transform]]

    @abstractmethod
    def fit(self, states: PairStates) -> dict[str, Tensor]:
        """The artifact of every layer.

        Args:
            states: to be read to its end, once.

        Returns:
            tensors by name, [layers, ...] with the shapes that the transform names; a `Fitted` where values were chosen.
        """

    def fit_languages(self, states: Mapping[str, PairStates]) -> Mapping[str, dict[str, Tensor]]:
        """The artifacts of all languages of a kind, one language at a time; override it to compare languages.

        Args:
            states: by language, each to be read to its end, once.

        Returns:
            what `fit` returns, by language.
        """
        return {language: self.fit(of_language) for language, of_language in states.items()}

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of this instance, as JSON values."""
        return asdict(self) if is_dataclass(self) else {}
