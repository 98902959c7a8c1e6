"""Adding vectors to the residual stream, each row of a batch with its own language's vector.

A plan and a vector set become a `SteeringTable`: for each steered layer one matrix with a row per language, row 0 zero. An
`Injector` registers one forward hook per steered layer, once; before each forward the caller says which row each example
uses and which tokens are the prompt. Nothing is edited in place, no module is replaced, and nothing in a hook waits for
the device.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from lm_eval_ext.errors import LanguageError, PlanError
from lm_eval_ext.steering.decoder import decoder_layers, residual, with_residual
from lm_eval_ext.steering.plan import DEFAULT_POSITION, POSITIONS, Intervention, Plan, Position
from lm_eval_ext.steering.vectors import ANY_LANGUAGE, SteeringVectors, VectorSet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedModel

#: Row of the table that adds nothing.
UNSTEERED_ROW = 0

#: The English vector of English is English minus English: nothing.
ENGLISH_KIND, ENGLISH = "en", "en"


@dataclass(frozen=True)
class SteeringTable:
    """What a plan adds, by layer, position and row.

    Attributes:
        rows: the row of each language; `any` is the row of a request in any other language, where the plan allows one.
        additions: for each layer and position a float32 matrix [rows + 1, hidden]; row 0 is zero.
        missing: the kinds that lack vectors, for each language that some other kind of the plan knows.
    """

    rows: dict[str, int] = field(default_factory=dict)
    additions: dict[int, dict[Position, Tensor]] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def build(
        cls, plan: Plan, vectors: VectorSet | None, n_layers: int, default: Position = DEFAULT_POSITION
    ) -> SteeringTable:
        """Resolve a plan against the vectors and the model's depth.

        Raises:
            PlanError: a layer that the model lacks; a plan without vectors; a strength beyond any number.
            VectorFileError: a kind, language or layer that the file lacks.
        """
        if not plan:
            return cls()
        if vectors is None:
            raise PlanError(f"the plan {plan} needs vectors: pass vectors=FILE (make one with lm-eval-ext extract)")
        for term in plan.interventions:
            vectors.check_kind(term.kind)
            term.layers(n_layers)
        known = list(dict.fromkeys(lang for term in plan.interventions for lang in _languages(term, vectors)))
        missing = {lang: lacking for lang in known if (lacking := _lacking(plan, vectors, lang))}
        rows = {lang: row for row, lang in enumerate((lang for lang in known if lang not in missing), start=1)}
        if not rows:
            raise LanguageError(
                f"no language has vectors of every kind in the plan {plan}: "
                + "; ".join(f"{kind} has {', '.join(vectors.languages(kind))}" for kind in vectors.kinds)
            )
        additions: dict[int, dict[Position, Tensor]] = {}
        for term in plan.interventions:
            for layer in term.layers(n_layers):
                by_position = additions.setdefault(layer, {})
                position = term.position or default
                if position not in by_position:
                    by_position[position] = torch.zeros(len(rows) + 1, vectors.model.hidden_size)
                for language, row in rows.items():
                    by_position[position][row] += _addition(term, vectors, language, layer)
        if not all(bool(m.isfinite().all()) for by_position in additions.values() for m in by_position.values()):
            raise PlanError(f"the plan {plan} adds more than a float32 number can hold: lower its strengths")
        return cls(rows, additions, missing)

    def row(self, language: str | None) -> int:
        """The row of a request's language.

        Raises:
            LanguageError: the language is unknown (None) or has no vectors, and the plan has none for any language.
        """
        if not self.additions:
            return UNSTEERED_ROW
        row = self.rows.get(language or ANY_LANGUAGE, self.rows.get(ANY_LANGUAGE))
        if row is not None:
            return row
        valid = ", ".join(lang for lang in self.rows if lang != ANY_LANGUAGE)
        if language is None:
            raise LanguageError(f"the language is not known; the plan has vectors for: {valid}")
        lacking = self.missing.get(language)
        detail = f" (no vectors of kind {', '.join(lacking)})" if lacking else ""
        raise LanguageError(f"the plan cannot steer language {language!r}{detail}; it has vectors for: {valid}")


def _find(term: Intervention, vectors: VectorSet, language: str) -> SteeringVectors | None:
    wanted = term.fixed_language or language
    if term.is_other:
        own = vectors.languages(term.kind)
        wanted = own[(own.index(language) + 1) % len(own)] if language in own else language
    return vectors.vectors.get((term.kind, wanted)) or vectors.vectors.get((term.kind, ANY_LANGUAGE))


def _is_nothing(term: Intervention, language: str) -> bool:
    """English has no English vector: its requests pass unchanged, unless another language's vector is asked for."""
    return term.kind == ENGLISH_KIND and language == ENGLISH and term.fixed_language is None


