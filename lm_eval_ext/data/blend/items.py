"""The items: a wording that names no country, and four options that belong to countries."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import permutations
from typing import TYPE_CHECKING

from lm_eval_ext.data.blend import duplicates, forms, options, review, selection, splits
from lm_eval_ext.data.blend.options import Fallen, Option, digest
from lm_eval_ext.data.blend.tables import EditError, Edits, decontext, remove_country
from lm_eval_ext.errors import DataError
from lm_eval_ext.languages import ENGLISH_COUNTRIES, LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lm_eval_ext.data.blend.source import Corpus

# Reasons why a question yields no item, besides those of `options`.
DROPPED = "left out by our tables or by a reader"
HELD = "kept for extraction (dev1)"
EDIT_FAILED = "an edit does not apply"
MISSING = "the question is not in the data"


@dataclass(frozen=True)
class Item:
    """A question with its options; gold is the first option until `arrange` shuffles them.

    Attributes:
        id: the question id, `#2` or `#3` appended for further variants.
        question_id: the id without that.
        cluster: the first id of the questions that ask nearly the same.
        question: in the item's language, no country named.
        question_ctx: the same with its country.
        question_about: in English, country named.
        form: number, time, date, text or numbered text.
    """

    id: str
    question_id: str
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
def build(corpus: Corpus, language: str) -> Build:
    """Every item of one language, with up to three variants of a question."""
    fallen: dict[str, tuple[str, str]] = {}
    pools: dict[str, options.Pool] = {}
    for question_id in corpus.templates:
        try:
            pools[question_id] = _pool(corpus, language, question_id)
        except Fallen as fall:
            fallen[question_id] = (fall.reason, fall.detail)
    chosen, without = selection.choose(pools)
    fallen |= {question_id: (fall.reason, fall.detail) for question_id, fall in without.items()}
    items = [
        _item(corpus, language, question_id, number, option_set)
        for question_id in corpus.templates
        for number, option_set in enumerate(chosen.get(question_id, ()), start=1)
    ]
    return Build(language, tuple(items), fallen)


def _pool(corpus: Corpus, language: str, question_id: str) -> options.Pool:
    edits = decontext(language).get(question_id, Edits(dropped="not in the table"))
    if why := edits.dropped or review.dropped(question_id, language):
        raise Fallen(DROPPED, why)
    try:
        wordings(corpus, language, question_id)
    except EditError as error:
        raise Fallen(EDIT_FAILED, str(error)) from None
    except DataError as error:
        raise Fallen(MISSING, str(error)) from None
    pool = options.pool(corpus, language, question_id)
    if splits.of(question_id) == splits.DEV1:
        raise Fallen(HELD)
    return pool


def _item(corpus: Corpus, language: str, question_id: str, number: int, option_set: tuple[Option, ...]) -> Item:
    with_country, question = wordings(corpus, language, question_id)
    english = corpus.countries[LANGUAGES[language].country][question_id].english
    return Item(
        id=f"{question_id}#{number}" if number > 1 else question_id,
        question_id=question_id,
        cluster=duplicates.cluster(question_id),
        language=language,
        question=question,
        question_ctx=with_country,
        question_about=with_country if language == "en" else english,
        topic=corpus.templates[question_id].topic,
        form=forms.form(option_set[0].text),
        options=option_set,
    )


def wordings(corpus: Corpus, language: str, question_id: str) -> tuple[str, str]:
    """A question with its country named, and without.

    Corrections of readers (`review`) are made in both; in the first one only where their text stands in it once, as the
    words about the country may be in between.

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
    corrections = review.edits(question_id, language)
    source = corpus.templates[question_id].text if language == "en" else question.text
    try:
        plain = remove_country(source, Edits((*edits.steps, *corrections)))
    except EditError as error:
        raise EditError(f"BLEnD question {question_id} in {language}: {error}") from None
    with_country = question.text
    for old, new in corrections:
        if with_country.count(old) == 1:
            with_country = with_country.replace(old, new)
    return " ".join(with_country.split()), " ".join(plain.split())


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

    Both gold and the option of the US or UK are balanced. Each id has its own order of preference for their letters. In
    the order of the ids' hashes, each gets the first pair of letters that are used at most once more than the rarest.
    """
    golds = Counter(dict.fromkeys(range(4), 0))
    english = Counter(dict.fromkeys(range(4), 0))
    arranged = []
    for item in sorted(items, key=lambda item: digest(seed, item.id)):
        places = [number for number, option in enumerate(item.options) if number and is_english(option)]
        letters = permutations(range(4), 2) if places else ((letter, None) for letter in range(4))
        preferred = sorted(letters, key=lambda pair: digest(seed, item.id, *pair))
        gold, other = min(preferred, key=lambda pair: _excess(golds, pair[0]) + _excess(english, pair[1]))
        golds[gold] += 1
        rest = sorted((1, 2, 3), key=lambda k: digest(seed, item.id, "distractor", k))
        order = {gold: 0}
        if other is not None:
            english[other] += 1
            order[other] = places[0]
            rest.remove(places[0])
        free = iter(rest)
        numbers = [order[letter] if letter in order else next(free) for letter in range(4)]
        arranged.append(replace(item, options=tuple(item.options[number] for number in numbers), gold=gold))
    return arranged


def is_english(option: Option) -> bool:
    """Whether an option is an answer of the US or UK."""
    return not ENGLISH_COUNTRIES.isdisjoint(option.countries)


def _excess(used: Counter[int], letter: int | None) -> int:
    """How often a letter is used beyond once more than the rarest."""
    return 0 if letter is None else max(0, used[letter] - min(used.values()) - 1)
