"""BMLAMA-53 (Qi et al., 2023; arXiv 2310.10378): facts with a gap and candidates for it, parallel in the seven languages.

Upstream the right candidate is always the last: here the order is drawn by a hash, the same in every language. A candidate
that upstream also lists as an answer of the same fact is no distractor, nor is one with the same text as another in any of
the languages.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lm_eval_ext import languages
from lm_eval_ext.data import sources
from lm_eval_ext.errors import DataError
from lm_eval_ext.fingerprints import hash_text
from lm_eval_ext.languages import LANGUAGES

if TYPE_CHECKING:
    from pathlib import Path

    from datasets import Dataset

FILE = "bmlama53/bmlama53_7lang.jsonl"
SPLITS = ("test", "dev")
#: Relations whose subjects mostly have one answer, or all (neighbours, twin cities and diplomatic relations too).
RELATIONS = ("near-functional", "all")
MIN_OPTIONS = 4

_GAP = "<mask>"
_DEV_SHARE = 4


def load(
    language: str,
    split: str = "test",
    relations: str = "near-functional",
    candidates: int | str = 0,
    shuffle_seed: int | str = 0,
    **_: object,
) -> dict[str, Dataset]:
    """The facts in a language as the harness asks for them (`custom_dataset`).

    Columns: id, language, relation (English template), subject, question (the sentence with its gap), prompt (the text
    before the gap), options (candidates), continuations (each with the rest of the sentence), gold (index), split,
    same_as_english (the right candidate is the same text as in English, so that the fact does not test transfer).

    Args:
        language: one of the seven.
        split: `test`, or `dev` (a quarter of the facts, drawn by a hash, the same in every language) for choosing layers.
        relations: `near-functional` or `all`.
        candidates: at most so many options, the right one among them; 0 for all (4 to 10).
        shuffle_seed: seed of the order of the options.

    Raises:
        LanguageError: not one of the seven.
        DataError: unknown split or relations, an invalid number; the file is missing, unreachable or changed.
    """
    from datasets import Dataset

    code = languages.get(language).code
    for what, value, valid in (("split", split, SPLITS), ("relations", relations, RELATIONS)):
        if value not in valid:
            raise DataError(f"unknown {what} {value!r} of bmlama; valid: {', '.join(valid)}")
    try:
        seed, max_options = int(shuffle_seed), int(candidates)
    except (TypeError, ValueError):
        raise DataError(
            f"shuffle_seed and candidates of bmlama must be whole numbers, not {shuffle_seed!r} and {candidates!r}"
        ) from None
    if max_options and max_options < 2:
        raise DataError(f"candidates of bmlama must be 0 (all) or at least 2, not {max_options}")

    file = sources.path(FILE)
    documents = []
    for row, chosen in _rows(file, file.stat().st_mtime_ns):
        if _split(row) == split and (row["near_functional"] or relations == "all") and len(chosen) >= MIN_OPTIONS:
            order = sorted(chosen[: max_options or None], key=lambda index: hash_text(seed, row["row"], index))
            documents.append(_document(row, code, order))
    return {"test": Dataset.from_list(documents)}


@lru_cache(maxsize=2)
def _rows(file: Path, _: int) -> list[tuple[dict[str, Any], list[int]]]:
    """The rows, each with the candidates that are options; read once for all languages.

    Upstream sorts by relation; here the order is drawn by a hash, so that `--limit` takes a representative part.
    """
    rows = sorted(sources.read_jsonl(file), key=lambda row: hash_text("order", row["row"]))
    answers = _answers(rows)
    return [(row, _options(row, answers[_fact(row)])) for row in rows]


def _document(row: dict[str, Any], code: str, order: list[int]) -> dict[str, Any]:
    fact, english = row[code], row["en"]
    before, _, after = fact["cloze"].partition(_GAP)
    prompt = before.rstrip()
    options = [fact["candidates"][index] for index in order]
    gold = fact["candidates"][fact["gold"]]
    return {
        "id": f"bmlama-{row['row']}",
        "language": code,
        "relation": row["template_en"],
        "subject": fact["subject"],
        "question": fact["cloze"].replace(_GAP, "___"),
        "prompt": prompt,
        "options": options,
        "continuations": [before[len(prompt) :] + option + after for option in options],
        "gold": order.index(fact["gold"]),
        "split": _split(row),
        "same_as_english": code != "en" and gold == english["candidates"][english["gold"]],
    }


def _options(row: dict[str, Any], answers: set[str]) -> list[int]:
    """The candidates that are options, the right one first, the others in an order drawn by a hash."""
    gold = row["en"]["gold"]
    others = [index for index in range(len(row["en"]["candidates"])) if index != gold]
    chosen = [gold]
    for index in sorted(others, key=lambda index: hash_text("candidate", row["row"], index)):
        if row["en"]["candidates"][index] not in answers and not any(_same_text(row, index, other) for other in chosen):
            chosen.append(index)
    return chosen


def _same_text(row: dict[str, Any], a: int, b: int) -> bool:
    """Whether two candidates have the same text in any language."""
    texts = (row[code]["candidates"] for code in LANGUAGES)
    return any(candidates[a].casefold() == candidates[b].casefold() for candidates in texts)


def _answers(rows: list[dict[str, Any]]) -> dict[tuple[str, str], set[str]]:
    """Relation and subject -> every answer that upstream gives, in English."""
    answers: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        answers.setdefault(_fact(row), set()).add(row["en"]["candidates"][row["en"]["gold"]])
    return answers


def _fact(row: dict[str, Any]) -> tuple[str, str]:
    return row["template_en"], row["en"]["subject"]


def _split(row: dict[str, Any]) -> str:
    """By fact: rows with several answers of one subject stay together."""
    return "dev" if int(hash_text("split", *_fact(row)), 16) % _DEV_SHARE == 0 else "test"
