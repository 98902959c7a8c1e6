"""Reports on the build: counts and reasons, whether the tables fit the data, and whether items name a country."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lm_eval_ext.data.blend import items, leaks, review, selection, shortcuts
from lm_eval_ext.data.blend.dataset import documents, pairs
from lm_eval_ext.data.blend.source import corpus
from lm_eval_ext.data.blend.tables import decontext
from lm_eval_ext.errors import DataError
from lm_eval_ext.fingerprints import hash_lines
from lm_eval_ext.languages import ENGLISH_COUNTRIES, LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lm_eval_ext.data.blend.source import Problem


#: Columns of the documents that mark a kind of item.
FLAGS = ("firm", "universal", "us_uk_shared", "numeric")


@dataclass(frozen=True)
class Check:
    """How one language's edits fit the data.

    Attributes:
        applied: questions whose country could be taken out.
        dropped: questions that the table leaves out, with the reason.
        failed: questions that must not be used, with the error.
        malformed: entries of the language's country that could not be read.
    """

    language: str
    applied: int
    dropped: dict[str, str]
    failed: dict[str, str]
    malformed: tuple[Problem, ...]


@dataclass(frozen=True)
class Finding:
    """A name of a country or the like in the question, or in an option (`option 2`)."""

    language: str
    id: str
    where: str
    category: str
    text: str


@dataclass(frozen=True)
class Counts:
    """The items of one language in numbers.

    Attributes:
        items: questions that yield an item, in `test` and `dev2` together.
        repeats: items when up to three of a question are taken.
        flags: items by flag: firm, universal, us_uk_shared, numeric.
        splits, topics, forms: items by these columns.
        letters: items by the position of gold, first to last.
        english_letters: items by the position of the option of the US or UK.
        shortcuts: rule of `shortcuts` -> percent of items whose gold it finds from the options alone.
        taken_for: items with an option that is an answer of this country.
        shared_gold: items whose gold is an answer of the US or UK too.
        reasons: why the other questions yield no item.
        details: the same in more detail, as (reason, detail).
        verdicts, classes: rows of the review by verdict, and by what was found (those for every language too).
    """

    language: str
    items: int
    repeats: int
    core: int
    flags: dict[str, int]
    splits: Counter[str]
    topics: Counter[str]
    forms: Counter[str]
    letters: tuple[int, int, int, int]
    english_letters: tuple[int, int, int, int]
    shortcuts: dict[str, float]
    taken_for: Counter[str]
    shared_gold: int
    reasons: Counter[str]
    details: Counter[tuple[str, str]] = field(repr=False)
    verdicts: Counter[str]
    classes: Counter[str]


def check() -> list[Check]:
    """For each language, how many questions the tables apply to, drop, or fail on.

    Raises:
        DataError: the data cannot be read at all.
    """
    return [_check(language) for language in LANGUAGES]


def audit(rows: Iterable[Mapping[str, Any]] | None = None) -> list[Finding]:
    """Everything that names a country, nationality, currency or national institution and is not on the allow-list.

    Args:
        rows: documents with language, id, question and options; by default all that is built, with all repeats, and the
            wordings without country that serve extraction.
    """
    return [finding for row in (_everything() if rows is None else rows) for finding in _findings(row)]


def counts() -> list[Counts]:
    """The items of each language in numbers, and why the other questions yield none."""
    return [_counts(language) for language in LANGUAGES]


def fingerprint() -> str:
    """SHA-256 of all items of all languages, with all repeats, as JSON lines: the version of the built set."""
    rows = (row for code in LANGUAGES for row in documents(code, split="all", repeats=selection.MAX_SETS))
    return hash_lines(json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":")) for row in rows)


def _check(language: str) -> Check:
    data, table = corpus(), decontext(language)
    applied, failed = 0, {}
    dropped = {question_id: edits.dropped for question_id, edits in table.items() if edits.dropped}
    for question_id in dict.fromkeys((*data.templates, *table)):
        if question_id in dropped:
            continue
        try:
            items.wordings(data, language, question_id)
            applied += 1
        except DataError as error:
            failed[question_id] = str(error)
    country = LANGUAGES[language].country
    malformed = tuple(problem for problem in data.problems if problem.country == country)
    return Check(language, applied, dropped, failed, malformed)


def _everything() -> Iterator[dict[str, Any]]:
    for language in LANGUAGES:
        yield from documents(language, split="all", repeats=selection.MAX_SETS)
        for question_id, _, plain in pairs(language):
            yield {"language": language, "id": question_id, "question": plain, "options": []}


def _findings(row: Mapping[str, Any]) -> Iterator[Finding]:
    texts = [("question", row["question"])]
    texts += [(f"option {number}", option) for number, option in enumerate(row["options"], start=1)]
    for where, text in texts:
        for leak in leaks.find(text, row["language"], row["id"].partition("#")[0]):
            yield Finding(row["language"], row["id"], where, leak.category, leak.text)


def _counts(language: str) -> Counts:
    rows = documents(language, split="all")
    fallen = items.build(corpus(), language).fallen
    read = [row for row in review.table() if row.language in (language, review.ANY)]
    gold = [row["countries"][row["gold"]] for row in rows]
    places = Counter(row["gold"] for row in rows)
    english = Counter(
        number
        for row in rows
        for number, owners in enumerate(row["countries"])
        if number != row["gold"] and not ENGLISH_COUNTRIES.isdisjoint(owners)
    )
    return Counts(
        language=language,
        items=len(rows),
        repeats=len(documents(language, split="all", repeats=selection.MAX_SETS)),
        core=sum(row["core"] for row in rows),
        flags={flag: sum(row[flag] for row in rows) for flag in FLAGS},
        splits=Counter(row["split"] for row in rows),
        topics=Counter(row["topic"] for row in rows),
        forms=Counter(row["format"] for row in rows),
        letters=(places[0], places[1], places[2], places[3]),
        english_letters=(english[0], english[1], english[2], english[3]),
        shortcuts=shortcuts.rates(rows),
        taken_for=Counter(country for row in rows for country in {countries[0] for countries in row["countries"]}),
        shared_gold=sum(bool({"US", "UK"} & set(countries[1:])) for countries in gold),
        reasons=Counter(reason for reason, _ in fallen.values()),
        details=Counter(fallen.values()),
        verdicts=Counter(row.verdict for row in read),
        classes=Counter(review.CLASSES[row.kind] for row in read if row.kind),
    )
