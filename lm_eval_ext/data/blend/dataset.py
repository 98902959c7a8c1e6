"""The items as data sets for the harness, and the pairs of wordings for extraction."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lm_eval_ext import languages
from lm_eval_ext.data.blend import forms, items, options, splits, store
from lm_eval_ext.data.blend.source import Corpus, corpus
from lm_eval_ext.errors import DataError
from lm_eval_ext.languages import ENGLISH_COUNTRIES

if TYPE_CHECKING:
    from datasets import Dataset

    from lm_eval_ext.data.blend.items import Item

#: Wordings of a question: country left out, country named, and in English about the language's country.
WORDINGS = ("decon", "ctx", "about")
SETS = ("all", "core", "firm")
#: A gold that is an answer of this many countries is universal.
UNIVERSAL_FROM = 8
#: An answer of the US or UK that this many other countries give is shared.
SHARED_FROM = 3
_LANGUAGE_OF = {language.country: code for code, language in languages.LANGUAGES.items()}


def load(
    language: str,
    wording: str = "decon",
    split: str = splits.TEST,
    shuffle_seed: int | str = 0,
    subset: str = "all",
    repeats: int | str = 1,
    about: str = "",
    **_: Any,
) -> dict[str, Dataset]:
    """The items of one language for the harness (`custom_dataset` in the task files).

    Args:
        language: one of the seven.
        wording: `decon` (no country named), `ctx` (BLEnD's own wording, which names it), `about` (both question and options
            in English, country named). Same ids, same options in the same order.
        split: `test`, `dev` (the questions of `dev2`) or `all`; questions held for extraction are in none of them.
        shuffle_seed: seed of the order of the options.
        subset: `all`; `core`: the questions that yield an item in at least four of the six non-English languages; `firm`:
            gold has three votes or more, the set to quote.
        repeats: up to this many items of a question (at most 3), with the same gold and other distractors; they share the
            column `cluster`.
        about: a country, such as `Greece`: the items of its language in the wording `about`.

    Returns:
        `{"test": Dataset}` with the columns of `documents`.

    Raises:
        LanguageError: not one of the seven.
        DataError: unknown wording, split, subset or country; files missing, unreachable or changed.
    """
    from datasets import Dataset

    if about:
        _check("country", about, tuple(_LANGUAGE_OF))
        language, wording = _LANGUAGE_OF[about], "about"
    # The metadata of tasks knows one development split; `dev1` holds no items.
    split = splits.DEV2 if split == "dev" else split
    arguments = (language, wording, split, shuffle_seed, subset, repeats)
    return {"test": Dataset.from_list(store.rows(arguments, lambda: documents(*arguments)))}


def documents(
    language: str,
    wording: str = "decon",
    split: str = splits.TEST,
    shuffle_seed: int | str = 0,
    subset: str = "all",
    repeats: int | str = 1,
) -> list[dict[str, Any]]:
    """The items as plain rows, arguments as for `load`.

    Columns: id, question_id (without the number of a variant), cluster (the first id of the questions that ask nearly the
    same), language, country (the local one),
    question, options (four texts), countries (of each option; the first is the one whose answer it is), votes (of each
    option in that country), gold (index), topic, format, split, core, and four flags: firm (gold has three votes or more),
    universal (gold is an answer of eight countries or more), us_uk_shared (the option of the US or UK is an answer of three
    other countries or more), numeric (the options are numbers, times or dates).
    """
    code = languages.get(language).code
    _check("wording", wording, WORDINGS)
    _check("subset", subset, SETS)
    splits.check_name(split)
    included = {splits.TEST, splits.DEV2} if split == "all" else {split}
    data = corpus()
    return [
        _document(item, wording)
        for item in arranged(data, code, _whole("shuffle_seed", shuffle_seed))
        if splits.of(item.question_id) in included
        and _is_in(item, subset)
        and items.number(item) <= _whole("repeats", repeats)
        and (wording != "about" or items.has_english(item))
    ]


def pairs(language: str, split: str = splits.DEV1) -> list[tuple[str, str, str]]:
    """Pairs for extracting the LOC vector: (question id, country named, country not named).

    Raises:
        LanguageError: not one of the seven.
        DataError: any split but `dev1`: evaluated questions are never used for extraction.
    """
    code = languages.get(language).code
    if split != splits.DEV1:
        raise DataError(f"split {split!r} of blend is for evaluation; pairs for extraction are in {splits.DEV1}")
    data = corpus()
    extraction = [question_id for question_id in data.templates if splits.of(question_id) == splits.DEV1]
    return [(question_id, *items.wordings(data, code, question_id)) for question_id in extraction]


def questions(language: str) -> list[tuple[str, str]]:
    """Every question without its country, also those that yield no item: (question id, text); none kept for extraction.

    Raises:
        LanguageError: not one of the seven.
    """
    code, data = languages.get(language).code, corpus()
    worded = []
    for question_id in data.templates:
        if splits.of(question_id) != splits.DEV1:
            with suppress(DataError):  # left out by the tables
                worded.append((question_id, items.wordings(data, code, question_id)[1]))
    return worded


@lru_cache(maxsize=32)
def arranged(data: Corpus, language: str, shuffle_seed: int) -> tuple[Item, ...]:
    """Every item of a language in BLEnD's order, options shuffled, letters balanced within each split and repeat."""
    place = {question_id: number for number, question_id in enumerate(data.templates)}
    groups: dict[tuple[str, int], list[Item]] = {}
    for item in items.build(data, language).items:
        groups.setdefault((splits.of(item.question_id), items.number(item)), []).append(item)
    shuffled = [item for group in groups.values() for item in items.arrange(group, shuffle_seed)]
    return tuple(sorted(shuffled, key=lambda item: (place[item.question_id], item.id)))


def _document(item: Item, wording: str) -> dict[str, Any]:
    english = wording == "about"
    gold = item.options[item.gold]
    english_options = [o for number, o in enumerate(item.options) if number != item.gold and items.is_english(o)]
    texts = {"decon": item.question, "ctx": item.question_ctx, "about": item.question_about}
    return {
        "id": item.id,
        "question_id": item.question_id,
        "cluster": item.cluster,
        "language": "en" if english else item.language,
        "country": languages.get(item.language).country,
        "question": texts[wording],
        "options": [option.english if english else option.text for option in item.options],
        "countries": [list(option.countries) for option in item.options],
        "votes": [option.votes for option in item.options],
        "gold": item.gold,
        "topic": item.topic,
        "format": item.form,
        "split": splits.of(item.question_id),
        "core": item.question_id in splits.core(),
        "firm": _is_firm(item),
        "universal": len(gold.countries) >= UNIVERSAL_FROM,
        "us_uk_shared": any(len(set(o.countries) - ENGLISH_COUNTRIES) >= SHARED_FROM for o in english_options),
        "numeric": item.form in forms.COUNTED,
    }


def _is_firm(item: Item) -> bool:
    return item.options[item.gold].votes >= options.FIRM_VOTES


def _is_in(item: Item, subset: str) -> bool:
    return subset == "all" or (_is_firm(item) if subset == "firm" else item.question_id in splits.core())


def _check(what: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise DataError(f"unknown {what} {value!r} of blend; valid: {', '.join(valid)}")


def _whole(what: str, value: int | str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise DataError(f"{what} of blend must be a whole number, not {value!r}") from None
