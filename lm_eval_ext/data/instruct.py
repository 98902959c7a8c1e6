"""Instructions to train on, and the parallel tuples of CLO: their rows, files, checks and counts.

Two kinds of rows, one JSON object per line:

    Instruction   id, language, prompt, response
    Tuple         id, language, x_en, y_en, x_xx, y_xx: one question and its answer in English and in `language`

Both may have `source` (text), `cultural` (true: answered for the culture of the language, so that the two answers of a
tuple may say different things) and `split` (`train`, which is also what a row without it is, or `held_out`); an instruction
may have `history`, the earlier messages of its conversation. Rows of one `id` are one question in several languages.

A line that breaks the schema is an error that names it. What is left out for any other reason is counted in a `Report`.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lm_eval_ext import languages
from lm_eval_ext.data import sources
from lm_eval_ext.errors import DataError, LanguageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

#: The set shipped with the package.
MINI = "mini"
SPLITS = ("train", "held_out")
ROLES = ("user", "assistant")
_SHOWN = 10


@dataclass(frozen=True)
class Instruction:
    """A prompt and the response to learn, in one language; `history` is (role, text) of what was said before."""

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
        """What two splits must not share."""
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
        """What two splits must not share."""
        return normal_form(self.x_en)


Row = TypeVar("Row", bound=Instruction | Tuple)


@dataclass
class Report:
    """What became of the rows, by language; nothing is left out without a count here.

    Attributes:
        kept: rows at hand, by language.
        left_out: rows that are not, by reason and language.
        notes: what else is worth saying.
    """

    kept: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, reason: str, language: str, n: int = 1) -> None:
        """Count rows that are left out."""
        self.left_out.setdefault(reason, Counter())[language] += n

    def counted(self, rows: Iterable[Instruction | Tuple]) -> None:
        """Say which rows are kept, after all that was left out."""
        self.kept = Counter(row.language for row in rows)

    def lines(self) -> list[tuple[str, Counter[str]]]:
        """The lines of a table by language: what is kept first, then why others are not."""
        return [("kept", self.kept), *self.left_out.items()]

    def __str__(self) -> str:
        def told(counts: Counter[str]) -> str:
            return ", ".join(f"{code} {counts[code]}" for code in _ordered(counts)) or "none"

        return "\n".join([*(f"{what}: {told(counts)}" for what, counts in self.lines()), *self.notes])


def load(
    source: str | Path, wanted: Sequence[str] = (), split: str | None = "train"
) -> tuple[list[Instruction], Report]:
    """Instructions to train on or to hold out.

    Args:
        source: `mini`, the set shipped with the package, or a JSONL file; the sides of tuples are instructions too.
        wanted: languages; all there are, where none is named.
        split: one of `SPLITS`; None for all rows. A question of the held-out rows is never among the training rows.

    Raises:
        DataError: unknown source, a damaged file (the message names the lines), or a wanted language without a row.
        LanguageError: an unknown language is wanted.
    """
    rows, report = _rows(Instruction, source)
    return select(rows, report, str(source), wanted, split), report


def load_tuples(
    source: str | Path, wanted: Sequence[str] = (), split: str | None = "train"
) -> tuple[list[Tuple], Report]:
    """Parallel tuples to train on or to hold out; arguments, result and errors as of `load`. English has none."""
    rows, report = _rows(Tuple, source)
    kept = select(rows, report, str(source), [code for code in wanted if languages.get(code).code != "en"], split)
    if alike := sum(row.y_en == row.y_xx for row in kept):
        report.notes.append(f"{alike} tuples have one answer for both languages: they show no preference")
    return kept, report


def write(file: Path, rows: Iterable[Instruction | Tuple]) -> None:
    """Write rows as JSON lines, the file whole or not at all; values that are not given are left out.

    Raises:
        DataError: the file cannot be written.
    """
    sources.write(file, "".join(_json(row) + "\n" for row in rows).encode("utf-8"))


def sha256(rows: Iterable[Instruction | Tuple]) -> str:
    """Hash of what the rows say, in their order: the same for the same rows whatever file they are from."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_json(row).encode("utf-8") + b"\n")
    return digest.hexdigest()


def within(rows: Iterable[Row], limit: int, length: Callable[[Row], int], unit: str, report: Report) -> list[Row]:
    """The rows that are not longer than a limit; the others are counted in the report.

    Args:
        rows: to choose from.
        limit: the greatest length that is kept.
        length: how long a row is; of a tuple, its longest prompt and response.
        unit: what the length counts, such as `tokens`.
        report: gets the counts.
    """
    kept = []
    for row in rows:
        if length(row) <= limit:
            kept.append(row)
        else:
            report.leave_out(f"longer than {limit} {unit}", row.language)
    report.counted(kept)
    return kept


def normal_form(text: str) -> str:
    """A text for comparison: compatible characters unified, case and punctuation ignored."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() or unicodedata.combining(c) else " " for c in folded).split())


def parse(kind: type[Row], row: dict[str, Any]) -> Row:
    """A row of one of the two kinds from what a JSON line holds; keys that it does not know are ignored.

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
        raise DataError("language must not be en: a tuple sets another language beside English")
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


def _rows(kind: type[Row], source: str | Path) -> tuple[list[Row], Report]:
    if str(source) == MINI:
        return [parse(kind, row) for row in _mini() if (kind is Tuple) == ("x_xx" in row)], Report()
    file = Path(source)
    if kind is Instruction and "x_xx" in next(iter(sources.read_jsonl(file)), {}):
        tuples, report = read(Tuple, file)
        return [parse(kind, row) for row in _sides(tuples)], report
    return read(kind, file)


