"""A user's own multiple-choice questions as tasks: `lm-eval-ext data import my.jsonl --name mytask --out FOLDER`.

One JSON object per line:

    question    text
    options     list of 2 to 10 different texts
    answer      the right option: its number from 0, its letter, or its text
    language    code, such as ko; may be left out where one is given for the whole file
    countries   optional: for each option its country, or a list of them (US and UK are the English ones)
    id          optional: the same in every language for the same question; else the number of the line
    topic       optional: text

All lines have `countries`, or none: with them the tasks report `english_bias` and `other_rate` too, and stand on the
localization axis unless something else is said; without them, on the transfer axis.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext import languages
from lm_eval_ext.data import sources, tasks_tree
from lm_eval_ext.data.prompts import PROMPTS
from lm_eval_ext.data.task_metadata import AXES, SPLITS
from lm_eval_ext.data.tasks_tree import BIAS, BY_COUNTRY, CLOZE, LETTERS, RULES, Family, per_language
from lm_eval_ext.errors import DataError
from lm_eval_ext.paths import tasks_dir

if TYPE_CHECKING:
    from datasets import Dataset

KEYS = ("question", "options", "answer", "language", "countries", "id", "topic")
ALPHABET = "ABCDEFGHIJ"

_HEADER = "# Written by `lm-eval-ext data import`."
_NAME = re.compile(r"[a-z][a-z0-9_]*")
#: Other names of the two countries that English bias is about: they would not be counted.
_ENGLISH = {"usa": "US", "u.s.": "US", "united states": "US", "united kingdom": "UK", "u.k.": "UK", "gb": "UK"}
_ENGLISH |= {"america": "US", "united states of america": "US", "great britain": "UK", "britain": "UK", "england": "UK"}
_SHOWN = 10

#: What finds the questions, so that the folder can be moved.
_LOADER = '''"""Written by `lm-eval-ext data import`: finds the questions beside this file."""

from pathlib import Path

from lm_eval_ext.data import own


def load(questions, **arguments):
    return own.load(Path(__file__).with_name(questions), **arguments)
'''
_LETTERED = "{{question.strip()}}\n{% for option in options %}{{letters[loop.index0]}}. {{option}}\n{% endfor %}Answer:"


def write(
    file: Path, name: str, folder: Path, language: str = "", *, axis: str | None = None, split: str = "test"
) -> Family:
    """Make tasks of a file: `{name}_{language}`, each also `_cloze`, in the groups `{name}` and `{name}_cloze`.

    The folder works with the harness's `--include_path` wherever it is, and may hold several such families.

    Args:
        file: JSON lines in the schema above.
        name: lower-case letters, digits and underscores.
        folder: where the task files go, with a copy of the questions.
        language: of the lines that name none.
        axis: of the plane; if left out, localization where the options have countries, else transfer.
        split: `dev` for questions that choose layers, `test` for those that are reported.

    Raises:
        DataError: an unknown axis or split, a name that is taken or not valid, or lines that break the schema; the message
            names the lines.
    """
    taken = {path.rpartition("/")[2].removesuffix(".yaml").removeprefix("_") for path in tasks_tree.files()}
    if not _NAME.fullmatch(name) or name.endswith(CLOZE) or name in taken:
        raise DataError(
            f"--name {name!r} cannot be used: it must be of lower-case letters, digits and underscores, not end in {CLOZE}, "
            "and not be a task of this package"
        )
    for option, value, valid in (("--axis", axis, AXES), ("--split", split, SPLITS)):
        if value is not None and value not in valid:
            raise DataError(f"{option} {value!r} is unknown; valid: {', '.join(valid)}")
    documents = read(file, language)
    text = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    family = _family(name, documents, hashlib.sha256(text.encode()).hexdigest()[:12], axis, split)
    sources.write(folder / f"{name}.jsonl", text.encode())
    sources.write(folder / "questions.py", _LOADER.encode())
    for template in ("_letters", "_cloze", "_letters_by_country", "_cloze_by_country"):
        shutil.copyfile(tasks_dir() / template, folder / template)
    for suffix, template in family.templates.items():
        sources.write(folder / template, _template(suffix, by_country="countries" in documents[0]).encode())
    for file_name, content in tasks_tree.yaml_files(family, _HEADER):
        sources.write(folder / f"{file_name}.yaml", content.encode())
    return family


def read(file: Path, language: str = "") -> list[dict[str, Any]]:
    """The documents of a file: id, language, question, options, letters, gold, and topic and countries where given.

    Raises:
        DataError: lines that break the schema; the message names the first of them and what is wrong.
    """
    documents: list[dict[str, Any]] = []
    problems = []
    for number, row in enumerate(sources.read_jsonl(file), start=1):
        try:
            documents.append(_document(row, number, language))
        except DataError as error:
            problems.append(f"question {number}: {error}")
    problems += _across(documents)
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise DataError(
            "\n  ".join([f"{file} breaks the schema (`lm-eval-ext data import --help`):", *problems[:_SHOWN], *more])
        )
    return documents


def load(file: Path, language: str, **_: object) -> dict[str, Dataset]:
    """The imported questions in one language, as the harness asks for them.

    Raises:
        DataError: the file is missing or damaged.
    """
    from datasets import Dataset

    rows = [row for row in sources.read_jsonl(file) if row.get("language") == language]
    if not rows:
        raise DataError(f"{file} has no question in {language}: import it again")
    return {"test": Dataset.from_list(rows)}


def _document(row: dict[str, Any], number: int, language: str) -> dict[str, Any]:
    if unknown := sorted(set(row) - set(KEYS)):
        raise DataError(f"unknown key {', '.join(map(repr, unknown))}; valid: {', '.join(KEYS)}")
    options = [_text(option, "an option") for option in _list(row.get("options"), "options")]
    if not 2 <= len(options) <= len(ALPHABET) or len(set(options)) < len(options):
        raise DataError(f"options must be 2 to {len(ALPHABET)} different texts, got {options!r}")
    code = languages.normalise(_text(row.get("language", language), "language"))
    if code not in PROMPTS:
        raise DataError(f"unknown language {code!r}; valid: {', '.join(sorted(PROMPTS))}")
    document: dict[str, Any] = {
        "id": str(row.get("id", number)),
        "language": code,
        "question": _text(row.get("question"), "question"),
        "options": options,
        "letters": list(ALPHABET[: len(options)]),
        "gold": _gold(row.get("answer"), options),
    }
    if "topic" in row:
        document["topic"] = _text(row["topic"], "topic")
    if "countries" in row:
        document["countries"] = _countries(row["countries"], len(options))
    return document


def _gold(answer: object, options: list[str]) -> int:
    if isinstance(answer, int) and not isinstance(answer, bool):
        found = {answer} & set(range(len(options)))
    elif isinstance(answer, str):
        letters = ALPHABET[: len(options)]
        by_text = {options.index(answer.strip())} if answer.strip() in options else set[int]()
        by_letter = {letters.index(answer)} if len(answer) == 1 and answer in letters else set[int]()
        found = by_text | by_letter
    else:
        found = set()
    if len(found) != 1:
        what = "may mean two options" if found else "is none of the options"
        valid = f"a number from 0 to {len(options) - 1}, a letter, or an option's text"
        raise DataError(f"answer {answer!r} {what}: give {valid}")
    return found.pop()


def _countries(value: object, n: int) -> list[list[str]]:
    countries = [
        _list([entry] if isinstance(entry, str) else entry, "countries") for entry in _list(value, "countries")
    ]
    if len(countries) != n or not all(countries):
        raise DataError(f"countries must name one or more for each of the {n} options, got {value!r}")
    for name in (name for names in countries for name in names):
        if (proper := _ENGLISH.get(_text(name, "a country").lower())) and name != proper:
            raise DataError(f"country {name!r}: write {proper}")
    return [[name.strip() for name in names] for names in countries]


def _across(documents: list[dict[str, Any]]) -> list[str]:
    """What is wrong between documents."""
    if not documents:
        return []
    seen: set[tuple[str, str]] = set()
    problems = []
    for optional in ("countries", "topic"):
        if 0 < sum(optional in document for document in documents) < len(documents):
            problems.append(f"some questions have {optional} and some have not: give them to all or to none")
    for document in documents:
        key = document["language"], document["id"]
        if key in seen:
            problems.append(f"id {document['id']!r} occurs twice in {document['language']}")
        seen.add(key)
    return problems


def _family(name: str, documents: list[dict[str, Any]], content: str, axis: str | None, split: str) -> Family:
    codes = list(dict.fromkeys(document["language"] for document in documents))
    averaged = {LETTERS: ("acc",), CLOZE: RULES}
    if "countries" in documents[0]:
        averaged = BY_COUNTRY if "en" in codes else BIAS  # in English the bias says nothing
    return Family(
        name,
        "",
        per_language(*codes),
        options={"questions": f"{name}.jsonl"},
        averaged=averaged,
        version=f"1.0+{content}",
        templates={LETTERS: f"_{name}_letters", CLOZE: f"_{name}_texts"},
        axis=axis or ("localization" if "countries" in documents[0] else "transfer"),
        split=split,
    )


def _template(suffix: str, by_country: bool) -> str:
    """What the tasks of a family share."""
    lines = [
        _HEADER,
        f"include: {suffix or '_letters'}{'_by_country' if by_country else ''}",
        "custom_dataset: !function questions.load",
    ]
    if suffix == LETTERS:
        lines += [f"doc_to_text: {json.dumps(_LETTERED)}", "doc_to_choice: letters"]
    return "\n".join(lines) + "\n"


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{what} must be a text that is not empty, got {value!r}")
    return value.strip()


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{what} must be a list, got {value!r}")
    return value
