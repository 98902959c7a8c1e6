"""Rows to train on: instructions, and the parallel tuples of CLO; their files, checks and counts.

Two kinds of rows, one JSON object per line:

    Instruction   id, language, prompt, response
    Tuple         id, language, x_en, y_en, x_xx, y_xx: one question and its answer in English and in `language`

Both may have `source` (text), `cultural` (true: answered for the culture of the language, so that the two answers of a
tuple may say different things) and `split` (`train`, which is also what a row without it is, or `held_out`); an instruction
may have `history`, the earlier messages of its conversation. Rows of one `id` are one question in several languages.

A line that breaks the schema is an error that names the line. Rows left out for another reason are counted in a `Report`.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from lm_eval_ext import languages
from lm_eval_ext.data import sources
from lm_eval_ext.errors import DataError, LanguageError
from lm_eval_ext.fingerprints import hash_lines
from lm_eval_ext.io import write_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

SPLITS = ("train", "held_out")
ROLES = ("user", "assistant")
_SHOWN = 10


@dataclass(frozen=True)
class Instruction:
    """A prompt and the response to learn, in one language; `history` is (role, text) of the earlier messages."""

    id: str
    language: str
    prompt: str
    response: str
    history: tuple[tuple[str, str], ...] = ()
    cultural: bool = False
    source: str = ""
    split: str = "train"

    @property
    def question(self) -> str:
        """The question in normal form: two splits must not share it."""
        return normal_form(" ".join([*(text for _, text in self.history), self.prompt]))


@dataclass(frozen=True)
class Tuple:
    """A question x and its answer y, in English and in `language` (xx): the unit of CLO (paper: L_CL)."""

    id: str
    language: str
    x_en: str
    y_en: str
    x_xx: str
    y_xx: str
    cultural: bool = False
    source: str = ""
    split: str = "train"

    @property
    def question(self) -> str:
        """The question in normal form: two splits must not share it."""
        return normal_form(self.x_en)


Row = TypeVar("Row", bound=Instruction | Tuple)


@dataclass
class Report:
    """How many rows are kept and left out, by language and reason.

    Attributes:
        kept: rows kept, by language.
        left_out: rows left out, by reason and language.
        notes: further remarks.
    """

    kept: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, reason: str, language: str, n: int = 1) -> None:
        """Count rows that are left out."""
        self.left_out.setdefault(reason, Counter())[language] += n

    def counted(self, rows: Iterable[Instruction | Tuple]) -> None:
        """Set the counts of the rows that are kept."""
        self.kept = Counter(row.language for row in rows)

    def lines(self) -> list[tuple[str, Counter[str]]]:
        """The rows of a table by language: rows kept, then rows left out by reason."""
        return [("kept", self.kept), *self.left_out.items()]

    def __str__(self) -> str:
        def by_language(counts: Counter[str]) -> str:
            return ", ".join(f"{code} {counts[code]}" for code in ordered(counts)) or "none"

        return "\n".join([*(f"{what}: {by_language(counts)}" for what, counts in self.lines()), *self.notes])


def normal_form(text: str) -> str:
    """A text for comparison: compatible characters unified, case and punctuation ignored."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() or unicodedata.combining(c) else " " for c in folded).split())


def parse(kind: type[Row], row: dict[str, Any]) -> Row:
    """A row of one of the two kinds from a JSON object; unknown keys are ignored.

    Raises:
        DataError: a field is missing, empty or of another type, or the two sides of a tuple do not fit.
    """
    known = {f.name: f for f in fields(kind)}
    if missing := [name for name, f in known.items() if f.default is MISSING and name not in row]:
        raise DataError(f"misses {', '.join(missing)}; it has {', '.join(row) or 'nothing'}")
    values = {name: _value(name, row[name]) for name in known if name in row}
    parsed = kind(**values)
    if isinstance(parsed, Tuple):
        _check_sides(parsed)
    return parsed


def _check_sides(row: Tuple) -> None:
    if row.language == "en":
        raise DataError("language must not be en: a tuple pairs another language with English")
    if row.x_en == row.x_xx:
        raise DataError("x_en and x_xx are the same text: one of them is not in its language")


