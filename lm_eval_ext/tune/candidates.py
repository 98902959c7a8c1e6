"""The vectors that `tune` chooses among: every estimator on every source of pairs, each a kind of its own.

Where the pairs come from the questions of a development split on which the plan is chosen too, the questions are divided:
vectors are made from one half, the choice is made on the other (`half`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from lm_eval_ext.data.task_pairs import PREFIX, base_families
from lm_eval_ext.errors import UserError, VectorFileError
from lm_eval_ext.fingerprints import hash_text
from lm_eval_ext.steering.shuffling import SEPARATOR
from lm_eval_ext.steering.vectors import VectorSet

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lm_eval_ext.data.pairs import PairSet
    from lm_eval_ext.steering.plan import Plan
    from lm_eval_ext.steering.pooling import Pooling
    from lm_eval_ext.tune.settings import Settings

#: The kind whose vectors are tried for transfer; all others are tried for localization.
TRANSFER_KIND = "en"

#: Which half of the questions is for what.
FOR_VECTORS, FOR_CHOICE = 0, 1


@dataclass(frozen=True)
class Candidate:
    """One way of making vectors.

    Attributes:
        name: of its kind in the vectors that are tried.
        kind: `en`, `loc`, ...: of its kind in the file that is written.
        source: of its pairs.
        estimator: as text, with its parameters.
        pooling: of which tokens; the kind's default where None.
        pairs: by language; none of a vector file.
        divided: families whose questions are in the half that is for vectors.
    """

    name: str
    kind: str
    source: str
    estimator: str
    pooling: Pooling | None = None
    pairs: tuple[PairSet, ...] = field(default=(), repr=False)
    divided: frozenset[str] = frozenset()

    @property
    def is_for_transfer(self) -> bool:
        """Whether it is tried as the vector of the transfer axis."""
        return self.kind == TRANSFER_KIND

    def record(self) -> dict[str, str]:
        """What it is, as text."""
        pooling = self.pooling or "default"
        return {"kind": self.kind, "pairs": self.source, "estimator": self.estimator, "pooling": pooling}


def half(question: str) -> int:
    """0 or 1: the half of the questions that one belongs to, the same in every language."""
    return int(hash_text(f"half {question}")[:8], 16) % 2


def candidates(
    settings: Settings, families: frozenset[str], tokenizer: PreTrainedTokenizerBase | None
) -> list[Candidate]:
    """All combinations of sources, estimators and poolings of each kind.

    Args:
        settings: name them.
        families: of the questions on which the plan is chosen.
        tokenizer: for the chat template of pairs of tasks.

    Raises:
        UserError: an estimator for a kind without pairs, or none for a kind.
        DataError: pairs that cannot be read, or too few of them.
    """
    made: list[Candidate] = []
    for kind in dict.fromkeys(kind for kind, _ in settings.pairs):
        sources = [source for of_kind, source in settings.pairs if of_kind == kind]
        estimators = [name for of_kind, name in settings.estimators if of_kind in ("", kind)]
        if not estimators:
            raise UserError(f"kind {kind!r} has no estimator: add --estimator {kind}=mean_difference")
        for source in sources:
            pair_sets, divided = _pairs(kind, source, settings, families, tokenizer)
            for estimator, pooling in product(estimators, settings.poolings or (None,)):
                name = _name(kind, estimator, {candidate.name for candidate in made})
                made.append(
                    Candidate(
                        name, kind, source, estimator, pooling, tuple(replace(s, kind=name) for s in pair_sets), divided
                    )
                )
    unknown = {kind for kind, _ in settings.estimators if kind} - {kind for kind, _ in settings.pairs}
    if unknown:
        raise UserError(f"--estimator {'/'.join(sorted(unknown))}=...: name its pairs too (--pairs KIND=SOURCE)")
    return made


def _pairs(
    kind: str, source: str, settings: Settings, families: frozenset[str], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[list[PairSet], frozenset[str]]:
    """The pairs of a source, and the families whose questions are divided between vectors and choice."""
    from lm_eval_ext.data import pairs
    from lm_eval_ext.data.task_questions import question_id

    rendering: dict[str, Any] = {}
    if source.startswith(PREFIX):
        rendering = {
            "num_fewshot": settings.num_fewshot,
            "apply_chat_template": settings.apply_chat_template,
            "system_instruction": settings.system_instruction,
            "tokenizer": tokenizer,
        }
    pair_sets = pairs.load_pairs(kind, source, settings.languages, include_path=settings.include_path, **rendering)
    made_from = {family for pair_set in pair_sets for family in pair_set.made_from.get("families", ())}
    divided = frozenset(made_from & families)
    if divided:
        from lm_eval_ext.data import axes

        def is_for_vectors(pair: Any) -> bool:
            asked = pair.asked[1]
            key = question_id(asked.document, axes.metadata(asked.task_name, asked.task.config.metadata))
            return half(key or str(asked.doc_id)) == FOR_VECTORS

        pair_sets = [replace(s, pairs=tuple(pair for pair in s.pairs if is_for_vectors(pair))) for s in pair_sets]
        if empty := [s.language for s in pair_sets if not s.pairs]:
            raise UserError(
                f"--pairs {kind}={source}: half of its questions are kept for the choice, and nothing is left for the "
                f"vectors of {', '.join(empty)}; take pairs of another split, or leave these languages out"
            )
    return [replace(s, pairs=s.pairs[: settings.max_pairs]) for s in pair_sets], divided


def _name(kind: str, estimator: str, taken: set[str]) -> str:
    base = f"{kind}_{estimator.partition(':')[0]}"
    number, name = 1, base
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    return name


def of_files(files: Iterable[VectorSet]) -> tuple[list[Candidate], dict[tuple[str, str], Any]]:
    """The kinds of vector files as candidates, and their entries under the candidates' names."""
    made: list[Candidate] = []
    entries: dict[tuple[str, str], Any] = {}
    for vectors in files:
        for kind in vectors.kinds:
            some = vectors.vectors[kind, vectors.languages(kind)[0]].info
            name = _name(kind, "file", {candidate.name for candidate in made})
            source = vectors.path.name if vectors.path else "in memory"
            made.append(Candidate(name, kind, f"{some.source} ({source})", some.estimator, some.pooling))
            entries |= renamed(vectors, kind, name)
    return made, entries


