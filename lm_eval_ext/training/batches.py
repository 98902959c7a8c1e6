"""Batches as tensors: responses padded or packed, and pairs of parallel sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lm_eval_ext.errors import DataError
from lm_eval_ext.steering.extraction import _pad
from lm_eval_ext.steering.pooling import PooledText, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from lm_eval_ext.data.pairs import Pair
    from lm_eval_ext.training.encoding import Example

IGNORED = -100


def padded(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Rows padded on the right: `input_ids` and `labels` [rows, length], labels of the responses alone."""
    width = max(map(len, examples))
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    for row, example in enumerate(examples):
        ids[row, : len(example)] = torch.tensor(example.prompt + example.response)
        labels[row, len(example.prompt) : len(example)] = torch.tensor(example.response)
    return {"input_ids": ids, "labels": labels}


def packed(examples: Sequence[Example]) -> dict[str, Tensor]:
    """All rows in one, [1, total length], with `position_ids` that begin anew in each: transformers keeps them apart."""
    parts = [padded([example]) for example in examples]
    joined = {key: torch.cat([part[key] for part in parts], dim=1) for key in ("input_ids", "labels")}
    return {**joined, "position_ids": torch.cat([torch.arange(len(example)) for example in examples])[None]}


def to_batch(examples: Sequence[Example], *, packing: bool) -> dict[str, Tensor]:
    """Rows packed or padded."""
    return packed(examples) if packing else padded(examples)


class PairBatcher:
    """Batches of parallel sentences, in groups of `size` pairs.

    Args:
        tokenizer: the model's; special tokens are added as it does by default.
        pairs: English sentences (positive) and their translations (negative), in the order they are grouped.
        size: pairs per group; a rest that fills no group is left out.
        special_tokens: whether special tokens count in the mean, too.

    Raises:
        DataError: a sentence without tokens.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], size: int, *, special_tokens: bool = False
    ) -> None:
        self._size = size
        self.n_groups = len(pairs) // size
        self._sides = [encode(tokenizer, [pair[side] for pair in _texts(pairs)]) for side in (0, 1)]
        if special_tokens:
            self._sides = [[PooledText(ids, list(range(len(ids)))) for ids, _ in side] for side in self._sides]
        if not all(positions for side in self._sides for _, positions in side):
            raise DataError("the tokenizer makes no token of one of the parallel sentences")

    def batch(self, groups: Sequence[int]) -> dict[str, Tensor]:
        """`pairs` [2 * pairs, length], all English sentences before all others; `pair_weights` of the mean over tokens."""
        numbers = [group * self._size + k for group in groups for k in range(self._size)]
        ids, weights = _pad([side[number] for side in self._sides for number in numbers], "mean")
        return {"pairs": ids, "pair_weights": weights}


def _texts(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    return [(pair.positive, pair.negative) for pair in pairs]