def _languages(term: Intervention, vectors: VectorSet) -> list[str]:
    if term.fixed_language is not None:
        if (term.kind, term.fixed_language) not in vectors.vectors:
            raise PlanError(
                f"{term}: no {term.kind!r} vectors of language {term.fixed_language!r}; "
                f"languages in the file: {', '.join(vectors.languages(term.kind))} (or 'random' for a random direction)"
            )
        return [ANY_LANGUAGE]
    own = vectors.languages(term.kind)
    if term.is_other and len(own) < 2:
        raise PlanError(f"{term}: the file holds {term.kind!r} vectors of {', '.join(own)} only, so there is no other")
    return [ENGLISH, *own] if term.kind == ENGLISH_KIND and ENGLISH not in own else own


def _lacking(plan: Plan, vectors: VectorSet, language: str) -> list[str]:
    return [
        term.kind
        for term in plan.interventions
        if not _is_nothing(term, language) and _find(term, vectors, language) is None
    ]


def _addition(term: Intervention, vectors: VectorSet, language: str, layer: int) -> Tensor:
    """gamma v for one language and layer, [hidden]."""
    if _is_nothing(term, language):
        return torch.zeros(vectors.model.hidden_size)
    found = _find(term, vectors, language)
    assert found is not None  # the languages without vectors were set aside
    vector, norm = found.at(layer)
    if term.random_seed is not None:
        vector = random_direction(term.random_seed, f"{term.kind}/{language}/{layer}", vector)
    if term.gamma.is_relative:
        length = float(vector.norm())
        return vector * (term.gamma.value / 100 * norm / length) if length else vector
    return vector * term.gamma.value


