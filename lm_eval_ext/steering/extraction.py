"""Making steering vectors: the mean difference of hidden states over contrastive pairs.

v^l = mean over pairs of h^l(positive) - h^l(negative), as in the paper (English minus other; country named minus not) and
in contrastive activation addition (Rimsky et al. 2024). Means are streamed: only sums are kept, never activations, and a
forward ends at the deepest layer needed.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

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
    texts = [(text, sign) for pair in pair_set.pairs for text, sign in ((pair.positive, 1.0), (pair.negative, -1.0))]
    encoded = [(*_encode(tokenizer, text), sign) for text, sign in texts]
    _check_lengths(model, pair_set, encoded)
    encoded.sort(key=lambda item: len(item[0]))
    device = model.get_input_embeddings().weight.device
    total = torch.zeros(len(layers), hidden_size(model.config), dtype=torch.float64)
    norms = torch.zeros(len(layers), dtype=torch.float64)
    with torch.inference_mode(), _Capture(model, layers) as capture:
        for at in range(0, len(encoded), batch_size):
            batch = encoded[at : at + batch_size]
            ids, weights = _pad(batch, pooling)
            signs = torch.tensor([sign for *_, sign in batch])
            for row, hidden in enumerate(capture.run(model, ids.to(device))):
                w = weights.to(hidden.device)
                states = hidden.float()
                pooled = torch.einsum("bt,bth->bh", w, states)
                total[row] += (signs.to(hidden.device)[:, None] * pooled).sum(0).double().cpu()
                norms[row] += (states.norm(dim=-1) * w).sum().double().cpu()
            progress(len(batch))
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
        residual_norms=tuple((norms / len(encoded)).tolist()),
    )
    return SteeringVectors(info, values)


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


class _Capture:
    """Hooks that hand over the residual stream after some layers of one forward."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[int]) -> None:
        self._states: dict[int, Tensor] = {}
        self._layers = layers
        modules = decoder_layers(model)
        wrong = [layer for layer in layers if not 0 <= layer < layer_count(model.config)]
        if wrong or not layers:
            raise PlanError(f"layers {wrong or 'none'} cannot be extracted; the model has 0-{len(modules) - 1}")
        self._deepest = max(layers)
        self._handles = [modules[layer].register_forward_hook(self._keep(layer)) for layer in layers]

    def __enter__(self) -> _Capture:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def run(self, model: PreTrainedModel, ids: Tensor) -> Iterator[Tensor]:
        """The residual stream [batch, length, hidden] after each layer asked for, in their order."""
        self._states.clear()
        with _until_stopped():
            model(input_ids=ids, use_cache=False)
        for layer in self._layers:
            yield self._states.pop(layer)

    def _keep(self, layer: int) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            self._states[layer] = residual(output)
            if layer == self._deepest:
                raise _Stop

        return keep


@contextmanager
def _until_stopped() -> Iterator[None]:
    try:
        yield
    except _Stop:
        return


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[bool]]:
    """Token ids of a text and which of them are of the text itself (not special)."""
    encoding = tokenizer(text, return_special_tokens_mask=True)
    return encoding["input_ids"], [not special for special in encoding["special_tokens_mask"]]


def _check_lengths(
    model: PreTrainedModel, pair_set: PairSet, encoded: list[tuple[list[int], list[bool], float]]
) -> None:
    longest = max(len(ids) for ids, *_ in encoded)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", longest)
    if longest > limit:
        raise DataError(
            f"a text of {pair_set.kind}/{pair_set.language} ({pair_set.source}) has {longest} tokens, "
            f"the model's context is {limit}"
        )
    if any(not any(own) for _, own, _ in encoded):
        raise DataError(f"a text of {pair_set.kind}/{pair_set.language} ({pair_set.source}) has no tokens")


def _pad(batch: list[tuple[list[int], list[bool], float]], pooling: Pooling) -> tuple[Tensor, Tensor]:
    """Right-padded ids [batch, length] and the weight of each token's hidden state (rows sum to 1)."""
    width = max(len(ids) for ids, *_ in batch)
    padded = torch.zeros(len(batch), width, dtype=torch.long)
    weights = torch.zeros(len(batch), width)
    for row, (ids, own, _) in enumerate(batch):
        padded[row, : len(ids)] = torch.tensor(ids)
        places = [at for at, is_own in enumerate(own) if is_own]
        weights[row, places if pooling == "mean" else places[-1:]] = 1 / (len(places) if pooling == "mean" else 1)
    return padded, weights
