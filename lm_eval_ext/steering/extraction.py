"""Extracting steering vectors: the hidden states of contrastive pairs, passed to an estimator.

States are streamed: each batch of texts is pooled layer by layer and handed to the estimator, activations are never kept,
and a forward ends at the deepest layer needed.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from lm_eval_ext.data.pairs import Pair, PairSet
from lm_eval_ext.errors import DataError, EstimatorError, ModelError, PlanError, VectorFileError
from lm_eval_ext.languages import normalise
from lm_eval_ext.steering import registry
from lm_eval_ext.steering.decoder import ResidualStream, decoder_layers, hidden_size, layer_count, text_only
from lm_eval_ext.steering.estimators.base import Estimator, Origin, PairStates, StateBatch
from lm_eval_ext.steering.plan import Plan
from lm_eval_ext.steering.pooling import PooledText, Pooling, encode, encode_pairs, parse_pooling, pool
from lm_eval_ext.steering.shuffling import of_same_length, shuffled_kind, shuffled_states
from lm_eval_ext.steering.vectors import ModelIdentity, SteeringVectors, VectorInfo, VectorSet, check_artifact
from lm_eval_ext.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Default pooling of each kind (our defaults; the paper does not say). A sentence's language is in all
#: of its tokens; whether a question names a country is read off the token that the answer follows.
DEFAULT_POOLING: dict[str, Pooling] = {"en": "mean", "loc": "last"}

#: Default kind of bare pairs.
OWN_KIND = "own"


def extract(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PairSet] | Sequence[Pair] | PairSet,
    estimator: str | Estimator | Mapping[str, str | Estimator] = registry.DEFAULT_ESTIMATOR,
    layers: str | Sequence[int] = "all",
    *,
    pooling: Pooling | None = None,
    kind: str = OWN_KIND,
    name: str | None = None,
    batch_size: int = 16,
    shuffled: int = 0,
    progress: Callable[[int], object] = lambda done: None,
    known: KnownStates | None = None,
    remember: bool = False,
) -> VectorSet:
    """Steering vectors of every kind and language of some contrastive pairs.

    Args:
        model: a decoder-only model of transformers.
        tokenizer: its tokenizer; special tokens are added as it does by default.
        pairs: what `load_pairs` returns, or pairs of your own.
        estimator: name of an estimator, `NAME:field=value,...`, an estimator, or one of these by kind.
        layers: 0-based decoder layers, output of the block; `all`, or text as in a plan (`5,8-10,42%`).
        pooling: of which tokens (`steering.pooling`): `last`, `mean`, `last3`, `first2`, `after`, `generated`. Where left
            out, mean for kind `en` and last for every other kind and for pairs of tasks (our defaults).
        kind: name of the kind of bare pairs.
        name: of the model in the vector file; its `name_or_path` where left out.
        batch_size: texts per forward.
        shuffled: how many times the estimator is fitted again on shuffled pairs, as controls (`steering.shuffling`); the
            states of a kind are then kept in memory.
        progress: called with the number of texts just finished.
        known: states that were computed before, and are not computed again.
        remember: add the states that are computed to `known`, for other estimators on the same pairs and layers.

    Returns:
        entries with tensors [len(layers), ...] in float32 and the mean residual norm of each layer over all texts.

    Raises:
        DataError: no pairs, or a text longer than the model's context.
        EstimatorError: an unknown estimator, or one that violates its interface.
        ModelError: the hidden states are not finite (float16 overflows on Gemma).
        PlanError: layers that the model does not have.

    Example:
        >>> pairs = lx.load_pairs("loc", "mini", languages=["ko", "el"], limit=8)
        >>> vectors = lx.extract(model, tokenizer, pairs, estimator="mean_difference", layers="40%-60%")
        >>> vectors.languages("loc")
        ['ko', 'el']
        >>> own = [lx.Pair("Good evening, madam.", "Hi there!", language="en")]
        >>> lx.extract(model, tokenizer, own, kind="formal").kinds
        ['formal']
    """
    pooling = None if pooling is None else parse_pooling(pooling)
    pair_sets = _pair_sets(pairs, kind)
    layer_numbers = parse_layers(layers, layer_count(model.config)) if isinstance(layers, str) else list(layers)
    entries: dict[tuple[str, str], SteeringVectors] = {}
    for key in dict.fromkeys(entry.kind for entry in pair_sets):
        readings: dict[str, _Reading] = {}
        for entry in (entry for entry in pair_sets if entry.kind == key):
            readings[entry.language] = _Reading(
                *(model, tokenizer, entry, layer_numbers, pooling or default_pooling(entry)),
                *(batch_size, progress, shuffled > 0, readings, {} if known is None else known),
                remember=remember,
            )
        entries |= _fit(_estimator(estimator, key), readings, shuffled)
    name = name or str(getattr(model, "name_or_path", "") or type(model).__name__)
    return VectorSet(ModelIdentity.of(name, model.config), entries, created_by=f"lm_eval_ext {__version__}")


def default_pooling(pair_set: PairSet) -> Pooling:
    """The pooling of pairs for which none is given."""
    is_of_tasks = any(pair.asked for pair in pair_set.pairs)
    return "last" if is_of_tasks else DEFAULT_POOLING.get(pair_set.kind, "last")


def _pair_sets(pairs: Sequence[PairSet] | Sequence[Pair] | PairSet, kind: str) -> list[PairSet]:
    if isinstance(pairs, PairSet):
        return [pairs]
    items = list(pairs)
    if not items:
        raise DataError("no contrastive pairs: give what load_pairs returns, or a list of lm_eval_ext.Pair")
    by_language: dict[str, list[Pair]] = {}
    pair_sets: list[PairSet] = []
    for item in items:
        if isinstance(item, PairSet):
            pair_sets.append(item)
        elif isinstance(item, Pair):
            by_language.setdefault(item.language if item.language == "any" else normalise(item.language), []).append(
                item
            )
        else:
            raise DataError(
                f"expected lm_eval_ext.Pair or what load_pairs returns, got {type(item).__name__}: {item!r:.80}"
            )
    return [*pair_sets, *(PairSet(kind, code, "own pairs", tuple(of_code)) for code, of_code in by_language.items())]


def _estimator(estimator: str | Estimator | Mapping[str, str | Estimator], kind: str) -> Estimator:
    if isinstance(estimator, Estimator):
        return estimator
    if isinstance(estimator, str):
        return registry.make_estimator(*registry.parse_estimator(estimator))
    return _estimator(estimator.get(kind, registry.DEFAULT_ESTIMATOR), kind)


class _Reading:
    """The states of the pairs of one kind and language as they are read, and what is recorded of them."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pair_set: PairSet,
        layers: Sequence[int],
        pooling: Pooling,
        batch_size: int,
        progress: Callable[[int], object],
        keep: bool,
        others: Mapping[str, _Reading],
        known: KnownStates,
        *,
        remember: bool,
    ) -> None:
        if not pair_set.pairs:
            raise DataError(f"no {pair_set.kind!r} pairs of language {pair_set.language!r} in {pair_set.source}")
        self.pair_set = pair_set
        self.where = f"{pair_set.kind}/{pair_set.language} ({pair_set.source})"
        encoded = encode_pairs(tokenizer, pair_set.pairs, pooling, self.where)
        self._texts = [text for pair in encoded for side in pair for text in side]
        #: Of each text its side, `2 * pair` for the positive one, and how many texts the side has.
        self._sides = [
            (2 * number + k, len(side))
            for number, pair in enumerate(encoded)
            for k, side in enumerate(pair)
            for _ in side
        ]
        self._width = hidden_size(model.config)
        self._pooling = pooling
        self._dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        self._norms = torch.zeros(len(layers), dtype=torch.float64)
        self._negatives = torch.zeros(len(layers), self._width, dtype=torch.float64)
        self._n_read = 0
        self._kept: list[StateBatch] | None = [] if keep else None
        self._others = others
        self._is_open = False
        self._origin = Origin(model, tokenizer, pair_set.pairs, tuple(layers))
        self._pooled = encoded_states(
            *(model, self._texts, layers, pooling),
            where=self.where,
            batch_size=batch_size,
            progress=progress,
            known=known,
            remember=remember,
        )
        self.states = PairStates(
            self._batches(),
            n_pairs=len(pair_set.pairs),
            n_layers=len(layers),
            hidden_size=self._width,
            origin=self._origin,
        )

    def check_read(self) -> None:
        """Make sure that all texts were read.

        Raises:
            EstimatorError: they were not.
        """
        if self._n_read != len(self._texts):
            raise EstimatorError(
                f"the estimator read {self._n_read} of {len(self._texts)} texts of {self.where}; `fit` must read all "
                "batches of a language before those of the next"
            )

    def _batches(self) -> Iterator[StateBatch]:
        self._is_open = True
        for other in self._others.values():
            if other is not self and other._is_open:
                other.check_read()
        partial_sides: dict[int, tuple[int, Tensor]] = {}
        for pooled in self._pooled:
            self._norms.add_(pooled.norms.double().sum(1))
            self._n_read += len(pooled.texts)
            side, states = self._whole_sides(pooled, partial_sides)
            if not len(side):
                continue
            is_positive = side % 2 == 0
            self._negatives.add_(states[:, ~is_positive].double().sum(1))
            batch = StateBatch(states, side // 2, is_positive)
            if self._kept is not None:
                self._kept.append(batch)
            yield batch

    def _whole_sides(self, pooled: Pooled, partial_sides: dict[int, tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
        """The sides of pairs that a batch completes, and their states: of several texts their mean.

        Args:
            pooled: the batch.
            partial_sides: for each side that lacks texts how many were read, and their sum; is changed.
        """
        sides: list[int] = []
        states: list[Tensor] = []
        for column, text in enumerate(pooled.texts):
            side, n_texts = self._sides[text]
            state = pooled.states[:, column]
            if n_texts > 1:
                n_read, total = partial_sides.pop(side, (0, torch.zeros_like(state)))
                if n_read + 1 < n_texts:
                    partial_sides[side] = n_read + 1, total + state
                    continue
                state = (total + state) / n_texts
            sides.append(side)
            states.append(state)
        return torch.tensor(sides), torch.stack(states, dim=1) if states else pooled.states[:, :0]

    def shuffled(self, number: int) -> PairStates:
        """The states, once more, with shuffled labels."""
        return shuffled_states(self.states, self._kept or [], self.pair_set.language, number)

    def entry(self, kind: str, estimator: Estimator, fitted: Mapping[str, Tensor]) -> SteeringVectors:
        """The entry of the vector file.

        Raises:
            EstimatorError, ModelError: see `extract`.
        """
        tensors = {name: tensor.detach().float() for name, tensor in fitted.items()}
        self.check_read()
        # Checked here too, not only when the file is read.
        if not all(bool(tensor.isfinite().all()) for tensor in (*tensors.values(), self._norms)):
            raise ModelError(
                f"the hidden states of {self.pair_set.kind}/{self.pair_set.language} are not finite; use dtype=bfloat16 or "
                "float32"
            )
        transform, layers = estimator.transform(), self._origin.layers
        try:
            check_artifact(f"its artifact of {self.where}", transform, tensors, len(layers), self._width)
        except VectorFileError as error:
            raise EstimatorError(f"the estimator {estimator.name!r} violates its interface: {error}") from None
        info = VectorInfo(
            kind=kind,
            language=self.pair_set.language,
            layers=layers,
            pooling=self._pooling,
            n_pairs=len(self.pair_set.pairs),
            source=self.pair_set.source,
            source_sha256=self.pair_set.sha256,
            dtype=self._dtype,
            residual_norms=tuple((self._norms / len(self._texts)).tolist()),
            estimator=estimator.name,
            transform=estimator.transform.name,
            parameters={**estimator.parameters, **getattr(fitted, "chosen", {})},
            made_from=self.pair_set.record(),
        )
        is_addition = transform.addition({key: tensor[0] for key, tensor in tensors.items()}, 1.0) is not None
        means = None if is_addition else (self._negatives / len(self.pair_set.pairs)).float()
        return SteeringVectors(info, tensors, means)


def _fit(
    estimator: Estimator, readings: Mapping[str, _Reading], shuffled: int
) -> dict[tuple[str, str], SteeringVectors]:
    """The entries of all languages of one kind, and those of their shuffled controls."""
    fitted = estimator.fit_languages({code: reading.states for code, reading in readings.items()})
    if missing := [code for code in readings if code not in fitted]:
        raise EstimatorError(f"the estimator {estimator.name!r} returned nothing for {', '.join(missing)}")
    kind = next(iter(readings.values())).pair_set.kind
    entries = {(kind, code): reading.entry(kind, estimator, fitted[code]) for code, reading in readings.items()}
    for number in range(shuffled):
        again = estimator.fit_languages({code: reading.shuffled(number) for code, reading in readings.items()})
        name = shuffled_kind(kind, number)
        for code, reading in readings.items():
            entry = reading.entry(name, estimator, again[code])
            entries[name, code] = replace(entry, tensors=of_same_length(entry.tensors, entries[kind, code].tensors))
    return entries


@dataclass(frozen=True)
class Pooled:
    """The hidden states of some texts, one vector per layer and text.

    Attributes:
        texts: indices of the texts.
        states: [layers, len(texts), hidden] in float32, on the CPU.
        norms: [layers, len(texts)] norm of the residual stream, pooled like the states.
    """

    texts: list[int]
    states: Tensor
    norms: Tensor


#: By tokens and pooled indices of a text: its states [layers, hidden] and their norms [layers], pooled.
KnownStates = dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[Tensor, Tensor]]


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
    """Hidden states of texts at several layers: one forward per text, in batches of similar length, pooled at once.

    Args:
        model, tokenizer, batch_size, progress: as for `extract`.
        layers: 0-based decoder layers, output of the block.
        pooling: `last`, `mean`, or with a count `last3`, `first2`.
        texts: the texts.
        where: name of the texts, for messages.

    Raises:
        DataError: a text without tokens, or longer than the model's context.
        PlanError: a layer that the model does not have.
    """
    if pooling in ("after", "generated"):
        raise DataError(f"{where}: the pooling {pooling!r} needs pairs; valid for texts: last, mean, last3, first2")
    encoded = [pool(text, pooling) for text in encode(tokenizer, texts)]
    return encoded_states(
        model, encoded, layers, pooling, where=where, batch_size=batch_size, progress=progress, known={}
    )


def encoded_states(
    model: PreTrainedModel,
    encoded: Sequence[PooledText],
    layers: Sequence[int],
    pooling: Pooling,
    *,
    where: str,
    batch_size: int,
    progress: Callable[[int], object],
    known: KnownStates,
    remember: bool = False,
) -> Iterator[Pooled]:
    """`pooled_states` of texts that are tokens, and of which some states are known; the others become so on demand."""
    check_lengths(model, where, encoded)
    keys = [(tuple(ids), tuple(indices)) for ids, indices in encoded]
    order = sorted(range(len(encoded)), key=lambda text: len(encoded[text].ids))
    computed = [text for text in order if keys[text] in known]
    for start in range(0, len(computed), batch_size):
        texts = computed[start : start + batch_size]
        states, norms = (torch.stack(parts, dim=1) for parts in zip(*(known[keys[t]] for t in texts), strict=True))
        yield Pooled(texts, states, norms)
        progress(len(texts))
    missing = [text for text in order if keys[text] not in known]
    if not missing:
        return
    device = model.get_input_embeddings().weight.device
    with Capture(model, layers) as capture:
        for start in range(0, len(missing), batch_size):
            texts = missing[start : start + batch_size]
            ids, weights = _pad([encoded[text] for text in texts], pooling)
            with torch.inference_mode():  # not around the yield, or it would hold for the caller too
                pooled = list(capture.run(model, ids.to(device), partial(_pool, weights=weights, pooling=pooling)))
            states, norms = (torch.stack(parts) for parts in zip(*pooled, strict=True))
            if remember:
                known |= {keys[text]: (states[:, row], norms[:, row]) for row, text in enumerate(texts)}
            yield Pooled(texts, states, norms)
            progress(len(texts))


def parse_layers(text: str, n_layers: int) -> list[int]:
    """Layers given as `all` or joined by commas as in a plan: `5`, `3-8`, `42%`, `40%-60%`.

    Raises:
        PlanError: a mistake in the text, or a layer that the model does not have.
    """
    if text == "all":
        return list(range(n_layers))
    layers: set[int] = set()
    for part in text.split(","):
        try:
            if not re.fullmatch(r"[0-9.%-]+", part):
                raise ValueError(part)
            (term,) = Plan.parse(f"x@{part}").interventions
        except ValueError:
            raise PlanError(
                f"layers {text!r}: {part!r} is not a layer, a range or a depth (5, 3-8, 42%) or 'all'"
            ) from None
        layers.update(term.layers(n_layers))
    return sorted(layers)


class _Stop(Exception):  # noqa: N818 - not an error: it ends a forward at the deepest layer needed
    """Raised by the hook of the deepest layer."""


T = TypeVar("T")
F = TypeVar("F")


class Capture:
    """Hooks that read the residual stream after some layers of one forward.

    Args:
        model: a decoder-only model of transformers.
        layers: 0-based decoder layers, output of the block.

    Raises:
        PlanError: no layers, or one that the model does not have.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[int]) -> None:
        self._taken: dict[int, Any] = {}
        self._take: Callable[[Tensor], Any]
        self._stops = True
        self._layers = layers
        self._stream = ResidualStream.of(model)
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
        """The results of `take` on the residual stream [batch, length, hidden] after each requested layer, in their order.

        `take` is called as soon as a layer has run, so that memory never holds the streams of all layers. The forward ends
        at the deepest layer.
        """
        with _until_stopped():
            self.during(lambda: model(input_ids=ids, use_cache=False, **text_only(model, ids)), take, stops=True)
        for layer in self._layers:
            yield self._taken.pop(layer)

    def during(self, forward: Callable[[], F], take: Callable[[Tensor], Any], *, stops: bool = False) -> F:
        """Run a forward; `taken` has the results of `take`. The forward goes on to its end unless it `stops`."""
        self._taken.clear()
        self._take, self._stops = take, stops
        return forward()

    @property
    def taken(self) -> list[Any]:
        """What `take` returned for each requested layer in the last forward."""
        return [self._taken[layer] for layer in self._layers]

    def _keep(self, layer: int) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            self._taken[layer] = self._take(self._stream.read(output))
            if self._stops and layer == self._deepest:
                raise _Stop

        return keep


@contextmanager
def _until_stopped() -> Iterator[None]:
    try:
        yield
    except _Stop:
        return


def check_lengths(model: PreTrainedModel, where: str, encoded: Sequence[PooledText]) -> None:
    """Refuse texts without tokens, or longer than the model's context."""
    longest = max(len(ids) for ids, _ in encoded)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", longest)
    if longest > limit:
        raise DataError(f"a text of {where} has {longest} tokens, the model's context is {limit}")
    if not all(indices for _, indices in encoded):
        raise DataError(f"a text of {where} has no tokens")


def _pad(batch: Sequence[PooledText], pooling: Pooling) -> tuple[Tensor, Tensor]:
    """Right-padded ids [batch, length], and what `_pool` needs: for `last` the index of the token [batch], for `mean` the
    weight of each token [batch, length] (rows sum to 1).
    """
    width = max(len(ids) for ids, _ in batch)
    padded = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch])
    if pooling == "last":
        return padded, torch.tensor([indices[-1] for _, indices in batch])
    weights = torch.zeros(len(batch), width)
    for row, (_, indices) in enumerate(batch):
        weights[row, indices] = 1 / len(indices)
    return padded, weights


def _pool(states: Tensor, weights: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor]:
    """The pooled states [batch, hidden] of a residual stream and the pooled norms [batch], in float32 on the CPU."""
    weights = weights.to(states.device)
    if pooling == "last":
        pooled = states[torch.arange(len(weights), device=states.device), weights].float()
        return pooled.cpu(), pooled.norm(dim=-1).cpu()
    full = states.float()
    return torch.einsum("bt,bth->bh", weights, full).cpu(), (full.norm(dim=-1) * weights).sum(1).cpu()
