"""A user's own multiple-choice questions as tasks: `lm-eval-ext data import my.jsonl --name mytask --out FOLDER`.

One JSON object per line:

    question    text
    options     list of 2 to 10 different texts
    answer      the right option: its number from 0, its letter, or its text
    language    code, such as ko; may be left out where one is given for the whole file
    countries   optional: for each option its country, or a list of them (US and UK are the English ones)
    id          optional: the same in every language for the same question; else the number of the line
    topic       optional: text

Either all lines have `countries` or none: with them the tasks report `english_bias` and `other_rate` too, and their axis is
localization by default; without them it is transfer.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext.data import sources, tasks_tree
from lm_eval_ext.data.task_metadata import AXES, SPLITS
from lm_eval_ext.data.tasks_tree import BIAS, BY_COUNTRY, CLOZE, LETTERS, RULES, Family, per_language
from lm_eval_ext.errors import DataError
from lm_eval_ext.fingerprints import hash_text
from lm_eval_ext.io import write_file
from lm_eval_ext.paths import tasks_dir

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datasets import Dataset

    from lm_eval_ext.data.questions import Question

_HEADER = "# Written by `lm-eval-ext data import`."
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SHOWN = 10

#: The loader finds the questions by its own path, so that the folder can be moved.
_LOADER = '''"""Written by `lm-eval-ext data import`: finds the questions beside this file."""

from pathlib import Path

from lm_eval_ext.data import own


def load(questions, **arguments):
    return own.load(Path(__file__).with_name(questions), **arguments)
'''
_LETTERED = "{{question.strip()}}\n{% for option in options %}{{letters[loop.index0]}}. {{option}}\n{% endfor %}Answer:"


def write(
    file: Path,
    name: str,
    folder: Path,
    language: str = "",
    *,
    axis: str | None = None,
    split: str = "test",
    lines: Sequence[Mapping[str, Any]] | None = None,
    private: bool = False,
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
        lines: in the schema, of a file that has another form (see `published`).
        private: whether the questions must not be passed on: they are named in the folder's `.gitignore`.

    Raises:
        DataError: an unknown axis or split, a name that is in use or invalid, or lines that break the schema; the message
            names the lines.
    """
    existing = {path.rpartition("/")[2].removesuffix(".yaml").removeprefix("_") for path in tasks_tree.files()}
    if not _NAME.fullmatch(name) or name.endswith(CLOZE) or name in existing:
        raise DataError(
            f"--name {name!r} cannot be used: it must be of lower-case letters, digits and underscores, not end in {CLOZE}, "
            "and not be a task of this package"
        )
    for option, value, valid in (("--axis", axis, AXES), ("--split", split, SPLITS)):
        if value is not None and value not in valid:
            raise DataError(f"{option} {value!r} is unknown; valid: {', '.join(valid)}")
    documents = read(file, language, lines)
    text = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    family = _family(name, documents, hash_text(text)[:12], axis, split)
    write_file(folder / f"{name}.jsonl", text)
    write_file(folder / "questions.py", _LOADER)
    for template in ("_letters", "_cloze", "_letters_by_country", "_cloze_by_country"):
        shutil.copyfile(tasks_dir() / template, folder / template)
    for suffix, template in family.templates.items():
        write_file(folder / template, _template(suffix, by_country="countries" in documents[0]))
    for file_name, content in tasks_tree.yaml_files(family, _HEADER):
        write_file(folder / f"{file_name}.yaml", content)
    if private:
        _keep_from_git(folder, f"{name}.jsonl")
    return family


def _keep_from_git(folder: Path, file: str) -> None:
    """Name a file of texts that must not be passed on in the folder's `.gitignore`."""
    ignore = folder / ".gitignore"
    lines = ignore.read_text(encoding="utf-8").splitlines() if ignore.is_file() else []
    if file not in lines:
        write_file(ignore, "\n".join([*lines, file]) + "\n")


def read(file: Path, language: str = "", lines: Sequence[Mapping[str, Any]] | None = None) -> list[dict[str, Any]]:
    """The documents of a file: id, language, question, options, letters, gold, and topic and countries where given.

    Args:
        file: JSON lines in the schema.
        language: of the lines that name none.
        lines: in place of the file's.

    Raises:
        DataError: lines that break the schema; the message names the first of them and what is wrong.
    """
    from pydantic import ValidationError

    from lm_eval_ext.configs import messages
    from lm_eval_ext.data.questions import Question

    documents: list[dict[str, Any]] = []
    problems: list[str] = []
    for number, row in enumerate(sources.read_jsonl(file) if lines is None else lines, start=1):
        try:
            question = Question.model_validate({**({"language": language} if language else {}), **row})
            documents.append(_document(question, number))
        except ValidationError as error:
            problems += [f"question {number}: {message}" for message in messages(error, Question)]
    problems += _across(documents)
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise DataError(
            "\n  ".join([f"{file} breaks the schema (`lm-eval-ext data import --help`):", *problems[:_SHOWN], *more])
        )
    return documents


def load(file: Path, language: str, **_: object) -> dict[str, Dataset]:
    """The imported questions in one language, for the harness (`custom_dataset`).

    Raises:
        DataError: the file is missing or damaged.
    """
    from datasets import Dataset

    rows = [row for row in sources.read_jsonl(file) if row.get("language") == language]
    if not rows:
        raise DataError(f"{file} has no question in {language}: import it again")
    return {"test": Dataset.from_list(rows)}


def _document(question: Question, number: int) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": str(question.id) if "id" in question.model_fields_set else str(number),
        "language": question.language,
        "question": question.question,
        "options": question.options,
        "letters": question.letters,
        "gold": question.gold,
    }
    return document | {key: value for key in ("topic", "countries") if (value := getattr(question, key)) is not None}


def _across(documents: list[dict[str, Any]]) -> list[str]:
    """Mistakes that concern several questions: fields that only some have, ids that occur twice."""
    if not documents:
        return []
    seen: set[tuple[str, str]] = set()
    problems = []
    for optional in ("countries", "topic"):
        if 0 < sum(optional in document for document in documents) < len(documents):
            problems.append(f"some questions have {optional} and some do not: give it to all or to none")
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
        averaged = BY_COUNTRY if "en" in codes else BIAS  # undefined in English
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
    """The template that the tasks of a family include."""
    lines = [
        _HEADER,
        f"include: {suffix or '_letters'}{'_by_country' if by_country else ''}",
        "custom_dataset: !function questions.load",
    ]
    if suffix == LETTERS:
        lines += [f"doc_to_text: {json.dumps(_LETTERED)}", "doc_to_choice: letters"]
    return "\n".join(lines) + "\n"
