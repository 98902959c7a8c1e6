"""The small data set of this package: universal questions, and cultural ones with an answer per country.

One question per line, parallel in the seven languages (CC-BY-4.0, by this project). Universal questions are used as
they are. The options of cultural ones are chosen here, per language; their order is drawn by a hash of the question's
id, so that it is the same on every machine and in every language.
"""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeVar

from lm_eval_ext import languages
from lm_eval_ext.data import sources
from lm_eval_ext.errors import DataError
from lm_eval_ext.fingerprints import hash_text
from lm_eval_ext.languages import ENGLISH_COUNTRIES, Language

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from datasets import Dataset

T = TypeVar("T")

#: Part of the hash behind the order of options; chosen so that the shipped set is balanced over the four positions.
SALT = "183"

#: Of a cultural question.
OPTIONS = 4


def transfer(language: str, **_: object) -> dict[str, Dataset]:
    """The universal questions in a language, as the harness asks for them (`custom_dataset`).

    Columns: id, language, topic, question, options (four texts), gold (index), source.

    Raises:
        LanguageError: the language is not one of the seven.
        DataError: the packaged file is damaged.
    """
    return _load("mini/transfer.jsonl", partial(_universal, language=languages.get(language)))


def localization(language: str, named: bool = False, **_: object) -> dict[str, Dataset]:
    """The cultural questions in a language, as the harness asks for them (`custom_dataset`).

    Columns: id, language, topic, question, options (four texts), countries (those of each option, the one whose
    answer it is first), gold (index of the option of the language's own country), source.

    Args:
        language: one of the seven.
        named: whether the question names the country (the explicit-context bound); the options are the same.

    Raises:
        LanguageError: the language is not one of the seven.
        DataError: the packaged file is damaged, or a question does not have four options.
    """
    wording = "named" if named else "question"
    return _load("mini/localization.jsonl", partial(_cultural, language=languages.get(language), wording=wording))


def option_keys(row: dict[str, Any], language: Language) -> list[str]:
    """The answers that become the four options of a cultural question in a language, the local one first.

    Exactly one of them belongs to the US or UK: the second, or in English the local one itself. The rest are the first
    answers of other countries. Only the first is right in the language's country, and no two have the same text.

    Of the possible sets the one is taken whose lengths give the local answer away least: how many options are to be
    shorter than it, one to three, is drawn by a hash of question and language, and of the sets nearest to that number the
    first in an order by hash. None is not drawn: local answers are short, so that many are the shortest of every set.

    Raises:
        DataError: the question has too few such answers for this language.
    """
    local = _answers(row, language.country)
    english = [key for country in ("US", "UK") for key in _answers(row, country)]
    others = {key for country in row["answers"] for key in _answers(row, country)[:1]} - {*local, *english}
    drawn = sorted(others, key=partial(hash_text, row["id"], language.code))
    texts = {key: _text(row, key, language) for key in (*local, *english, *drawn)}
    right = {texts[key] for key in local}

    if language.country in ENGLISH_COUNTRIES:
        slots = [local]
    else:
        slots = [
            [key for key in local if key not in english],
            [key for key in english if key not in local and texts[key] not in right],
        ]
    fixed = [slot[0] for slot in slots if slot]
    sets = [
        [*fixed, *rest]
        for rest in combinations((key for key in drawn if texts[key] not in right), OPTIONS - len(fixed))
        if len({texts[key] for key in (*fixed, *rest)}) == OPTIONS
    ]
    if len(fixed) < len(slots) or not sets:
        raise DataError(
            f"question {row['id']} does not give four options in {language.name}: it needs an answer of "
            f"{language.country}, another one of the US or UK, and two of other countries"
        )
    wanted = 1 + int(hash_text("length", row["id"], language.code), 16) % (OPTIONS - 1)
    return min(sets, key=lambda keys: abs(_rank([len(texts[key]) for key in keys]) - wanted))


def _rank(lengths: Sequence[int]) -> float:
    """How many of the others are shorter than the first; those of the same length count half."""
    return sum((length < lengths[0]) + (length == lengths[0]) / 2 for length in lengths[1:])


def _load(name: str, document: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Dataset]:
    from datasets import Dataset

    file = sources.packaged(name)
    documents = []
    for row in sources.read_jsonl(file):
        try:
            documents.append(document(row))
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise DataError(f"{file}, question {row.get('id')}: damaged ({error!r}); reinstall the package") from error
    return {"test": Dataset.from_list(documents)}


def _universal(row: dict[str, Any], language: Language) -> dict[str, Any]:
    options = row["options"][language.code]
    if len(options) != 4 or row["gold"] not in range(4):
        raise IndexError(f"gold {row['gold']} among {len(options)} options")
    return {**_common(row, language, "question"), "options": options, "gold": row["gold"]}


def _cultural(row: dict[str, Any], language: Language, wording: str) -> dict[str, Any]:
    keys = option_keys(row, language)
    countries = [_countries(row, key) for key in keys]
    countries[0].sort(key=lambda country: country != language.country)
    order = _order(row["id"])
    return {
        **_common(row, language, wording),
        "options": _arranged([_text(row, key, language) for key in keys], order),
        "countries": _arranged(countries, order),
        "gold": order.index(0),
    }


def _common(row: dict[str, Any], language: Language, wording: str) -> dict[str, Any]:
    return {
        "id": row["id"],
        "language": language.code,
        "topic": row["topic"],
        "question": row[wording][language.code],
        "source": row["source"],
    }


def _answers(row: dict[str, Any], country: str) -> list[str]:
    answers = row["answers"].get(country, [])
    return [answers] if isinstance(answers, str) else list(answers)


def _countries(row: dict[str, Any], key: str) -> list[str]:
    """The countries where an answer is right: the US and UK first, then those that give it before others."""
    countries = [country for country in row["answers"] if key in _answers(row, country)]
    return sorted(countries, key=lambda owner: (owner not in ENGLISH_COUNTRIES, _answers(row, owner).index(key)))


def _text(row: dict[str, Any], key: str, language: Language) -> str:
    text: str = row["texts"][key][language.code]
    return text


def _order(question_id: str) -> list[int]:
    """The option at each of the four positions."""
    return sorted(range(4), key=lambda option: hash_text(SALT, question_id, str(option)))


def _arranged(options: Sequence[T], order: Sequence[int]) -> list[T]:
    return [options[index] for index in order]
