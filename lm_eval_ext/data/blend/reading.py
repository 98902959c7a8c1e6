"""Reading the items one by one: what a reader is shown, and what the answer means.

The command `lm-eval-ext data review` asks; the verdicts are rows of the table of `review`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_eval_ext.data.blend import dataset, review
from lm_eval_ext.data.blend.review import ANY, Verdict
from lm_eval_ext.data.blend.source import corpus, fold
from lm_eval_ext.errors import DataError
from lm_eval_ext.io import write_file
from lm_eval_ext.languages import LANGUAGES

if TYPE_CHECKING:
    from pathlib import Path

    from lm_eval_ext.data.blend.items import Item

_LETTERS = "ABCD"
HELP = f"""k                      keep: natural, true, and only gold is right here
x B CLASS REASON       exclude option B: another one is taken for it
v B NEW TEXT           show option B as NEW TEXT
e OLD => NEW           replace OLD, which stands once in the question
d CLASS REASON         drop the item
s                      skip it for now
q                      quit; the next start goes on here
Several verdicts on one item: one a line, then k, d or s.
Classes: {", ".join(review.CLASSES)}"""


@dataclass(frozen=True)
class Reading:
    """One item as a reader sees it."""

    item: Item

    def text(self) -> str:
        """The item: question, options with their countries, the answers of the own country, earlier verdicts."""
        item = self.item
        local = corpus().countries[LANGUAGES[item.language].country][item.question_id].answers
        lines = [f"{item.id} ({item.language}, {item.topic})", item.question, f"  {item.question_about}"]
        for number, option in enumerate(item.options):
            mark = "gold" if number == item.gold else "    "
            lines.append(
                f"  {_LETTERS[number]}. {option.text}  [{option.english}; {', '.join(option.countries)}] {mark}"
            )
        answers = "; ".join(f"{'/'.join(answer.local)} ({answer.votes})" for answer in local)
        lines.append(f"  answers of the country (votes): {answers}")
        rows = [row for row in review.table() if (row.id, row.language) == (item.question_id, item.language)]
        lines += [f"  earlier: {row.verdict} {row.subject} {row.kind} {row.reason}".rstrip() for row in rows]
        return "\n".join(lines)

    def verdict(self, answer: str, reader: str) -> Verdict:
        """The row that an answer stands for.

        Raises:
            DataError: it is none of those of `HELP`; the message says what was expected.
        """
        command, _, rest = answer.strip().partition(" ")
        item = self.item
        if command == "k" and not rest:
            return self._row(ANY, review.KEEP, reader)
        if command == "d":
            kind, reason = _class_and_reason(rest)
            return self._row(ANY, review.DROP, reader, kind, reason)
        if command == "e":
            old, arrow, new = (part.strip() for part in rest.partition("=>"))
            if not arrow or item.question.count(old) != 1 or not new:
                raise DataError("e needs OLD => NEW, where OLD stands exactly once in the question")
            return self._row(old, review.EDIT, reader, "wording", "", new)
        if command in ("x", "v"):
            letter, _, rest = rest.strip().partition(" ")
            if len(letter) != 1 or letter.upper() not in _LETTERS:
                raise DataError(f"{command} needs a letter from A to D, not {letter!r}")
            number = _LETTERS.index(letter.upper())
            subject = fold(item.options[number].english)
            if command == "v":
                if not rest.strip():
                    raise DataError("v needs the new text of the option")
                return self._row(subject, review.VARIANT, reader, "wording", "", rest.strip())
            if number == item.gold:
                raise DataError(f"{letter.upper()} is gold: drop the item (d), or show gold in other words (v)")
            kind, reason = _class_and_reason(rest)
            return self._row(subject, review.EXCLUDE, reader, kind, reason)
        raise DataError(f"no such verdict: {answer.strip()!r}\n{HELP}")

    def _row(
        self, subject: str, verdict: str, reader: str, kind: str = "", reason: str = "", replacement: str = ""
    ) -> Verdict:
        return Verdict(self.item.question_id, self.item.language, subject, verdict, kind, reason, replacement, reader)


def unread(language: str, reader: str, file: Path) -> list[Reading]:
    """The first items of all questions in a language that this reader has not kept or dropped in the file yet."""
    rows = review.read(file) if file.exists() and file.stat().st_size else ()
    done = {
        row.id
        for row in rows
        if (row.language, row.reader, row.subject) == (language, reader, ANY) and row.verdict in review.FINAL
    }
    items = dataset.arranged(corpus(), language, 0)
    return [Reading(item) for item in items if item.id == item.question_id not in done]


def append(file: Path, row: Verdict) -> None:
    """Add a row at the end of a table.

    Raises:
        OutputError: it cannot be written.
    """
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    write_file(file, before + ("" if before.endswith("\n") or not before else "\n") + row.line())


def _class_and_reason(text: str) -> tuple[str, str]:
    kind, _, reason = text.strip().partition(" ")
    if kind not in review.CLASSES or not reason.strip():
        raise DataError(f"a class and a reason are needed, not {text.strip()!r}; classes: {', '.join(review.CLASSES)}")
    return kind, " ".join(reason.split())
