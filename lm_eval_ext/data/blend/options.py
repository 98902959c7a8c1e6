"""The options rule: from voted answers to four options, one of them the local country's.

For each question of a language (BLEnD's own multiple-choice rule, without generated options):

1. Gold is a top-voted answer of the language's country, with at least two votes. Of tied answers the one that the fewest
   other countries share is tried first, then upstream's order. Where all answers tie at one vote, gold may be one of
   three or more that is a word, not a number, and that no other country shares; but only to complete a question of the
   parallel core (`splits`). `votes` tells these items apart.
2. Distractors have at least two votes in another country that does not share the language. None may share a concept with,
   be broader or narrower than, or be written like any answer of the local country, whatever its votes.
3. Exactly one distractor is of the US or UK; the two others are of other countries and no answers of the US or UK.
   English: gold is of the US, the three distractors of other countries.
4. All four have one form (number, time, date, text) and one script, and differ as answers and as strings.
5. None names a country (`leaks`), none is among the answers that were reviewed and rejected (`excluded.tsv`).

Of all valid sets the one with the lowest penalty is taken (`_choose`). An answer belongs to every country where at
least two annotators gave it; an option names them all, the country whose answer it is first.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING

from lm_eval_ext.data.blend import forms, leaks
from lm_eval_ext.data.blend.source import COUNTRIES, Answer, Corpus, fold
from lm_eval_ext.data.blend.tables import Meaning, excluded, generality, meaning, translations
from lm_eval_ext.fingerprints import hash_text
from lm_eval_ext.languages import ENGLISH_COUNTRIES, LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: An answer is a country's with this many votes.
MIN_VOTES = 2
#: Most sets of distractors of one question.
MAX_SETS = 3
_ONE_VOTE_ANSWERS = 3
# A concept that contains this many others ("food", "meat") is likely to be right in the local country too.
_GENERAL = 3

#: Other countries and regions of a language: their answers are no distractors.
SAME_LANGUAGE: dict[str, frozenset[str]] = {
    "en": frozenset({"UK"}),
    "es": frozenset({"Mexico"}),
    "id": frozenset({"West_Java"}),
    "ko": frozenset({"North_Korea"}),
}

# Reasons why there is no item, in the order of the tests.
NO_ANSWERS = "no answers from the local country"
NOT_APPLICABLE = "more annotators say it does not apply than give the top answer"
FEW_VOTES = "top answer of the local country has one vote"
UNUSABLE_GOLD = "gold names a country or has no single clean form"
NO_ENGLISH = "no distractor from the US or UK"
NO_OTHERS = "fewer distractors from other countries than needed"

# Reasons why an answer is no distractor, in the order of the tests.
NO_VOTES = "no answer with two votes"
NOT_KNOWN = "not in the concept table"
OVERLAPS = "means the same as a local answer, or is broader or narrower"
READ_AS_WRONG = "left out after reading"
ALSO_ENGLISH = "also an answer of the US or UK"
UNTRANSLATED = "no translation"
LEAK = "names a country"
WRITTEN_ALIKE = "written like a local answer"
OTHER_FORM = "another form or script than gold"
_TESTS = (
    NO_VOTES, NOT_KNOWN, OVERLAPS, READ_AS_WRONG, ALSO_ENGLISH, UNTRANSLATED, LEAK, WRITTEN_ALIKE, OTHER_FORM,
)  # fmt: skip


@dataclass(frozen=True)
class Option:
    """An option, its English form, the countries it belongs to, and its votes in the first of them."""

    text: str
    english: str
    countries: tuple[str, ...]
    votes: int


class Fallen(Exception):  # noqa: N818 - not an error: a question that yields no item
    """Raised where a question yields no item.

    Attributes:
        reason: one of this module's or `items`'s reasons.
        detail: further information.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class _Candidate:
    option: Option
    meaning: Meaning
    same_culture: bool

    @property
    def country(self) -> str:
        return self.option.countries[0]


def option_sets(
    corpus: Corpus, language: str, question_id: str, min_votes: int = MIN_VOTES
) -> list[tuple[Option, ...]]:
    """Up to three sets of four options, gold first: the same gold, other distractors.

    Args:
        min_votes: of gold; 1 for the core.

    Raises:
        Fallen: there is no valid set; it has the reason.
    """
    return _Rule(corpus, language, question_id, min_votes).option_sets()


def excluded_because(question_id: str, language: str, answer: str) -> str | None:
    """Why an answer (`*`: the question) was rejected in review, or None."""
    return excluded().get((question_id, language, answer)) or excluded().get((question_id, "*", answer))


def digest(*parts: object) -> str:
    """A hash that is stable across releases and platforms."""
    return hash_text(*parts, separator="\x1f")