def random_direction(seed: int, name: str, like: Tensor) -> Tensor:
    """A direction drawn uniformly, with the norm of `like`; the same for the same seed and name, on every machine."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    direction: Tensor = torch.randn(like.shape, generator=generator)
    return direction.mul(like.norm() / direction.norm())


class Tokens(Protocol):
    """Which tokens of a forward are steered."""

    def mask(self, position: Position, offset: int, length: int) -> Tensor | bool:
        """For `length` tokens from absolute index `offset`: True for all, False for none, or a mask [batch, length]."""


@dataclass(frozen=True)
class ScoredTokens:
    """Tokens of a forward that scores: row i's prompt is `start[i]` to `end[i]` (exclusive); the rest is options or padding.

    `last` is the prompt's last token alone: nothing is generated in scoring, and an option's own tokens stay as they are.
    """

    start: Tensor
    end: Tensor

    def mask(self, position: Position, offset: int, length: int) -> Tensor | bool:
        """See `Tokens.mask`."""
        if position == "all":
            return True
        index = torch.arange(offset, offset + length, device=self.end.device)
        end = self.end[:, None]
        return index == end - 1 if position == "last" else (index >= self.start[:, None]) & (index < end)


@dataclass(frozen=True)
class OptionTokens:
    """Tokens of options whose prompt was run before: only `all` touches them."""

    def mask(self, position: Position, offset: int, length: int) -> Tensor | bool:
        """See `Tokens.mask`."""
        return position == "all"


@dataclass(frozen=True)
class GeneratedTokens:
    """Tokens of a generation whose left-padded prompts have the attention mask `prompt` [batch, prompt length]."""

    prompt: Tensor

    def mask(self, position: Position, offset: int, length: int) -> Tensor | bool:
        """See `Tokens.mask`. `last` covers the last prompt token and everything generated after it."""
        if position == "all":
            return True
        width = self.prompt.shape[1]
        if offset >= width:
            return position == "last"
        index = torch.arange(offset, offset + length, device=self.prompt.device)
        if position == "last":
            return (index >= width - 1).expand(self.prompt.shape[0], -1)
        padded = torch.nn.functional.pad(self.prompt, (0, max(0, offset + length - width)))
        return padded[:, offset : offset + length].bool()


@dataclass
class _Batch:
    rows: Tensor  # [batch], or [batch, length] where the tokens of an example differ
    tokens: Tokens
    seen: dict[int, int] = field(default_factory=dict)

    def offset(self, layer: int, length: int, width: int | None) -> int:
        """Absolute index of the first token of this call at `layer`; a model without cache sends all tokens again."""
        recomputed = width is not None and length > width
        start = 0 if recomputed else self.seen.get(layer, 0)
        self.seen[layer] = start + length
        return start


class Injector:
    """The hooks of one model, and the state that they read.

    Registered once; does nothing outside `batch(...)`.
    """

    def __init__(self, model: PreTrainedModel, table: SteeringTable) -> None:
        """Register a hook after each steered decoder layer of `model`.

        Raises:
            ModelError: the decoder layers cannot be found.
        """
        self.table = table
        self._batch: _Batch | None = None
        self._on_device: dict[tuple[int, Position, torch.device, torch.dtype], Tensor] = {}
        layers: Sequence[nn.Module] = list(decoder_layers(model)) if table.additions else []
        self._handles = [layers[layer].register_forward_hook(self._hook(layer)) for layer in table.additions]

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def batch(self, rows: list[int] | Tensor, tokens: Tokens) -> Iterator[None]:
        """Steer the forwards inside: example i by row `rows[i]`, at the tokens that `tokens` names.

        `rows` may be a tensor [batch, length] instead: a row of the table for each token of each example.
        A batch of unsteered rows only costs nothing: the hooks return at once.
        """
        chosen = torch.as_tensor(rows)
        if self.table.additions and bool((chosen != UNSTEERED_ROW).any()):
            self._batch = _Batch(chosen, tokens)
        try:
            yield
        finally:
            self._batch = None

    def _hook(self, layer: int) -> Any:
        def add(module: nn.Module, inputs: Any, output: Any) -> Any:
            batch = self._batch
            if batch is None:
                return None
            hidden = residual(output)
            n, length = hidden.shape[:2]
            prompt = getattr(batch.tokens, "prompt", None)
            offset = batch.offset(layer, length, None if prompt is None else prompt.shape[1])
            steered = hidden
            for position in POSITIONS:
                if position not in self.table.additions[layer]:
                    continue
                mask = batch.tokens.mask(position, offset, length)
                if mask is False:
                    continue
                rows = _repeat(batch.rows, n).to(hidden.device, non_blocking=True)
                vectors = self._matrix(layer, position, hidden)[rows if rows.dim() == 2 else rows[:, None]]
                if mask is not True:
                    vectors = vectors * _repeat(mask, n).to(hidden.device, hidden.dtype, non_blocking=True)[..., None]
                steered = steered + vectors
            return None if steered is hidden else with_residual(output, steered)

        return add

    def _matrix(self, layer: int, position: Position, like: Tensor) -> Tensor:
        key = (layer, position, like.device, like.dtype)
        if key not in self._on_device:
            self._on_device[key] = self.table.additions[layer][position].to(like.device, like.dtype)
        return self._on_device[key]


def _repeat(tensor: Tensor, n: int) -> Tensor:
    """Rows repeated for beams or several returned sequences (transformers interleaves them)."""
    return tensor if tensor.shape[0] == n else tensor.repeat_interleave(n // tensor.shape[0], dim=0)
