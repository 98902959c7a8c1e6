"""A plan, resolved against a vector set and the depth of a model.

A `SteeringTable` holds for each steered layer the steps of the plan in their order, with a row for each language; row 0
changes nothing. Additions of neighbouring terms are summed into one matrix, so that a forward adds once per layer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from lm_eval_ext.errors import LanguageError, PlanError
from lm_eval_ext.steering.plan import DEFAULT_POSITION, Intervention, Plan, Position, n_last, position_order
from lm_eval_ext.steering.shuffling import shuffled_kind
from lm_eval_ext.steering.vectors import ANY_LANGUAGE, SteeringVectors, VectorSet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lm_eval_ext.steering.transforms.base import Artifact, Transform

#: Row of the table that changes nothing.
UNSTEERED_ROW = 0

#: English has no vector of this kind: English minus English is zero.
ENGLISH_KIND, ENGLISH = "en", "en"


@dataclass(frozen=True)
class Addition:
    """Vectors added to the residual stream.

    Attributes:
        position: at which tokens.
        matrix: [rows + 1, hidden] in float32, what is added in each row; row 0 is zero.
    """

    position: Position
    matrix: Tensor


@dataclass(frozen=True)
class Change:
    """A transform that depends on the state.

    Attributes:
        position: at which tokens.
        transform: the transform.
        artifacts: for each row that it changes, its artifact of this layer and the strength.
    """

    position: Position
    transform: Transform
    artifacts: dict[int, tuple[Artifact, float]]


Step = Addition | Change


@dataclass(frozen=True)
class SteeringTable:
    """What a plan does, by layer and row.

    Attributes:
        rows: the row of each language; `any` is the row of a request in any other language, where the plan allows one.
        steps: for each steered layer what is done there, in order.
        missing: the kinds that lack vectors, for each language that some other kind of the plan knows.
        height: rows of every matrix, row 0 included.
    """

    rows: dict[str, int] = field(default_factory=dict)
    steps: dict[int, tuple[Step, ...]] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)
    height: int = 1

    @property
    def has_changes(self) -> bool:
        """Whether some step depends on the state."""
        return any(isinstance(step, Change) for steps in self.steps.values() for step in steps)

    @classmethod
    def build(
        cls, plan: Plan, vectors: VectorSet | None, n_layers: int, default: Position = DEFAULT_POSITION
    ) -> SteeringTable:
        """Resolve a plan against the vectors and the model's depth.

        Raises:
            PlanError: a layer that the model lacks; a plan without vectors; a strength that overflows, or one that a
                transform does not have.
            VectorFileError: a kind, language or layer that the file lacks.
        """
        if not plan:
            return cls()
        if vectors is None:
            raise PlanError(f"the plan {plan} needs vectors: pass vectors=FILE (make one with lm-eval-ext extract)")
        for term in plan.interventions:
            vectors.check_kind(term.kind)
            term.layers(n_layers)
        codes = list(dict.fromkeys(lang for term in plan.interventions for lang in _languages(term, vectors)))
        missing = {lang: lacking for lang in codes if (lacking := _lacking(plan, vectors, lang))}
        rows = {lang: row for row, lang in enumerate((lang for lang in codes if lang not in missing), start=1)}
        if not rows:
            raise LanguageError(
                f"no language has vectors of every kind in the plan {plan}: "
                + "; ".join(f"{kind} has {', '.join(vectors.languages(kind))}" for kind in vectors.kinds)
            )
        height = len(rows) + 1
        steps: dict[int, list[Step]] = {}
        for term in plan.interventions:
            for layer in term.layers(n_layers):
                _add_term(steps.setdefault(layer, []), term, layer, term.position or default, vectors, rows)
        matrices = [step.matrix for of_layer in steps.values() for step in of_layer if isinstance(step, Addition)]
        if not all(bool(matrix.isfinite().all()) for matrix in matrices):
            raise PlanError(f"the plan {plan} adds more than a float32 number can hold: lower its strengths")
        return cls(rows, {layer: _ordered(of_layer) for layer, of_layer in steps.items()}, missing, height)

    @classmethod
    def stack(cls, tables: Sequence[SteeringTable], languages: Sequence[str]) -> tuple[SteeringTable, Tensor]:
        """The tables of several plans as one table, so that one forward runs all of them on copies of its rows.

        Args:
            tables: one for each plan.
            languages: of the requests.

        Returns:
            the table, and its rows [plans, languages].
        """
        rows: list[list[int]] = []
        steps: dict[int, list[tuple[int, int, Step]]] = {}  # of each layer: place in its plan, first row, step
        first = 1
        for table in tables:
            in_table = [table.row(language) for language in languages]
            rows.append([first + row - 1 if row else UNSTEERED_ROW for row in in_table])
            for layer, of_layer in table.steps.items():
                steps.setdefault(layer, []).extend((place, first, step) for place, step in enumerate(of_layer))
            first += table.height - 1
        stacked = {layer: _stacked(of_layer, first) for layer, of_layer in steps.items()}
        return cls(steps=stacked, height=first), torch.tensor(rows)

    @property
    def n_last(self) -> int:
        """The most tokens that a step counts from a prompt's end, at least 1."""
        return max([1, *(n_last(step.position) for of_layer in self.steps.values() for step in of_layer)])

    def row(self, language: str | None) -> int:
        """The row of a request's language.

        Raises:
            LanguageError: the language is unknown (None) or has no vectors, and the plan has none for any language.
        """
        if not self.steps:
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
    source, kind = term.fixed_language or language, _kind(term)
    if term.is_other:
        codes = vectors.languages(kind)
        source = codes[(codes.index(language) + 1) % len(codes)] if language in codes else language
    return vectors.vectors.get((kind, source)) or vectors.vectors.get((kind, ANY_LANGUAGE))


