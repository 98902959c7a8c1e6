"""The items: a wording that names no country, and four options that belong to countries."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from lm_eval_ext.data.blend import forms, options, splits
from lm_eval_ext.data.blend.options import Fallen, Option, digest
from lm_eval_ext.data.blend.tables import EditError, Edits, decontext, remove_country
from lm_eval_ext.errors import DataError
from lm_eval_ext.languages import LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lm_eval_ext.data.blend.source import Corpus

# Reasons why a question yields no item, besides those of `options`.
DROPPED = "left out by our tables"
HELD = "kept for extraction (dev1)"
EDIT_FAILED = "an edit does not apply"
MISSING = "the question is not in the data"


@dataclass(frozen=True)
class Item:
    """A question with its options; gold is the first option until `arrange` shuffles them.

    Attributes:
        id: the question id, `#2` or `#3` appended for further variants.
        cluster: the question id.
        question: in the item's language, no country named.
        question_ctx: the same with its country, as BLEnD has it.
        question_about: in English, country named.
        form: number, time, date, text or numbered text.
    """

    id: str
    cluster: str
    language: str
    question: str
    question_ctx: str
    question_about: str
    topic: str
    form: str
    options: tuple[Option, ...]
    gold: int = 0


@dataclass(frozen=True)
class Build:
    """All items of a language, and why the other questions yield none.

    Attributes:
        items: in BLEnD's order; variants follow their question.
        fallen: question id -> (reason, detail).
    """

    language: str
    items: tuple[Item, ...]
    fallen: dict[str, tuple[str, str]] = field(default_factory=dict)


@lru_cache(maxsize=32)
def build(corpus: Corpus, language: str, draft: bool = False) -> Build:
    """Every item of one language, with up to three variants of a question.

    Args:
        draft: the items from which the splits are derived: no question is kept for extraction, and one vote is enough.
    """
    items: list[Item] = []
    fallen: dict[str, tuple[str, str]] = {}
    for question_id in corpus.templates:
        try:
            of_question = _items(corpus, language, question_id, draft)
        except Fallen as fall:
            fallen[question_id] = (fall.reason, fall.detail)
            continue
        if splits.of(question_id) == splits.DEV1 and not draft:
            fallen[question_id] = (HELD, "")
        else:
            items += of_question
    return Build(language, tuple(items), fallen)


def _items(corpus: Corpus, language: str, question_id: str, draft: bool) -> list[Item]:
    edits = decontext(language).get(question_id, Edits(dropped="not in the table"))
    if why := edits.dropped or options.excluded_because(question_id, language, "*"):
        raise Fallen(DROPPED, why)
    try:
        with_country, question = wordings(corpus, language, question_id)
    except EditError as error:
        raise Fallen(EDIT_FAILED, str(error)) from None
    except DataError as error:
        raise Fallen(MISSING, str(error)) from None
    min_votes = 1 if draft or question_id in splits.core() else options.MIN_VOTES
    about = with_country if language == "en" else corpus.countries[LANGUAGES[language].country][question_id].english
    return [
        Item(
            id=f"{question_id}#{number}" if number > 1 else question_id,
            cluster=question_id,
            language=language,
            question=question,
            question_ctx=with_country,
            question_about=about,
            topic=corpus.templates[question_id].topic,
            form=forms.form(option_set[0].text),
            options=option_set,
        )
        for number, option_set in enumerate(options.option_sets(corpus, language, question_id, min_votes), start=1)
    ]


def wordings(corpus: Corpus, language: str, question_id: str) -> tuple[str, str]:
    """A question with its country named, as BLEnD has it, and without.

    Raises:
        EditError: an edit does not apply; the question must not be used.
        DataError: the question is not in the data, or left out by the table.
    """
    country = LANGUAGES[language].country
    edits = decontext(language).get(question_id)
    question = corpus.countries.get(country, {}).get(question_id)
    if edits is None or edits.dropped or question is None or not question.text.strip():
        raise DataError(
            f"BLEnD question {question_id} has no wording in {language}: not in the data of {country}, or dropped"
        )
    source = corpus.templates[question_id].text if language == "en" else question.text
    try:
        plain = remove_country(source, edits)
    except EditError as error:
        raise EditError(f"BLEnD question {question_id} in {language}: {error}") from None
    return " ".join(question.text.split()), " ".join(plain.split())


def number(item: Item) -> int:
    """The number of an item among those of its question: 1, 2 or 3."""
    return int(item.id.partition("#")[2] or 1)


def has_english(item: Item) -> bool:
    """Whether all options have an English form, and these are distinct and of the same form as the options."""
    texts = [forms.key(option.english) for option in item.options]
    counted = {form if (form := forms.form(option.english)) in forms.COUNTED else "" for option in item.options}
    return all(texts) and len(set(texts)) == len(texts) and counted == {item.form if item.form in forms.COUNTED else ""}


def arrange(items: Iterable[Item], seed: int = 0) -> list[Item]:
    """The items with their options in order: a shuffle seeded by the id, corrected so that letters stay balanced.

    Each id has its own order of preference for the letter of gold. In the order of the ids' hashes, each gets the first
    letter that is used at most once more than the rarest.
    """
    used = Counter(dict.fromkeys(range(4), 0))
    arranged = []
    for item in sorted(items, key=lambda item: digest(seed, item.id)):
        preferred = sorted(range(4), key=lambda letter: digest(seed, item.id, "gold", letter))
        gold = next(letter for letter in preferred if used[letter] <= min(used.values()) + 1)
        used[gold] += 1
        others = sorted((1, 2, 3), key=lambda k: digest(seed, item.id, "distractor", k))
        options = [item.options[k] for k in others]
        options.insert(gold, item.options[0])
        arranged.append(replace(item, options=tuple(options), gold=gold))
    return arranged
