"""BLEnD as its authors publish it: questions and voted answers of sixteen countries and regions.

Myung et al., "BLEnD: A Benchmark for LLMs on Everyday Knowledge in Diverse Cultures and Languages", NeurIPS 2024 Datasets
and Benchmarks. Licence CC-BY-SA-4.0. The files come through `lm_eval_ext.data.sources`, at a pinned commit.

Two shapes of the annotations are read: the GitHub JSON keyed by question id, and the records of the Hugging Face Hub
(`data/annotations_hf/*.json`: a list, or one object per line).
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lm_eval_ext.data import sources
from lm_eval_ext.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

#: Countries annotated in one of the seven languages, as BLEnD spells them.
COUNTRIES = ("US", "UK", "Spain", "Mexico", "Indonesia", "Greece", "South_Korea", "North_Korea", "China", "Algeria")
#: Regions of which only the English answers are used.
OTHER_REGIONS = ("West_Java", "Azerbaijan", "Iran", "Ethiopia", "Northern_Nigeria", "Assam")

_OTHER_REGIONS_FILE = "blend/annotations_en_other6.jsonl"
_TEMPLATES_FILE = "blend/templates/templates_en.csv"
_FIXES_FILE = "blend/templates/question_fixes.json"
# The tables use American English.
_VARIETIES = {"UK": {"chips": "french fries", "fries": "french fries"}}
_LIST = re.compile(r"\s*[,،、;；]\s*")
_THOUSANDS = re.compile(r"\d,\d{3}")


@dataclass(frozen=True)
class Answer:
    """One answer of a country.

    Attributes:
        local: its variants in the country's language, primary form first.
        english: its variants in English, primary form first.
        votes: number of annotators (usually of five) who gave it.
    """

    local: tuple[str, ...]
    english: tuple[str, ...]
    votes: int


@dataclass(frozen=True)
class Question:
    """One question in one country, with its answers in descending order of votes.

    Attributes:
        text: in the country's language, country named; empty for the six other regions.
        english: in English, country named.
        not_applicable: number of annotators who said that the question does not apply.
    """

    id: str
    text: str
    english: str
    answers: tuple[Answer, ...]
    not_applicable: int = 0


@dataclass(frozen=True)
class Template:
    """One of the 500 questions before a country was filled in ("... in your country?")."""

    id: str
    topic: str
    text: str


@dataclass(frozen=True)
class Problem:
    """An entry that could not be read, and why."""

    country: str
    id: str
    message: str


@dataclass(frozen=True, eq=False)
class Corpus:
    """The contents of BLEnD. Compared by identity, as it is a key of the build's cache.

    Attributes:
        templates: the questions in BLEnD's order.
        countries: country -> question id -> question.
        problems: entries left out because they are malformed.
    """

    templates: dict[str, Template]
    countries: dict[str, dict[str, Question]]
    problems: tuple[Problem, ...] = ()


def fold(text: str) -> str:
    """Text for comparison: NFC, lower case, white space folded."""
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


def corpus() -> Corpus:
    """BLEnD from the mirror or upstream; parsed once per process and content.

    Raises:
        DataError: a file is missing, unreachable, has the wrong hash or an unknown shape.
    """
    return _parse(tuple((name, file, _stamp(file)) for name, file in files().items()))


def files() -> dict[str, Path]:
    """Every upstream file that the items are built from, by country or name.

    Raises:
        DataError: a file is missing, unreachable, or has the wrong hash.
    """
    annotations = {country: _annotations_file(country) for country in COUNTRIES}
    return annotations | {name: sources.path(name) for name in (_OTHER_REGIONS_FILE, _TEMPLATES_FILE, _FIXES_FILE)}


def parse_annotations(text: str, country: str) -> tuple[dict[str, Question], list[Problem]]:
    """The questions of one country from either shape, and the entries that are malformed.

    Raises:
        DataError: the text is not JSON, or neither an object keyed by id nor a list of records with `ID`.
    """
    return _questions(_entries(text, country), country)


def _annotations_file(country: str) -> Path:
    name = f"blend/annotations/{country}_data.json"
    hub_name = f"blend/annotations_hf/{country}_data.json"
    if not sources.mirrored(name) and (hub_shape := sources.mirrored(hub_name)):
        return hub_shape
    return sources.path(name)


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=4)
def _parse(files: tuple[tuple[str, Path, tuple[int, int]], ...]) -> Corpus:
    paths = {name: file for name, file, _ in files}
    countries: dict[str, dict[str, Question]] = {}
    problems: list[Problem] = []
    for country in COUNTRIES:
        countries[country], new_problems = parse_annotations(sources.read_text(paths[country]), country)
        problems += new_problems
    records = sources.read_jsonl(paths[_OTHER_REGIONS_FILE])
    for region in OTHER_REGIONS:
        entries = ((str(record.get("ID")), record) for record in records if record.get("country") == region)
        countries[region], new_problems = _questions(entries, region)
        problems += new_problems
    _apply_fixes(countries, sources.read_json(paths[_FIXES_FILE]))
    return Corpus(_templates(paths[_TEMPLATES_FILE]), countries, tuple(problems))


def _entries(text: str, country: str) -> Iterable[tuple[str, Any]]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        data = _lines(text)
        if not data:
            raise DataError(
                f"the BLEnD annotations of {country} are not JSON ({error.msg}, line {error.lineno}): "
                "the file may be truncated; copy or fetch it again"
            ) from None
    if isinstance(data, dict):
        return data.items()
    if isinstance(data, list) and all(isinstance(record, dict) and "ID" in record for record in data):
        return ((str(record["ID"]), record) for record in data)
    raise DataError(
        f"the BLEnD annotations of {country} have an unknown shape: expected an object keyed by question id (GitHub) "
        "or a list of records with ID (Hugging Face Hub)"
    )


def _lines(text: str) -> list[Any]:
    """The values of a file with one JSON value per line; empty if it is not such a file."""
    try:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except json.JSONDecodeError:
        return []


def _questions(entries: Iterable[tuple[str, Any]], country: str) -> tuple[dict[str, Question], list[Problem]]:
    questions: dict[str, Question] = {}
    problems: list[Problem] = []
    for question_id, entry in entries:
        try:
            question = _question(question_id, entry, _VARIETIES.get(country, {}))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            problems.append(Problem(country, question_id, f"malformed entry: {type(error).__name__}: {error}"))
            continue
        if question_id in questions:
            problems.append(Problem(country, question_id, "the id occurs twice: the first one is used"))
            continue
        questions[question_id] = question
    return questions, problems


def _question(question_id: str, entry: Mapping[str, Any], readings: Mapping[str, str]) -> Question:
    answers = [_answer(group, readings) for group in entry["annotations"]]
    return Question(
        question_id,
        _text(entry, "question"),
        _text(entry, "en_question"),
        tuple(sorted(answers, key=lambda answer: -answer.votes)),
        int((entry.get("idks") or {}).get("not-applicable") or 0),
    )


def _answer(group: Mapping[str, Any], readings: Mapping[str, str]) -> Answer:
    english = tuple(dict.fromkeys(readings.get(fold(text), text) for text in _variants(group.get("en_answers"))))
    local = _split(_variants(group["answers"])) if "answers" in group else english
    votes = group["count"]
    if isinstance(votes, bool) or not isinstance(votes, int) or votes < 0:
        raise ValueError(f"count is {votes!r}")
    return Answer(local, english, votes)


def _variants(values: list[str] | None) -> tuple[str, ...]:
    if isinstance(values, str):
        raise TypeError("answers are a text, not a list")
    texts = (" ".join(unicodedata.normalize("NFC", value).split()) for value in values or ())
    return tuple(dict.fromkeys(text for text in texts if text))


def _split(variants: tuple[str, ...]) -> tuple[str, ...]:
    """Local variants, split where annotators wrote several spellings into one field ("سروال، سراويل")."""
    pieces = (piece for text in variants for piece in ([text] if _THOUSANDS.search(text) else _LIST.split(text)))
    return tuple(dict.fromkeys(piece for piece in pieces if piece))


def _text(entry: Mapping[str, Any], key: str) -> str:
    text = entry.get(key) or ""
    if not isinstance(text, str):
        raise TypeError(f"{key} is not a text")
    return text


def _templates(file: Path) -> dict[str, Template]:
    rows = csv.DictReader(io.StringIO(sources.read_text(file), newline=""))
    if missing := {"ID", "Topic", "Question"} - set(rows.fieldnames or ()):
        raise DataError(f"{file} has no column {', '.join(sorted(missing))}: copy or fetch it again")
    return {row["ID"]: Template(row["ID"], row["Topic"], row["Question"]) for row in rows}


def _apply_fixes(countries: dict[str, dict[str, Question]], fixes: Mapping[str, str]) -> None:
    """Fill in the questions that upstream left blank at the pinned commit."""
    for key, text in fixes.items():
        country, _, question_id = key.partition("/")
        question = countries.get(country, {}).get(question_id)
        if question and not question.text.strip():
            countries[country][question_id] = replace(question, text=text)
