"""Which voted answers may be options of a question: gold, and the pool that its distractors are chosen from.

For each question of a language (BLEnD's own multiple-choice rule, made stricter):

1. Gold is the local country's answer with the most votes, of tied ones upstream's first. It has at least two votes, and
   three or more (it is `firm`) where another answer has as many.
2. Distractors have at least two votes in another country that does not share the language. None may share a concept with,
   be broader or narrower than, or be written like any answer of the local country to this question or to one that asks
   the same (`duplicates`), whatever its votes; English forms and local texts are compared by their stems. None is gold of
   a question that is asked alike.
3. Numbers lie outside the range of the local answers by more than their step, times an hour or more from each.
4. Exactly one distractor is of the US or UK, where one vote is enough if no answer with two is left; the two others are
   of other countries and no answers of the US or UK. English: gold is of the US, the three distractors of
   other countries.
5. All four have one form (number, time, date, text) and one script, and differ as answers and as strings.
6. None names a country (`leaks`), none was rejected by a reader (`review`).

`selection` chooses among the valid sets. An answer belongs to every country where at least two annotators gave it; an
option names them all, the country whose answer it is first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_eval_ext.data.blend import duplicates, forms, leaks, review
from lm_eval_ext.data.blend.source import COUNTRIES, Answer, Corpus, fold
from lm_eval_ext.data.blend.tables import Meaning, meaning, translations
from lm_eval_ext.fingerprints import hash_text
from lm_eval_ext.languages import ENGLISH_COUNTRIES, LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Iterable

#: An answer is a country's with this many votes.
MIN_VOTES = 2
#: A gold with this many votes is firm.
FIRM_VOTES = 3

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
TIED = "several answers of the local country are tied at two votes"
UNUSABLE_GOLD = "gold names a country or has no single clean form"
NO_ENGLISH = "no distractor from the US or UK"
NO_OTHERS = "fewer distractors from other countries than needed"

# Reasons why an answer is no distractor, in the order of the tests.
NO_VOTES = "no answer with two votes"
NOT_KNOWN = "not in the concept table"
OVERLAPS = "means the same as a local answer, or is broader or narrower"
REJECTED = "rejected by a reader"
ALSO_ENGLISH = "also an answer of the US or UK"
UNTRANSLATED = "no translation"
LEAK = "names a country"
WRITTEN_ALIKE = "written like a local answer"
NEAR = "a number in the range of the local answers, or a time within an hour of one"
GOLD_ELSEWHERE = "gold of a question that is asked alike"
OTHER_FORM = "another form or script than gold"
_TESTS = (
    NO_VOTES, NOT_KNOWN, OVERLAPS, REJECTED, ALSO_ENGLISH, UNTRANSLATED, LEAK, WRITTEN_ALIKE, NEAR, GOLD_ELSEWHERE,
    OTHER_FORM,
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
class Candidate:
    """An answer that may be a distractor.

    Attributes:
        same_culture: it is an answer of another country of the language too.
    """

    option: Option
    meaning: Meaning
    same_culture: bool

    @property
    def country(self) -> str:
        """The country whose answer it is."""
        return self.option.countries[0]


@dataclass(frozen=True)
class Pool:
    """Gold and the candidates for its distractors.

    Attributes:
        english: of the US and UK; exactly one becomes an option. Empty in English.
        others: of the other countries.
    """

    language: str
    id: str
    gold: Option
    english: tuple[Candidate, ...]
    others: tuple[Candidate, ...]


def pool(corpus: Corpus, language: str, question_id: str) -> Pool:
    """Gold and the pool of one question.

    Raises:
        Fallen: there is no gold, or no candidate; it has the reason.
    """
    return _Rule(corpus, language, question_id).pool()


def digest(*parts: object) -> str:
    """A hash that is stable across releases and platforms."""
    return hash_text(*parts, separator="\x1f")


class _Rule:
    """The rule applied to one question in one language."""

    def __init__(self, corpus: Corpus, language: str, question_id: str) -> None:
        self.corpus, self.language, self.id = corpus, language, question_id
        self.country = LANGUAGES[language].country
        self.siblings = SAME_LANGUAGE.get(language, frozenset())
        local = corpus.countries[self.country]
        self.question = local[question_id]
        asked_the_same = (local[other] for other in sorted(duplicates.same(question_id)) if other in local)
        self.local = [
            (answer, meaning(answer.english))
            for question in (self.question, *asked_the_same)
            for answer in question.answers
        ]
        self.local_texts = [text for answer, _ in self.local for text in answer.local]
        self.local_keys = {forms.key(text) for text in self.local_texts} - {""}
        self.same_culture = self._meanings(self.siblings)
        self.english = self._meanings(ENGLISH_COUNTRIES - {self.country})

    def pool(self) -> Pool:
        gold = self.gold()
        alike = (_Rule(self.corpus, self.language, other).gold_or_none() for other in self._asked_alike())
        self.gold_elsewhere = {forms.key(other.text) for other in alike if other}
        english = () if self.language == "en" else self._english_candidates(gold)
        elsewhere = set(self.corpus.countries) - ENGLISH_COUNTRIES - self.siblings - {self.country}
        countries = sorted(elsewhere, key=lambda country: digest(self.id, country))
        return Pool(self.language, self.id, gold, english, self._candidates(gold, countries, NO_OTHERS))

    def gold(self) -> Option:
        """The top answer as an option."""
        answers = self.question.answers
        if not answers:
            raise Fallen(NO_ANSWERS)
        top = answers[0].votes
        if self.question.not_applicable > top:
            raise Fallen(NOT_APPLICABLE)
        if top < MIN_VOTES:
            raise Fallen(FEW_VOTES)
        if top < FIRM_VOTES and sum(answer.votes == top for answer in answers) > 1:
            raise Fallen(TIED)
        return self._option_of(*self.local[0])

    def gold_or_none(self) -> Option | None:
        try:
            return self.gold()
        except Fallen:
            return None

    def _asked_alike(self) -> list[str]:
        local = self.corpus.countries[self.country]
        return [other for other in sorted(duplicates.alike(self.id)) if other in local]

    def _option_of(self, answer: Answer, answer_meaning: Meaning) -> Option:
        """Gold as an option: its first clean variant that names no country, a bare form before one with an article."""
        english = next((variant for variant in answer.english if forms.is_clean(variant)), "")
        chosen = next(filter(None, (review.variant(self.id, self.language, fold(v)) for v in answer.english)), None)
        usable = [
            text
            for text in ((chosen,) if chosen else answer.local)
            if forms.is_clean(text) and not leaks.find(text, self.language, self.id)
        ]
        if not usable or any(review.excluded(self.id, self.language, fold(variant)) for variant in answer.english):
            raise Fallen(UNUSABLE_GOLD)
        variants = [text for text in usable if forms.key(text) == forms.key(usable[0])]
        text = min(variants, key=lambda text: forms.oddness(text, self.language))
        return Option(
            chosen or forms.display(text, self.language),
            forms.display(english, "en") if english else "",
            (self.country, *self._countries_of(answer_meaning, without={self.country})),
            answer.votes,
        )

    def _english_candidates(self, gold: Option) -> tuple[Candidate, ...]:
        """Answers of the US and UK, those of one vote only where no other is left."""
        countries = sorted(ENGLISH_COUNTRIES)
        try:
            return self._candidates(gold, countries, NO_ENGLISH)
        except Fallen as fall:
            try:
                return self._candidates(gold, countries, NO_ENGLISH, min_votes=1)
            except Fallen:
                raise fall from None

    def _candidates(
        self, gold: Option, countries: Iterable[str], reason: str, min_votes: int = MIN_VOTES
    ) -> tuple[Candidate, ...]:
        """All answers of these countries that may be distractors; `Fallen` with the furthest failed test if none."""
        candidates: list[Candidate] = []
        failures: set[str] = set()
        for country in countries:
            question = self.corpus.countries.get(country, {}).get(self.id)
            for answer in question.answers if question else ():
                if answer.votes < min_votes or not answer.english:
                    continue
                candidate = self._candidate(answer, country, gold)
                if isinstance(candidate, Candidate):
                    candidates.append(candidate)
                else:
                    failures.add(candidate)
        if not candidates:
            raise Fallen(reason, max(failures, key=_TESTS.index, default=NO_VOTES))
        return tuple(candidates)

    def _candidate(self, answer: Answer, country: str, gold: Option) -> Candidate | str:
        """The answer as a distractor, or the reason why it is none."""
        concept = meaning(answer.english)
        kind = forms.form(gold.text)
        counted = kind in forms.COUNTED
        if country not in COUNTRIES and not concept.known and not counted:
            return NOT_KNOWN
        if any(concept.overlaps(other) for _, other in self.local):
            return OVERLAPS
        if any(review.excluded(self.id, self.language, fold(variant)) for variant in answer.english):
            return REJECTED
        if country not in ENGLISH_COUNTRIES and any(concept.names & other.names for other in self.english):
            return ALSO_ENGLISH
        text, english = self._in_language(answer)
        if not text:
            return UNTRANSLATED
        if leaks.find(text, self.language, self.id):
            return LEAK
        key = forms.key(text)
        if counted:
            if forms.is_near(text, self.local_texts):
                return NEAR
        elif any(forms.overlap(key, local, self.language) for local in self.local_keys | {forms.key(gold.text)}):
            return WRITTEN_ALIKE
        if key in self.gold_elsewhere:
            return GOLD_ELSEWHERE
        if forms.form(text) != kind or forms.script(text) != forms.script(gold.text):
            return OTHER_FORM
        countries = (country, *self._countries_of(concept, without={country}))
        shared = any(concept.overlaps(other) for other in self.same_culture)
        return Candidate(Option(text, english, countries, answer.votes), concept, shared)

    def _in_language(self, answer: Answer) -> tuple[str, str]:
        """The answer in the item's language and in English, both as shown; empty where there is no clean form."""
        for variant in answer.english:
            if chosen := review.variant(self.id, self.language, fold(variant)):
                return chosen, forms.display(variant, "en")
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
