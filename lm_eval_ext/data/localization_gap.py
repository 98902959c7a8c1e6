"""localization_gap (Veselovsky et al., arXiv 2504.10191): five options, one for each of five cultures.

The right option is that of the culture of the language the question is asked in. Every question exists without and with a
sentence that says where the asker lives: the second is the upper bound of the first. 120 questions: names, cities and
everyday culture, parallel in Turkish, Bengali, French, Russian and English.

What is ours: the order of the options (upstream draws one per row; here it is the same in every language, with and without
the sentence, and every culture stands equally often at each position), the splits, and what is left out or worded anew:

- a question whose options have the same text twice in a language is left out in that language;
- upstream asks the 50 English questions on names in the words of those on cities; they are asked here as in the other
  languages.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from lm_eval_ext import languages
from lm_eval_ext.data import sources
from lm_eval_ext.errors import DataError, LanguageError
from lm_eval_ext.fingerprints import hash_json, hash_text
from lm_eval_ext.languages import KNOWN

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from datasets import Dataset

FILE = "localization_gap/five_choice.jsonl"
#: Question -> split, frozen.
SPLITS_FILE = "localization_gap_splits.tsv"
LANGUAGES = ("tr", "bn", "fr", "ru", "en")
SPLITS = ("test", "dev")
N_QUESTIONS = 120
#: The culture of each language, as upstream calls it; the order in which options are arranged.
CULTURES = {"tr": "tr", "bn": "bn", "fr": "fr", "ru": "ru", "en": "us"}
LETTERS = "ABCDE"

#: The first questions on cities and on culture; those before are on names.
_FIRST_OF_SUBTASK = (50, 70)
_SUBTASKS = {"names": "names", "cities": "cities", "o1": "culture"}
#: Upstream's English questions on names are those on cities.
_ENGLISH_NAMES = "Which of the following names is most likely my name?"
#: Questions that share so many options in any language are one cluster.
_SHARED = 3
_DEV_SHARE = 3


class Place(NamedTuple):
    """Where a question is, by the frozen table.

    Attributes:
        cluster: number of the first question that has nearly the same options.
        split: `dev` or `test`, the same for a cluster.
        sha256: the first 16 digits of the hash of its options in all languages.
    """

    cluster: int
    split: str
    sha256: str


def load(
    language: str, named: bool = False, split: str = "test", shuffle_seed: int | str = 0, **_: object
) -> dict[str, Dataset]:
    """The questions in a language, as the harness asks for them (`custom_dataset`, under the name `test`).

    Args:
        language: tr, bn, fr, ru or en.
        named: whether the sentence that says where the asker lives stands before the question.
        split: `test`, or `dev` for choosing layers and for extracting vectors.
        shuffle_seed: seed of the order of the options.

    Raises:
        LanguageError: another language.
        DataError: an unknown split; the file is missing, unreachable or changed.
    """
    from datasets import Dataset

    return {"test": Dataset.from_list(documents(language, named, split, shuffle_seed))}


def documents(
    language: str, named: bool = False, split: str = "test", shuffle_seed: int | str = 0
) -> list[dict[str, Any]]:
    """The questions as plain rows, arguments as for `load`.

    Columns: id and cluster (the same in every language), language, country (the local one), subtask (names, cities,
    culture), question, options (five texts), countries (of each option, a list of one), gold (index of the local option),
    context (whether the country is named), split.
    """
    code = _code(language)
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r} of localization_gap; valid: {', '.join(SPLITS)}")
    table = places()
    rows = _questions(code, named)
    return [
        _document(rows[number], number, code, named, order)
        for number, order in _orders(str(shuffle_seed)).items()
        if table[number].split == split and number in rows
    ]


def pairs(language: str) -> list[tuple[str, str]]:
    """Pairs for extracting the LOC vector, of the dev split: the whole prompt with the country named, and without.

    As upstream, a prompt is the question with its options (alone, the questions on names are all the same).

    Raises:
        LanguageError: another language than the five.
        DataError: the file is missing, unreachable or changed.
    """
    named, plain = (documents(language, context, "dev") for context in (True, False))
    return [(_prompt(with_country), _prompt(without)) for with_country, without in zip(named, plain, strict=True)]


@cache
def places() -> dict[int, Place]:
    """The frozen table: question number -> its place."""
    lines = sources.packaged(SPLITS_FILE).read_text(encoding="utf-8").splitlines()
    cells = (line.split("\t") for line in lines if not line.startswith("#"))
    return {int(number): Place(int(cluster), split, sha256) for number, cluster, split, sha256 in cells}


def derive() -> dict[int, Place]:
    """The table, computed from the data: a third of each subtask's clusters, drawn by a hash, is `dev`."""
    by_language = {code: _rows(*_file())[code, False] for code in LANGUAGES}
    clusters = list(range(N_QUESTIONS))
    for number in range(N_QUESTIONS):
        for earlier in range(number):
            if any(_alike(rows[number], rows[earlier]) for rows in by_language.values()):
                clusters[number] = clusters[earlier]
                break
    splits: dict[int, str] = {}
    for subtask in _SUBTASKS:
        own = sorted(
            {clusters[n] for n in range(N_QUESTIONS) if by_language["en"][n]["subtask"] == subtask} - {*splits}
        )
        drawn = sorted(own, key=lambda cluster: hash_text("localization_gap", str(cluster)))
        splits |= {cluster: "dev" if rank < len(drawn) // _DEV_SHARE else "test" for rank, cluster in enumerate(drawn)}
    return {
        number: Place(
            clusters[number],
            splits[clusters[number]],
            hash_json([rows[number]["by_culture"] for rows in by_language.values()], ascii_only=False)[:16],
        )
        for number in range(N_QUESTIONS)
    }


def table_text() -> str:
    """The content of the frozen table, as `derive` computes it."""
    lines = [f"{number}\t{cluster}\t{split}\t{sha256}" for number, (cluster, split, sha256) in derive().items()]
    return "\n".join(["# question\tcluster\tsplit\thash of its options (localization_gap.table_text)", *lines]) + "\n"


def _code(language: str) -> str:
    if (code := languages.normalise(language)) not in LANGUAGES:
        raise LanguageError(f"unknown language {language!r} of localization_gap; valid: {', '.join(LANGUAGES)}")
    return code


def _file() -> tuple[Path, int]:
    file = sources.path(FILE)
    return file, file.stat().st_mtime_ns


@lru_cache(maxsize=2)
def _rows(file: Path, _: int) -> dict[tuple[str, bool], list[dict[str, Any]]]:
    """The rows of the file by language and context, each list in the order of the questions."""
    code_of = {KNOWN[code].name: code for code in LANGUAGES}
    rows: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    try:
        for row in sources.read_jsonl(file):
            rows.setdefault((code_of[row["lang"]], row["context"]), []).append(row)
        whole = all(len(rows[code, named]) == N_QUESTIONS for code in LANGUAGES for named in (False, True))
    except (KeyError, TypeError) as error:
        raise DataError(f"{file} is not the localization_gap file (row without {error}): fetch it again") from None
    if not whole:
        raise DataError(f"{file} must have {N_QUESTIONS} questions in every language, with and without context")
    return rows


def _questions(code: str, named: bool) -> dict[int, dict[str, Any]]:
    """The rows of a language whose options are five different texts, by the number of the question."""
    rows = _rows(*_file())[code, named]
    return {n: row for n, row in enumerate(rows) if len({text.casefold() for text in row["options"]}) == len(CULTURES)}


def _document(row: Mapping[str, Any], number: int, code: str, named: bool, order: list[str]) -> dict[str, Any]:
    place = places()[number]
    question = row["question"]
    if code == "en" and row["subtask"] == "names":
        # The sentence of the context ends with a full stop, the question has none.
        sentence = f"{question.partition('. ')[0]}. " if named else ""
        question = sentence + _ENGLISH_NAMES
    return {
        "id": _name(number),
        "cluster": _name(place.cluster),
        "language": code,
        "country": KNOWN[code].country,
        "subtask": _SUBTASKS[row["subtask"]],
        "question": question,
        "options": [row["by_culture"][CULTURES[other]] for other in order],
        "countries": [[KNOWN[other].country] for other in order],
        "gold": order.index(code),
        "context": named,
        "split": place.split,
    }


@lru_cache(maxsize=8)
def _orders(seed: str) -> dict[int, list[str]]:
    """The order of the cultures' options in every question.

    Within a split and subtask (the blocks of the table), five questions share an order that is drawn by a hash and turned
    by one position from each to the next, so that every culture stands once at each of the five.
    """
    blocks: dict[tuple[str, int], list[int]] = {}
    for number, place in places().items():
        subtask = sum(number >= first for first in _FIRST_OF_SUBTASK)
        blocks.setdefault((place.split, subtask), []).append(number)
    orders = {}
    for numbers in blocks.values():
        for rank, number in enumerate(sorted(numbers, key=lambda n: hash_text("order", seed, str(n)))):
            drawn = sorted(
                LANGUAGES, key=lambda code: hash_text("cultures", seed, str(numbers[0]), str(rank // 5), code)
            )
            orders[number] = drawn[rank % 5 :] + drawn[: rank % 5]
    return dict(sorted(orders.items()))


def _prompt(document: Mapping[str, Any]) -> str:
    options = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, document["options"], strict=True))
    return f"{document['question']}\n{options}Answer:"


def _alike(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    first, second = ({text.casefold() for text in options} for options in (row["options"], other["options"]))
    return len(first & second) >= _SHARED


def _name(number: int) -> str:
    return f"lg-{number:03}"