def _sides(tuples: Iterable[Tuple]) -> Iterator[dict[str, Any]]:
    """Both sides of tuples as instructions; the English one, which the tuples of an id share, once."""
    english: set[tuple[str, str, str]] = set()
    for row in tuples:
        common = {"id": row.id, "cultural": row.cultural, "source": row.source, "split": row.split}
        if (side := (row.id, row.x_en, row.y_en)) not in english:
            english.add(side)
            yield {**common, "language": "en", "prompt": row.x_en, "response": row.y_en}
        yield {**common, "language": row.language, "prompt": row.x_xx, "response": row.y_xx}


def _mini() -> Iterator[dict[str, Any]]:
    """The shipped set as rows of both kinds: every sixth question is held out, of all and of the cultural ones."""
    counts: Counter[bool] = Counter()
    for question in sources.read_jsonl(sources.packaged("instruct_mini/instruct.jsonl")):
        counts[question["cultural"]] += 1
        split = "train" if counts[question["cultural"]] % 6 else "held_out"
        common = {key: question[key] for key in ("id", "cultural", "source")} | {"split": split}
        x, y = question["prompt"], question["response"]
        for code in languages.LANGUAGES:
            yield {**common, "language": code, "prompt": x[code], "response": y[code]}
        for code in languages.NON_ENGLISH:
            yield {**common, "language": code, "x_en": x["en"], "y_en": y["en"], "x_xx": x[code], "y_xx": y[code]}


def read(kind: type[Row], file: Path) -> tuple[list[Row], Report]:
    """All rows of a JSONL file (or `.jsonl.gz`), and a note of the keys in it that mean nothing here.

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


def select(rows: Sequence[Row], report: Report, name: str, wanted: Sequence[str], split: str | None) -> list[Row]:
    """The rows in the wanted languages and split, each once; arguments and errors as of `load`.

    Args:
        rows: to choose from.
        report: gets the counts.
        name: what the rows are from, for the message.
        wanted: languages; all there are, where none is named.
        split: one of `SPLITS`; None for all rows.
    """
    if split is not None and split not in SPLITS:
        raise DataError(f"unknown split {split!r}; valid: {', '.join(SPLITS)}")
    codes = [languages.get(code).code for code in wanted] or _ordered(row.language for row in rows)
    held_out = {(row.language, row.question) for row in rows if row.split == "held_out"}
    kept: list[Row] = []
    said: set[str] = set()
    for row in rows:
        if row.language not in codes:
            report.leave_out("in a language that is not wanted", row.language)
        elif split is not None and row.split != split:
            report.leave_out(f"in the split {row.split}", row.language)
        elif row.split == "train" and (row.language, row.question) in held_out:
            report.leave_out("asked in the split held_out too", row.language)
        elif (text := _text(row)) in said:
            report.leave_out("repeated", row.language)
        else:
            said.add(text)
            kept.append(row)
    report.counted(kept)
    if empty := [code for code in codes if not report.kept[code]] or ([] if kept else ["any language"]):
        raise DataError(f"{name} has no row in {', '.join(empty)}{f' for {split}' if split else ''}. It has:\n{report}")
    return kept


def hold_out(rows: Iterable[Row], share: float) -> list[Row]:
    """The rows with their split set: about a share of the ids is held out, drawn by a hash of the id.

    The rows of one id are in one split, in whatever language, and so are the turns `id/1`, `id/2` of one conversation.

    Raises:
        DataError: the share is not between 0 and 1.
    """
    if not 0 <= share < 1:
        raise DataError(f"the share to hold out must be from 0 to below 1, got {share}")

    def drawn(row: Row) -> str:
        number = int(hashlib.sha256(row.id.partition("/")[0].encode()).hexdigest()[:8], 16)
        return "held_out" if number < share * 2**32 else "train"

    return [replace(row, split=drawn(row)) for row in rows]


def pair_up(rows: Iterable[Instruction], report: Report) -> list[Tuple]:
    """The tuples of instructions that are in English and another language, by their id.

    Those without a counterpart, of another split than it, or with the same prompt in both languages are counted.
    """
    by_id: dict[str, dict[str, Instruction]] = {}
    for row in rows:
        by_id.setdefault(row.id, {})[row.language] = row
    made = []
    for known in by_id.values():
        english = known.pop("en", None)
        if english is not None and not known:
            report.leave_out("in no other language", "en")
        for code, row in known.items():
            if english is None:
                report.leave_out("not in English", code)
            elif row.history or english.history:
                report.leave_out("later turn of a conversation", code)
            elif row.split != english.split:
                report.leave_out("in another split than in English", code)
            elif row.prompt == english.prompt:
                report.leave_out("the same prompt as in English", code)
            else:
                sides = english.prompt, english.response, row.prompt, row.response
                cultural = row.cultural or english.cultural
                made.append(Tuple(row.id, code, *sides, cultural=cultural, source=row.source, split=row.split))
    report.counted(made)
    return made


def _text(row: Instruction | Tuple) -> str:
    """What makes two rows the same, whatever they are called."""
    return _json(row, without=("id", "source", "cultural", "split"))


def _json(row: Instruction | Tuple, without: Sequence[str] = ()) -> str:
    defaults = {f.name: f.default for f in fields(row)}
    values = {name: value for name, value in asdict(row).items() if name not in without and value != defaults[name]}
    return json.dumps(values, ensure_ascii=False)


def _ordered(codes: Iterable[str]) -> list[str]:
    """Languages in the package's order."""
    present = set(codes)
    return [code for code in languages.LANGUAGES if code in present]
