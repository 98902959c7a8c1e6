"""The review of the items, one by one: `blend_tables/review.tsv` and how it is applied.

Columns, separated by tabs, no header: question id, language (`*`: all), subject, verdict, class, reason, replacement, reader
(empty: a language model).

| verdict | subject | effect |
|---|---|---|
| `keep` | `*`, or the English form of an option | read and found right; takes an earlier `drop` or `exclude` back |
| `exclude` | English form of a distractor, in lower case | it is no option of this question; the next best is taken |
| `variant` | English form of gold or a distractor | it is shown as the replacement |
| `edit` | a text that occurs once in the question | it is replaced |
| `drop` | `*` | no item of this question |

Of several rows on one subject the last one counts. A class is one of `CLASSES`; the reason names the source where law or
statistics decide. `lm-eval-ext data review` writes the table for a human reader.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING

from lm_eval_ext.data import sources
from lm_eval_ext.data.blend.tables import rows, split_rows

if TYPE_CHECKING:
    from pathlib import Path

KEEP, EXCLUDE, VARIANT, EDIT, DROP = VERDICTS = ("keep", "exclude", "variant", "edit", "drop")
#: Verdicts that end the reading of an item.
FINAL = (KEEP, DROP)
#: What is wrong, by class, with the heading of the data card.
CLASSES = {
    "wording": "the question is unnatural or incorrect",
    "country-named": "something besides the language tells the country",
    "gold-false": "gold is false",
    "outdated": "gold is no longer true",
    "mismatch": "question and gold, or question and distractor, do not fit",
    "true-too": "a distractor is true in the local country too",
    "ambiguous": "several answers are equally good",
    "overlap": "a distractor means the same as a local answer, or is broader or narrower",
    "type": "options of another type or granularity",
    "form": "the form gives gold away",
    "translation": "a wrong or unnatural word for a foreign answer",
    "orthography": "spelling",
    "near-number": "a number or time too close to the truth",
    "duplicate": "asks what another question asks",
}
#: Every language, or a whole item.
ANY = "*"
TABLE = "review.tsv"


@dataclass(frozen=True)
class Verdict:
    """One row of the table; columns as in the docstring of this module."""

    id: str
    language: str
    subject: str
    verdict: str
    kind: str = ""
    reason: str = ""
    replacement: str = ""
    reader: str = ""

    def line(self) -> str:
        """The row as written in the table."""
        values = (
            self.id,
            self.language,
            self.subject,
            self.verdict,
            self.kind,
            self.reason,
            self.replacement,
            self.reader,
        )
        return "\t".join(values).rstrip("\t") + "\n"


def read(file: Path) -> tuple[Verdict, ...]:
    """The rows of a table in this form.

    Raises:
        DataError: it cannot be read.
    """
    return tuple(Verdict(*values) for values in split_rows(sources.read_text(file), len(fields(Verdict))))


@cache
def table() -> tuple[Verdict, ...]:
    """All rows of the table."""
    return tuple(Verdict(*values) for values in rows(TABLE, len(fields(Verdict))))


def dropped(question_id: str, language: str) -> str | None:
    """Why the question yields no item, or None."""
    return _reason(question_id, language, ANY, DROP)


def excluded(question_id: str, language: str, english: str) -> str | None:
    """Why an answer is no option of the question, or None.

    Args:
        english: the answer in English, folded.
    """
    return _reason(question_id, language, english, EXCLUDE)


def variant(question_id: str, language: str, english: str) -> str | None:
    """The text that is shown for an answer instead of the tables' own, or None."""
    texts = [row.replacement for row in _of(question_id, language) if (row.verdict, row.subject) == (VARIANT, english)]
    return texts[-1] if texts else None


def edits(question_id: str, language: str) -> tuple[tuple[str, str], ...]:
    """(old, new) pairs that correct the wording of the question."""
    edited = {row.subject: row.replacement for row in _of(question_id, language) if row.verdict == EDIT}
    return tuple(edited.items())


def _reason(question_id: str, language: str, subject: str, verdict: str) -> str | None:
    """The reason of the last row that rejects or keeps a subject, if it is this verdict."""
    decisions = [row for row in _of(question_id, language) if row.subject == subject and row.verdict in (KEEP, verdict)]
    return decisions[-1].reason if decisions and decisions[-1].verdict == verdict else None


def _of(question_id: str, language: str) -> tuple[Verdict, ...]:
    by_question = _by_question()
    return (*by_question.get((question_id, ANY), ()), *by_question.get((question_id, language), ()))


@cache
def _by_question() -> dict[tuple[str, str], tuple[Verdict, ...]]:
    by_question: dict[tuple[str, str], tuple[Verdict, ...]] = {}
    for row in table():
        by_question[row.id, row.language] = (*by_question.get((row.id, row.language), ()), row)
    return by_question