def extract(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    wanted: Iterable[Candidate],
    layers: str,
    name: str,
    *,
    shuffled: int = 0,
) -> VectorSet:
    """The vectors of some candidates, under their names; each text is computed once for all estimators.

    Raises:
        DataError, EstimatorError, ModelError, PlanError: see `steering.extraction.extract`.
    """
    from lm_eval_ext.console import Progress
    from lm_eval_ext.steering import extraction

    wanted = list(wanted)
    entries: dict[tuple[str, str], Any] = {}
    identity = None
    known: extraction.KnownStates = {}
    n_texts = sum(2 * len(pair_set.pairs) for candidate in wanted for pair_set in candidate.pairs)
    with Progress(n_texts, "Extracting", "text") as bar:
        for candidate in wanted:
            made = extraction.extract(
                *(model, tokenizer, list(candidate.pairs), candidate.estimator, layers),
                pooling=candidate.pooling
                or extraction.default_pooling(replace(candidate.pairs[0], kind=candidate.kind)),
                name=name,
                shuffled=shuffled,
                progress=bar.update,
                known=known,
                remember=True,
            )
            entries |= made.vectors
            identity = made.model
    if identity is None:
        raise VectorFileError("there is nothing to extract")
    return VectorSet(identity, entries)


def renamed(vectors: VectorSet, kind: str, name: str) -> dict[tuple[str, str], Any]:
    """The entries of a kind and of its controls under another name."""
    entries = {}
    for (old, language), entry in vectors.vectors.items():
        if old == kind or old.startswith(f"{kind}{SEPARATOR}"):
            new = f"{name}{old.removeprefix(kind)}"
            entries[new, language] = replace(entry, info=replace(entry.info, kind=new))
    return entries


def final(vectors: VectorSet, plan: Plan, by_name: dict[str, Candidate]) -> tuple[VectorSet, Plan]:
    """The vectors of a plan and the plan, under the kinds' plain names (`loc` for `loc_lda`)."""
    entries: dict[tuple[str, str], Any] = {}
    terms = []
    for term in plan.interventions:
        kind = by_name[term.kind].kind
        entries |= renamed(vectors, term.kind, kind)
        terms.append(replace(term, kind=kind))
    return VectorSet(vectors.model, entries, created_by=vectors.created_by), replace(plan, interventions=tuple(terms))


def families_of(metadata: Iterable[Any]) -> frozenset[str]:
    """The families whose questions some tasks ask."""
    return frozenset(family for of_task in metadata for family in base_families(of_task))