def _kind(term: Intervention) -> str:
    """The kind of the entries that a term uses."""
    return term.kind if term.shuffled is None else shuffled_kind(term.kind, term.shuffled)


def _is_zero(term: Intervention, language: str) -> bool:
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
    codes = vectors.languages(_kind(term))
    if not codes:
        raise PlanError(
            f"{term}: the file has {vectors.n_shuffled(term.kind)} controls of shuffled {term.kind!r} pairs, numbered from "
            "0; make them with lm-eval-ext extract --shuffled N"
        )
    if term.is_other and len(codes) < 2:
        raise PlanError(
            f"{term}: the file holds {term.kind!r} vectors of {', '.join(codes)} only, so there is no other"
        )
    return [ENGLISH, *codes] if term.kind == ENGLISH_KIND and ENGLISH not in codes else codes


def _lacking(plan: Plan, vectors: VectorSet, language: str) -> list[str]:
    return [
        term.kind
        for term in plan.interventions
        if not _is_zero(term, language) and _find(term, vectors, language) is None
    ]


def _last_run(steps: list[Step]) -> list[Addition]:
    """The additions at the end of the steps."""
    run: list[Addition] = []
    for step in reversed(steps):
        if not isinstance(step, Addition):
            break
        run.append(step)
    return run


def _ordered(steps: list[Step]) -> tuple[Step, ...]:
    """The steps, each run of additions by `position_order`, so that sums do not depend on the order in the plan."""
    ordered: list[Step] = []
    for is_addition, run in groupby(steps, key=lambda step: isinstance(step, Addition)):
        of_run = list(run)
        ordered += sorted(of_run, key=lambda step: position_order(step.position)) if is_addition else of_run
    return tuple(ordered)


def _stacked(placed: list[tuple[int, int, Step]], height: int) -> tuple[Step, ...]:
    """The steps of several plans at one layer. Rows of different plans are disjoint: only the order in a plan matters."""
    stacked: list[Step] = []
    for place in range(1 + max(place for place, _, _ in placed)):
        matrices: dict[Position, Tensor] = {}
        changes: dict[tuple[Position, str], Change] = {}
        for _, first, step in (item for item in placed if item[0] == place):
            if isinstance(step, Addition):
                rows, width = step.matrix.shape
                matrix = matrices.setdefault(step.position, torch.zeros(height, width))
                matrix[first : first + rows - 1] = step.matrix[1:]
            else:
                change = changes.setdefault(
                    (step.position, step.transform.name), Change(step.position, step.transform, {})
                )
                change.artifacts.update({first + row - 1: value for row, value in step.artifacts.items()})
        stacked += [Addition(position, matrix) for position, matrix in matrices.items()]
        stacked += changes.values()
    return tuple(stacked)


def _add_term(
    steps: list[Step], term: Intervention, layer: int, position: Position, vectors: VectorSet, rows: dict[str, int]
) -> None:
    """Add a term to the steps of a layer: to the additions at the end, or as a change."""
    changes: dict[int, tuple[Transform, Artifact, float]] = {}
    matrix = torch.zeros(len(rows) + 1, vectors.model.hidden_size)
    for language, row in rows.items():
        if _is_zero(term, language):
            continue
        entry = _find(term, vectors, language)
        assert entry is not None  # languages without vectors have no row
        artifact, strength = _resolved(term, entry, language, layer)
        addition = entry.transform.addition(artifact, strength)
        if addition is None:
            changes[row] = entry.transform, artifact, strength
        else:
            matrix[row] = addition
    if not changes or bool(matrix.any()):
        same = next((step for step in _last_run(steps) if step.position == position), None)
        if same is None:
            steps.append(Addition(position, matrix))
        else:
            same.matrix.add_(matrix)
    for name in dict.fromkeys(transform.name for transform, _, _ in changes.values()):
        alike = {row: change for row, change in changes.items() if change[0].name == name}
        transform = next(iter(alike.values()))[0]
        steps.append(Change(position, transform, {row: (artifact, s) for row, (_, artifact, s) in alike.items()}))


def _resolved(term: Intervention, entry: SteeringVectors, language: str, layer: int) -> tuple[Artifact, float]:
    """The artifact of one language and layer, a random one where the term asks for it, and its strength."""
    artifact: Artifact = entry.artifact(layer)
    transform = entry.transform
    if term.random_seed is not None:
        seed, place = term.random_seed, f"{term.kind}/{language}/{layer}"

        def draw(name: str, tensor: Tensor) -> Tensor:
            return random_direction(seed, place if name == "vector" else f"{place}/{name}", tensor)

        artifact = transform.random(artifact, draw)
    if term.gamma.is_relative:
        return artifact, transform.strength_of_share(artifact, term.gamma.value / 100, entry.residual_norm(layer))
    return artifact, term.gamma.value


def random_direction(seed: int, name: str, like: Tensor) -> Tensor:
    """A direction drawn uniformly, with the norm of `like`; the same for the same seed and name, on every machine."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    direction: Tensor = torch.randn(like.shape, generator=generator)
    return direction.mul(like.norm() / direction.norm())