class _Rule:
    """The rule applied to one question in one language."""

    def __init__(self, corpus: Corpus, language: str, question_id: str, min_votes: int) -> None:
        self.corpus, self.language, self.id, self.min_votes = corpus, language, question_id, min_votes
        self.country = LANGUAGES[language].country
        self.siblings = SAME_LANGUAGE.get(language, frozenset())
        self.question = corpus.countries[self.country][question_id]
        self.local = [(answer, meaning(answer.english)) for answer in self.question.answers]
        self.local_keys = {forms.key(text) for answer, _ in self.local for text in answer.local} - {""}
        self.same_culture = self._meanings(self.siblings)
        self.english = self._meanings(ENGLISH_COUNTRIES - {self.country})

    def option_sets(self) -> list[tuple[Option, ...]]:
        problem = Fallen(UNUSABLE_GOLD)
        for answer, answer_meaning in self._gold():
            gold = self._option_of(answer, answer_meaning)
            if gold is None:
                continue
            try:
                return self._sets(gold)
            except Fallen as reason:
                problem = reason
        raise problem

    def _gold(self) -> list[tuple[Answer, Meaning]]:
        if not self.local:
            raise Fallen(NO_ANSWERS)
        top = self.local[0][0].votes
        if self.question.not_applicable > top:
            raise Fallen(NOT_APPLICABLE)
        tied = [(answer, concept) for answer, concept in self.local if answer.votes == top]
        if top < MIN_VOTES:
            tied = [(answer, concept) for answer, concept in tied if self._is_enough_with_one_vote(answer, concept)]
        if top < self.min_votes or not tied:
            raise Fallen(FEW_VOTES)
        return sorted(tied, key=lambda pair: len(self._countries_of(pair[1])))

    def _is_enough_with_one_vote(self, answer: Answer, concept: Meaning) -> bool:
        """Whether it is a word among three or more answers, and no answer of another country."""
        words = all(forms.form(text) == forms.TEXT for text in answer.local)
        elsewhere = self._countries_of(concept) or any(concept.overlaps(other) for other in self.english)
        return words and len(self.local) >= _ONE_VOTE_ANSWERS and not elsewhere

    def _option_of(self, answer: Answer, answer_meaning: Meaning) -> Option | None:
        """Gold as an option: its first clean variant that names no country, a bare form before one with an article."""
        usable = [
            text for text in answer.local if forms.is_clean(text) and not leaks.find(text, self.language, self.id)
        ]
        if not usable or any(excluded_because(self.id, self.language, fold(variant)) for variant in answer.english):
            return None
        variants = [text for text in usable if forms.key(text) == forms.key(usable[0])]
        text = min(variants, key=lambda text: forms.oddness(text, self.language))
        english = next((variant for variant in answer.english if forms.is_clean(variant)), "")
        return Option(
            forms.display(text, self.language),
            forms.display(english, "en") if english else "",
            (self.country, *self._countries_of(answer_meaning, without={self.country})),
            answer.votes,
        )

    def _sets(self, gold: Option) -> list[tuple[Option, ...]]:
        heads = [] if self.language == "en" else [self._candidates(gold, sorted(ENGLISH_COUNTRIES), NO_ENGLISH)]
        elsewhere = set(self.corpus.countries) - ENGLISH_COUNTRIES - self.siblings - {self.country}
        countries = sorted(elsewhere, key=lambda country: digest(self.id, country))
        others = self._candidates(gold, countries, NO_OTHERS)
        sets: list[tuple[Option, ...]] = []
        while len(sets) < MAX_SETS and (chosen := _choose(gold, heads, others, 3 - len(heads))):
            sets.append((gold, *(candidate.option for candidate in chosen)))
            heads = [[candidate for candidate in head if candidate not in chosen] for head in heads]
            others = [candidate for candidate in others if candidate not in chosen]
        if not sets:
            raise Fallen(NO_OTHERS, f"{len(others)} left, not enough that differ from each other")
        return sets

    def _candidates(self, gold: Option, countries: Iterable[str], reason: str) -> list[_Candidate]:
        """All answers of these countries that may be distractors; `Fallen` with the furthest failed test if none."""
        candidates: list[_Candidate] = []
        failures: set[str] = set()
        for country in countries:
            question = self.corpus.countries.get(country, {}).get(self.id)
            for answer in question.answers if question else ():
                if answer.votes < MIN_VOTES or not answer.english:
                    continue
                candidate = self._candidate(answer, country, gold)
                if isinstance(candidate, _Candidate):
                    candidates.append(candidate)
                else:
                    failures.add(candidate)
        if not candidates:
            raise Fallen(reason, max(failures, key=_TESTS.index, default=NO_VOTES))
        return candidates

    def _candidate(self, answer: Answer, country: str, gold: Option) -> _Candidate | str:
        """The answer as a distractor, or the reason why it is none."""
        concept = meaning(answer.english)
        kind = forms.form(gold.text)
        counted = kind in forms.COUNTED
        if country not in COUNTRIES and not concept.known and not counted:
            return NOT_KNOWN
        if any(concept.overlaps(other) for _, other in self.local):
            return OVERLAPS
        if any(excluded_because(self.id, self.language, fold(variant)) for variant in answer.english):
            return READ_AS_WRONG
        if country not in ENGLISH_COUNTRIES and any(concept.names & other.names for other in self.english):
            return ALSO_ENGLISH
        text, english = self._in_language(answer)
        if not text:
            return UNTRANSLATED
        if leaks.find(text, self.language, self.id):
            return LEAK
        key = forms.key(text)
        local_keys = self.local_keys | {forms.key(gold.text)}
        if key in local_keys or (not counted and any(forms.contains(key, local) for local in local_keys)):
            return WRITTEN_ALIKE
        if forms.form(text) != kind or forms.script(text) != forms.script(gold.text):
            return OTHER_FORM
        countries = (country, *self._countries_of(concept, without={country}))
        shared = any(concept.overlaps(other) for other in self.same_culture)
        return _Candidate(Option(text, english, countries, answer.votes), concept, shared)

    def _in_language(self, answer: Answer) -> tuple[str, str]:
        """The answer in the item's language and in English, both as shown; empty where there is no clean form."""
        for variant in answer.english:
            if forms.form(variant) in forms.COUNTED or self.language == "en":
                text: str | None = variant
            else:
                text = translations(self.language).get(fold(variant))
            if text and forms.is_clean(text):
                return forms.display(text, self.language), forms.display(variant, "en")
        return "", ""

    def _meanings(self, countries: Iterable[str]) -> list[Meaning]:
        questions = (self.corpus.countries.get(country, {}).get(self.id) for country in sorted(countries))
        return [meaning(a.english) for q in questions if q for a in q.answers if a.votes >= MIN_VOTES and a.english]

    def _countries_of(self, concept: Meaning, without: Iterable[str] = ()) -> list[str]:
        """Every country where the answer has two votes."""
        return [
            country
            for country, questions in self.corpus.countries.items()
            if country not in without and self.id in questions
            for answers in [questions[self.id].answers]
            if any(a.votes >= MIN_VOTES and meaning(a.english).primary == concept.primary != "" for a in answers)
        ]


