"""Making steering vectors: the mean difference of hidden states over contrastive pairs.

v^l = mean over pairs of h^l(positive) - h^l(negative), as in the paper (English minus other; country named minus not) and
in contrastive activation addition (Rimsky et al. 2024). Means are streamed: only sums are kept, never activations, and a
forward ends at the deepest layer needed.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import torch

from lm_eval_ext.errors import DataError, ModelError, PlanError
from lm_eval_ext.steering.decoder import decoder_layers, hidden_size, layer_count, residual
from lm_eval_ext.steering.plan import Plan
from lm_eval_ext.steering.vectors import SteeringVectors, VectorInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lm_eval_ext.data.pairs import PairSet

#: Token whose hidden state is compared: the text's last, or the mean over all tokens but special ones. The beginning-of-
#: sequence token is left out of the mean because its norm is a hundred times that of others, so that it would measure
#: nothing but the length of the text.
Pooling = Literal["last", "mean"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def extract(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pair_set: PairSet,
    layers: Sequence[int],
    pooling: Pooling,
    *,
    batch_size: int = 16,
    progress: Callable[[int], object] = lambda done: None,
) -> SteeringVectors:
    """The vectors of one kind and language.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer; special tokens are added as it does by default.
        pair_set: the pairs.
        layers: 0-based decoder layers, output of the block.
        pooling: token position.
        batch_size: texts per forward.
        progress: called with the number of texts just finished.

    Returns:
        Vectors of shape [len(layers), hidden] in float32, with the mean residual norm of each layer over all texts.

    Raises:
        DataError: no pairs, or a text longer than the model's context.
        ModelError: the hidden states are not finite (float16 overflows on Gemma).
    """
    if not pair_set.pairs:
        raise DataError(f"no {pair_set.kind!r} pairs of language {pair_set.language!r} in {pair_set.source}")
    texts = [text for pair in pair_set.pairs for text in (pair.positive, pair.negative)]
    where = f"{pair_set.kind}/{pair_set.language} ({pair_set.source})"
    total = torch.zeros(len(layers), hidden_size(model.config), dtype=torch.float64)
    norms = torch.zeros(len(layers), dtype=torch.float64)
    for batch in pooled_states(
        model, tokenizer, texts, layers, pooling, where=where, batch_size=batch_size, progress=progress
    ):
        signs = torch.tensor([1.0 if text % 2 == 0 else -1.0 for text in batch.texts], dtype=torch.float64)
        total += torch.einsum("b,lbh->lh", signs, batch.states.double())
        norms += batch.norms.double().sum(1)
    values = (total / len(pair_set.pairs)).float()
    if not bool(values.isfinite().all()):
        raise ModelError(
            f"the hidden states of {pair_set.kind}/{pair_set.language} are not finite; use dtype=bfloat16 or float32"
        )
    info = VectorInfo(
        kind=pair_set.kind,
        language=pair_set.language,
        layers=tuple(layers),
        position=pooling,
        n_pairs=len(pair_set.pairs),
        source=pair_set.source,
        source_sha256=pair_set.sha256,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        residual_norms=tuple((norms / len(texts)).tolist()),
    )
    return SteeringVectors(info, values)


@dataclass(frozen=True)
class Pooled:
    """The hidden states of some texts, one vector per layer and text.

    Attributes:
        texts: places of the texts in what was given.
        states: [layers, len(texts), hidden] in float32, on the CPU.
        norms: [layers, len(texts)] norm of the residual stream, pooled like the states.
    """

    texts: list[int]
    states: Tensor
    norms: Tensor


def pooled_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    layers: Sequence[int],
    pooling: Pooling,
    *,
    where: str,
    batch_size: int = 16,
    progress: Callable[[int], object] = lambda done: None,
) -> Iterator[Pooled]:
    """Hidden states of texts at several layers: one forward per text, batches of texts of like length, pooled as they come.

    Args:
        model, tokenizer, layers, pooling, batch_size, progress: as for `extract`.
        texts: the texts.
        where: what the texts are, for messages.

    Raises:
        DataError: a text without tokens, or longer than the model's context.
        PlanError: a layer that the model does not have.
    """
    encoded = _encode(tokenizer, texts)
    _check_lengths(model, where, encoded)
    order = sorted(range(len(texts)), key=lambda text: len(encoded[text][0]))
    device = model.get_input_embeddings().weight.device
    with Capture(model, layers) as capture:
        for at in range(0, len(order), batch_size):
            chosen = order[at : at + batch_size]
            ids, weights = _pad([encoded[text] for text in chosen], pooling)
            with torch.inference_mode():  # not around the yield, or it would hold for the caller too
                found = list(capture.run(model, ids.to(device), partial(_pool, weights=weights, pooling=pooling)))
            states, norms = (torch.stack(parts) for parts in zip(*found, strict=True))
            yield Pooled(chosen, states, norms)
            progress(len(chosen))


def parse_layers(text: str, n_layers: int) -> list[int]:
    """Layers given as `all` or joined by commas as in a plan: `5`, `3-8`, `42%`, `40%-60%`.

    Raises:
        PlanError: a mistake in the text, or a layer that the model does not have.
    """
    if text == "all":
        return list(range(n_layers))
    chosen: set[int] = set()
    for part in text.split(","):
        try:
            if not re.fullmatch(r"[0-9.%-]+", part):
                raise ValueError(part)
            (term,) = Plan.parse(f"x@{part}").interventions
        except ValueError:
            raise PlanError(
                f"layers {text!r}: {part!r} is not a layer, a range or a depth (5, 3-8, 42%) or 'all'"
            ) from None
        chosen.update(term.layers(n_layers))
    return sorted(chosen)


class _Stop(Exception):  # noqa: N818 - not an error: it ends a forward at the deepest layer needed
    """Raised by the hook of the deepest layer."""


T = TypeVar("T")


class Capture:
    """Hooks that hand over the residual stream after some layers of one forward.

    Args:
        model: a decoder-only model of transformers.
        layers: 0-based decoder layers, output of the block.

    Raises:
        PlanError: no layers, or one that the model does not have.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[int]) -> None:
        self._taken: dict[int, Any] = {}
        self._take: Callable[[Tensor], Any]
        self._layers = layers
        modules = decoder_layers(model)
        wrong = [layer for layer in layers if not 0 <= layer < layer_count(model.config)]
        if wrong or not layers:
            raise PlanError(f"layers {wrong or 'none'} cannot be extracted; the model has 0-{len(modules) - 1}")
        self._deepest = max(layers)
        self._handles = [modules[layer].register_forward_hook(self._keep(layer)) for layer in layers]

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def run(self, model: PreTrainedModel, ids: Tensor, take: Callable[[Tensor], T]) -> Iterator[T]:
        """What `take` makes of the residual stream [batch, length, hidden] after each layer asked for, in their order.

        `take` is called as soon as a layer is done, so that the streams of all layers are never held together. The forward
        ends at the deepest layer.
        """
        self._taken.clear()
        self._take = take
        with _until_stopped():
            model(input_ids=ids, use_cache=False)
        for layer in self._layers:
            yield self._taken.pop(layer)

    def _keep(self, layer: int) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            self._taken[layer] = self._take(residual(output))
            if layer == self._deepest:
                raise _Stop

        return keep


