"""The tables of this package: words that name the country, translations of foreign answers, equivalent answers.

Written by language models acting as native editors and not checked by human natives; CC-BY-SA-4.0, since they derive from
BLEnD. `blend_tables/README.md` says how each is applied.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache

import snowballstemmer

from lm_eval_ext.data import sources
from lm_eval_ext.data.blend.source import fold
from lm_eval_ext.errors import DataError

_FOLDER = "blend_tables"
# Columns of regions.tsv after answer, concept and broader concepts.
_REGION_LANGUAGES = ("es", "id", "el", "ko", "zh", "ar")
_WORD = re.compile(r"\d+(?:[.:/]\d+)*|[^\W\d_]+")
_STEMMER = snowballstemmer.stemmer("english")
_FUNCTION_WORDS = frozenset(
    ("a", "an", "and", "at", "by", "day", "for", "from", "in", "of", "on", "or", "the", "to", "vs", "with")
)


@dataclass(frozen=True)
class Edits:
    """The row of `decontext.tsv` of one question.

    Attributes:
        steps: (old, new) pairs, applied in order; each `old` must be found exactly once.
        dropped: why the question is left out in this language, or None.
    """

    steps: tuple[tuple[str, str], ...] = ()
    dropped: str | None = None


class EditError(DataError):
    """A text to be replaced that is not in the question exactly once."""


@dataclass(frozen=True)
class Meaning:
    """The meaning of an answer according to the concept table, compared by stems.

    Attributes:
        names: its English variants and the concepts they stand for, each as the set of its stems.
        broader: concepts that contain or overlap it, likewise.
        known: the concept table lists at least one of the variants.
        primary: the concept (or the folded text) of its primary variant.
    """

    names: frozenset[frozenset[str]]
    broader: frozenset[frozenset[str]]
    known: bool
    primary: str

    def overlaps(self, other: Meaning) -> bool:
        """Whether two answers are the same, or one is broader: in the table, or all its stems are among the other's."""
        if self.names & other.names or self.names & other.broader or other.names & self.broader:
            return True
        return any(a <= b or b <= a for a in self.names for b in other.names)


def rows(name: str, columns: int) -> list[list[str]]:
    """The rows of a table, padded to `columns`: split on newline and tab alone, no field stripped, no quoting."""
    return split_rows(sources.packaged(f"{_FOLDER}/{name}").read_bytes().decode("utf-8"), columns)


def split_rows(text: str, columns: int) -> list[list[str]]:
    """The rows of a table's text, as `rows` reads them."""
    split = (line.split("\t") for line in text.replace("\r\n", "\n").split("\n") if line)
    return [fields + [""] * (columns - len(fields)) for fields in split]


@cache
def decontext(language: str) -> dict[str, Edits]:
    """Question id -> edits that take the country out of the question."""
    table: dict[str, Edits] = {}
    for question_id, action, old, new, note in rows(f"{language}/decontext.tsv", 5):
        before = table.get(question_id, Edits())
        table[question_id] = (
            Edits(before.steps, note or "no reason given") if action == "drop" else Edits((*before.steps, (old, new)))
        )
    return table


def remove_country(question: str, edits: Edits) -> str:
    """The question without its country.

    Raises:
        EditError: a text to be replaced is missing or occurs more than once; the question must not be used.
    """
    for old, new in edits.steps:
        n = question.count(old)
        if n != 1:
            raise EditError(f"{old!r} is found {n} times, not once, in {question!r}")
        question = question.replace(old, new)
    return question


@cache
def translations(language: str) -> dict[str, str]:
    """Folded English answer -> the word in the language; empty for English."""
    if language == "en":
        return {}
    column = _REGION_LANGUAGES.index(language)
    regions = {english: words[column] for english, _, _, *words in rows("regions.tsv", 9) if words[column]}
    return regions | dict(rows(f"{language}/translations.tsv", 2))


@cache
def concepts() -> dict[str, tuple[str, frozenset[str]]]:
    """Folded English answer -> (concept, broader or overlapping concepts)."""
    entries = [fields[:3] for fields in rows("regions.tsv", 9)] + rows("en/concepts.tsv", 3)
    return {english: (concept, frozenset(filter(None, broader.split("|")))) for english, concept, broader in entries}


@cache
def generality() -> dict[str, int]:
    """Concept -> how many other concepts it contains or overlaps."""
    return Counter(name for _, broader in set(concepts().values()) for name in broader)


@cache
def meaning(variants: tuple[str, ...]) -> Meaning:
    """The meaning of an answer from its English variants, primary first."""
    folded = [fold(variant) for variant in variants]
    listed = [concepts()[variant] for variant in folded if variant in concepts()]
    names = set(folded) | {concept for concept, _ in listed}
    primary = folded[0] if folded else ""
    return Meaning(
        frozenset(map(stems, names)) - {frozenset()},
        frozenset(stems(concept) for _, broader in listed for concept in broader) - {frozenset()},
        bool(listed),
        concepts()[primary][0] if primary in concepts() else primary,
    )


@cache
def stems(text: str) -> frozenset[str]:
    """The stems of the words of an English text, no function words, "08:00" as "8:00"."""
    words = (word for word in _WORD.findall(text.lower()) if word not in _FUNCTION_WORDS)
    return frozenset((word.lstrip("0") or "0") if word[0].isdigit() else _STEMMER.stemWord(word) for word in words)