def _choose(
    gold: Option, heads: Sequence[Sequence[_Candidate]], others: Sequence[_Candidate], needed: int
) -> tuple[_Candidate, ...] | None:
    """The distractors: one of each head and `needed` others, all different as answers and as texts.

    Of all such sets the first with the lowest penalty. Penalties, the highest first: an option that is also an answer of
    another country of the language; one country twice, or one option broader than another; an option so general that it
    may be right anywhere; an answer of a region, of many countries, of few votes, or much longer than gold.
    """
    pool = [*(candidate for head in heads for candidate in head), *others]
    cost = [_penalty(candidate, gold) for candidate in pool]
    pairs = {(i, j): _pair_penalty(pool[i], pool[j]) for i, j in combinations(range(len(pool)), 2)}
    rest = range(len(pool) - len(others), len(pool))
    best: tuple[int, tuple[int, ...]] | None = None
    for numbers in (
        (*head, *tail) for head in product(*map(range, map(len, heads))) for tail in combinations(rest, needed)
    ):
        pair_penalties = [pairs[pair] for pair in combinations(numbers, 2)]
        if None in pair_penalties:
            continue
        total = sum(cost[n] for n in numbers) + sum(filter(None, pair_penalties))
        if best is None or total < best[0]:
            best = total, numbers
    return tuple(pool[n] for n in best[1]) if best else None


def _pair_penalty(a: _Candidate, b: _Candidate) -> int | None:
    """The penalty of two options in one set; None where they are the same answer."""
    if forms.key(a.option.text) == forms.key(b.option.text) or a.meaning.names & b.meaning.names:
        return None
    return 4 * (a.country == b.country) + 4 * a.meaning.overlaps(b.meaning)


def _penalty(candidate: _Candidate, gold: Option) -> int:
    """The penalty of one option."""
    general = generality()[candidate.meaning.primary] >= _GENERAL
    region = candidate.country not in COUNTRIES
    widespread = len(candidate.option.countries) - 1
    unpopular = max(0, 4 - candidate.option.votes)
    longer = min(3, max(0, len(candidate.option.text) - len(gold.text)) // max(2, len(gold.text) // 2))
    return 8 * candidate.same_culture + 4 * general + 2 * region + widespread + unpopular + longer
