"""The strictest control: the estimator fitted again on pairs whose labels were shuffled.

In half of the pairs, drawn anew for each number and language, the difference of the two states changes its sign: the
positive state is mirrored at the negative one. For estimators of differences that is what exchanging the two texts does;
but a map that was fitted to exchanged texts would learn to tell the two sides apart by itself, while here nothing in a
negative state says where it should go. For estimators that run the model, the positive texts and the answers are dealt
out to the pairs anew. What such a fit does to a model, the contrast does not explain.

The entries stand in the vector file beside the real ones, under a kind that no plan can name: the plan `loc~shuffled2@58%:2`
uses `loc~shuffled2`. A vector of shuffled labels is scaled to the length of the real one, layer by layer, so that equal
strengths mean equal lengths.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lm_eval_ext.steering.estimators.base import PairStates, StateBatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

#: Between a kind and the name of its control.
SEPARATOR = "~"


def shuffled_kind(kind: str, number: int) -> str:
    """The kind of the entries of a control."""
    return f"{kind}{SEPARATOR}shuffled{number}"


def shuffled_states(states: PairStates, batches: Sequence[StateBatch], language: str, number: int) -> PairStates:
    """The states of some pairs with shuffled labels, the same ones for the same language and number.

    Args:
        states: the pairs.
        batches: their states.
        language: of the pairs.
        number: of the control.
    """
    digest = hashlib.sha256(f"{number}/{language}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    order, dealt = (torch.randperm(states.n_pairs, generator=generator) for _ in range(2))
    mirrored = order[: states.n_pairs // 2]
    positive, negative = states.again(batches).collect()
    positive[:, mirrored] = 2 * negative[:, mirrored] - positive[:, mirrored]
    pairs = torch.arange(states.n_pairs)
    sides = [(positive, torch.ones_like(pairs).bool()), (negative, torch.zeros_like(pairs).bool())]
    shuffled = states.again(StateBatch(side, pairs, is_positive) for side, is_positive in sides)
    if states.origin is not None:
        texts = states.origin.pairs
        others = [texts[other] for other in dealt.tolist()]
        shuffled.origin = replace(
            states.origin,
            pairs=tuple(
                replace(pair, positive=other.positive, answer=other.answer)
                for pair, other in zip(texts, others, strict=True)
            ),
        )
    return shuffled


def of_same_length(tensors: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with `vector` [layers, hidden], if there is one, as long as the real one; a vector of zeros stays."""
    if "vector" not in tensors:
        return dict(tensors)
    vector = tensors["vector"]
    return {
        **tensors,
        "vector": torch.nn.functional.normalize(vector, dim=1) * real["vector"].norm(dim=1, keepdim=True),
    }