def _value(name: str, value: Any) -> Any:
    if name == "language":
        try:
            return languages.get(value if isinstance(value, str) else repr(value)).code
        except LanguageError as error:
            raise DataError(str(error)) from None
    if name == "id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if name == "history":
        return _history(value)
    if name == "cultural":
        if not isinstance(value, bool):
            raise DataError(f"cultural must be true or false, got {value!r}")
        return value
    if name == "split" and value not in SPLITS:
        raise DataError(f"unknown split {value!r}; valid: {', '.join(SPLITS)}")
    if not isinstance(value, str) or not (value.strip() or name == "source"):
        raise DataError(f"{name} must be a text that is not empty, got {str(value)[:80]!r}")
    return value.strip()


def _history(value: Any) -> tuple[tuple[str, str], ...]:
    turns = [tuple(turn) for turn in value if isinstance(turn, list)] if isinstance(value, list) else []
    in_turn = len(turns) % 2 == 0 and all(
        len(turn) == 2 and turn[0] == ROLES[index % 2] and isinstance(turn[1], str) and turn[1].strip()
        for index, turn in enumerate(turns)
    )
    if not in_turn or not isinstance(value, list) or len(turns) != len(value):
        raise DataError(
            'history must be pairs ["user", text], ["assistant", text] in turn, ending with the assistant; '
            f"got {str(value)[:80]!r}"
        )
    return tuple((role, text.strip()) for role, text in turns)


def read(kind: type[Row], file: Path) -> tuple[list[Row], Report]:
    """All rows of a JSONL file (or `.jsonl.gz`), and a report that notes unknown keys.

    Raises:
        DataError: lines that break the schema; the message names the first of them and says how many there are.
    """
    known = {f.name for f in fields(kind)}
    rows: list[Row] = []
    problems: list[str] = []
    ignored: Counter[str] = Counter()
    seen: dict[tuple[str, str], int] = {}
    lines = sources.read_numbered_jsonl(file)
    for number, line in lines:
        ignored.update(key for key in line if key not in known)
        try:
            row = parse(kind, line)
        except DataError as error:
            problems.append(f"line {number}: {error}")
            continue
        if (first := seen.setdefault((row.language, row.id), number)) != number:
            problems.append(f"line {number}: id {row.id!r} occurs twice in {row.language}, first in line {first}")
        rows.append(row)
    problems += _unlike_english(rows)
    if problems:
        shown = [*problems[:_SHOWN], *(["..."] if len(problems) > _SHOWN else [])]
        raise DataError("\n  ".join([f"{file}: {len(problems)} of its {len(lines)} rows are wrong:", *shown]))
    report = Report(notes=[f"{file}: ignored {key!r} of {n} rows" for key, n in ignored.items()])
    return rows, report


def _unlike_english(rows: Sequence[Instruction | Tuple]) -> list[str]:
    """Tuples of one id whose English sides differ: they are not translations of one question."""
    english: dict[str, Tuple] = {}
    problems = []
    for row in rows:
        if isinstance(row, Tuple):
            first = english.setdefault(row.id, row)
            if (first.x_en, first.y_en) != (row.x_en, row.y_en) and not row.cultural:
                problems.append(f"id {row.id!r}: its English side in {row.language} is not that in {first.language}")
    return problems


def write(file: Path, rows: Iterable[Instruction | Tuple]) -> None:
    """Write rows as JSON lines, atomically; default values are left out.

    Raises:
        OutputError: the file cannot be written.
    """
    write_file(file, "".join(as_json(row) + "\n" for row in rows))


def sha256(rows: Iterable[Instruction | Tuple]) -> str:
    """Hash of the rows' content, in their order: the same for the same rows in whatever file."""
    return hash_lines(map(as_json, rows))


def as_json(row: Instruction | Tuple, without: Sequence[str] = ()) -> str:
    """A row as a JSON line, without default values and without some fields."""
    defaults = {f.name: f.default for f in fields(row)}
    values = {name: value for name, value in asdict(row).items() if name not in without and value != defaults[name]}
    return json.dumps(values, ensure_ascii=False)


def ordered(codes: Iterable[str]) -> list[str]:
    """Languages in the package's order, others after them."""
    present = dict.fromkeys(codes)
    return [
        *(code for code in languages.LANGUAGES if code in present),
        *sorted(present.keys() - languages.LANGUAGES.keys()),
    ]
