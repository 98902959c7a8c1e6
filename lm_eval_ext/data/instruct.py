"""Instructions to train on, and the parallel tuples of CLO: loaded by language and split, held out, paired up.

The rows and their files are defined in `rows`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext import languages
from lm_eval_ext.data import sources
from lm_eval_ext.data.rows import (
    ROLES,
    SPLITS,
    Instruction,
    Report,
    Row,
    Tuple,
    as_json,
    normal_form,
    ordered,
    parse,
    read,
    sha256,
    write,
)
from lm_eval_ext.errors import DataError
from lm_eval_ext.fingerprints import hash_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = [
    "MINI",
    "ROLES",
    "SPLITS",
    "Instruction",
    "Report",
    "Tuple",
    "hold_out",
    "load",
    "load_tuples",
    "normal_form",
    "pair_up",
    "parse",
    "read",
    "select",
    "sha256",
    "within",
    "write",
]

#: The set shipped with the package.
MINI = "mini"


def load(
    source: str | Path, wanted: Sequence[str] = (), split: str | None = "train"
) -> tuple[list[Instruction], Report]:
    """Instructions to train on or to hold out.

    Args:
        source: `mini`, the set shipped with the package, or a JSONL file; the sides of tuples are instructions too.
        wanted: languages; all if empty.
        split: one of `SPLITS`; None for all rows. Questions of held-out rows are removed from the training rows.

    Raises:
        DataError: unknown source, a damaged file (the message names the lines), or a wanted language without rows.
        LanguageError: an unknown language.
    """
    rows, report = _rows(Instruction, source)
    return select(rows, report, str(source), wanted, split), report


def load_tuples(
    source: str | Path, wanted: Sequence[str] = (), split: str | None = "train"
) -> tuple[list[Tuple], Report]:
    """Parallel tuples to train on or to hold out; arguments, result and errors as of `load`. English has none."""
    rows, report = _rows(Tuple, source)
    kept = select(rows, report, str(source), [code for code in wanted if languages.get(code).code != "en"], split)
    if same_answer := sum(row.y_en == row.y_xx for row in kept):
        report.notes.append(f"{same_answer} tuples have one answer for both languages: they show no preference")
    return kept, report


def within(rows: Iterable[Row], limit: int, length: Callable[[Row], int], unit: str, report: Report) -> list[Row]:
    """The rows up to a maximum length; the others are counted in the report.

    Args:
        rows: to choose from.
        limit: maximum length.
        length: of a row; of a tuple, that of its longest prompt and response.
        unit: of the length, such as `tokens`.
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


def select(rows: Sequence[Row], report: Report, name: str, wanted: Sequence[str], split: str | None) -> list[Row]:
    """The rows in the wanted languages and split, each once; arguments and errors as of `load`.

    Args:
        rows: to choose from.
        report: gets the counts.
        name: of the rows' source, for the message.
        wanted: languages; all if empty.
        split: one of `SPLITS`; None for all rows.
    """
    if split is not None and split not in SPLITS:
        raise DataError(f"unknown split {split!r}; valid: {', '.join(SPLITS)}")
    codes = [languages.get(code).code for code in wanted] or ordered(row.language for row in rows)
    held_out = {(row.language, row.question) for row in rows if row.split == "held_out"}
    kept: list[Row] = []
    seen: set[str] = set()
    for row in rows:
        if row.language not in codes:
            report.leave_out("in a language that is not wanted", row.language)
        elif split is not None and row.split != split:
            report.leave_out(f"in the split {row.split}", row.language)
        elif row.split == "train" and (row.language, row.question) in held_out:
            report.leave_out("asked in the split held_out too", row.language)
        elif (text := _text(row)) in seen:
            report.leave_out("repeated", row.language)
        else:
            seen.add(text)
            kept.append(row)
    report.counted(kept)
    if empty := [code for code in codes if not report.kept[code]] or ([] if kept else ["any language"]):
        raise DataError(f"{name} has no row in {', '.join(empty)}{f' for {split}' if split else ''}. It has:\n{report}")
    return kept


def hold_out(rows: Iterable[Row], share: float) -> list[Row]:
    """The rows with their split set: about `share` of the ids are held out, drawn by a hash of the id.

    The rows of one id are in one split, in whatever language, and so are the turns `id/1`, `id/2` of one conversation.

    Raises:
        DataError: the share is not between 0 and 1.
    """
    if not 0 <= share < 1:
        raise DataError(f"the share to hold out must be from 0 to below 1, got {share}")

    def drawn(row: Row) -> str:
        number = int(hash_text(row.id.partition("/")[0])[:8], 16)
        return "held_out" if number < share * 2**32 else "train"

    return [replace(row, split=drawn(row)) for row in rows]


def pair_up(rows: Iterable[Instruction], report: Report) -> list[Tuple]:
    """The tuples of instructions that are in English and another language, by their id.

    Those without a counterpart, of another split than it, or with the same prompt in both languages are counted.
    """
    by_id: dict[str, dict[str, Instruction]] = {}
    for row in rows:
        by_id.setdefault(row.id, {})[row.language] = row
    tuples = []
    for by_language in by_id.values():
        english = by_language.pop("en", None)
        if english is not None and not by_language:
            report.leave_out("in no other language", "en")
        for code, row in by_language.items():
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
                tuples.append(Tuple(row.id, code, *sides, cultural=cultural, source=row.source, split=row.split))
    report.counted(tuples)
    return tuples


def _text(row: Instruction | Tuple) -> str:
    """The content of a row; two rows with the same content are duplicates."""
    return as_json(row, without=("id", "source", "cultural", "split"))