@contextmanager
def _until_stopped() -> Iterator[None]:
    try:
        yield
    except _Stop:
        return


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
    """Token ids of each text, and the places of those of the text itself (not special)."""
    encoding = tokenizer(list(texts), return_special_tokens_mask=True)
    masks = encoding["special_tokens_mask"]
    own = ([place for place, special in enumerate(mask) if not special] for mask in masks)
    return list(zip(encoding["input_ids"], own, strict=True))


def _check_lengths(model: PreTrainedModel, where: str, encoded: list[tuple[list[int], list[int]]]) -> None:
    longest = max(len(ids) for ids, _ in encoded)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", longest)
    if longest > limit:
        raise DataError(f"a text of {where} has {longest} tokens, the model's context is {limit}")
    if not all(own for _, own in encoded):
        raise DataError(f"a text of {where} has no tokens")


def _pad(batch: list[tuple[list[int], list[int]]], pooling: Pooling) -> tuple[Tensor, Tensor]:
    """Right-padded ids [batch, length], and where the hidden states are taken: for `last` the token's place [batch], for
    `mean` the weight of each token [batch, length] (rows sum to 1).
    """
    width = max(len(ids) for ids, _ in batch)
    padded = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch])
    if pooling == "last":
        return padded, torch.tensor([own[-1] for _, own in batch])
    weights = torch.zeros(len(batch), width)
    for row, (_, own) in enumerate(batch):
        weights[row, own] = 1 / len(own)
    return padded, weights


def _pool(states: Tensor, weights: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor]:
    """The pooled states [batch, hidden] of a residual stream and the pooled norms [batch], in float32 on the CPU."""
    weights = weights.to(states.device)
    if pooling == "last":
        pooled = states[torch.arange(len(weights), device=states.device), weights].float()
        return pooled.cpu(), pooled.norm(dim=-1).cpu()
    full = states.float()
    return torch.einsum("bt,bth->bh", weights, full).cpu(), (full.norm(dim=-1) * weights).sum(1).cpu()
