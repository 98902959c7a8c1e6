"""A small BLEnD made up for tests: real question ids, so that the packaged tables apply, with any answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_eval_ext.data.blend import duplicates, review, splits
from lm_eval_ext.data.blend.source import COUNTRIES, OTHER_REGIONS, Answer, Corpus, Question, Template
from lm_eval_ext.data.blend.tables import decontext
from lm_eval_ext.languages import LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pytest

#: Ids whose country is taken out in one step in every language, that are not kept for extraction and ask for words, and
#: that no other question is like.
IDS = [
    question_id
    for question_id, edits in decontext("en").items()
    if all(len(decontext(code).get(question_id, edits).steps) == 1 for code in LANGUAGES)
    and splits.of(question_id) == splits.TEST
    and not duplicates.alike(question_id)
]


def set_review(monkeypatch: pytest.MonkeyPatch, *verdicts: review.Verdict) -> None:
    """Let the items be built with these verdicts only."""
    review._by_question.cache_clear()
    monkeypatch.setattr(review, "table", lambda: verdicts)


def answer(english: str | Sequence[str], votes: int, local: str | Sequence[str] | None = None) -> Answer:
    variants = (english,) if isinstance(english, str) else tuple(english)
    own = variants if local is None else (local,) if isinstance(local, str) else tuple(local)
    return Answer(own, variants, votes)


def corpus(answers: Mapping[str, Mapping[str, Sequence[Answer]]]) -> Corpus:
    """A corpus from question id -> country -> answers; the wordings are made so that the edits apply."""
    countries: dict[str, dict[str, Question]] = {country: {} for country in (*COUNTRIES, *OTHER_REGIONS)}
    for question_id, by_country in answers.items():
        for code, language in LANGUAGES.items():
            text = decontext(code)[question_id].steps[0][0]
            countries[language.country][question_id] = Question(question_id, text, text, ())
        for country, given in by_country.items():
            before = countries[country].get(question_id, Question(question_id, "", "", ()))
            ordered = tuple(sorted(given, key=lambda one: -one.votes))
            countries[country][question_id] = Question(question_id, before.text, before.english, ordered)
    templates = {i: Template(i, "Food", decontext("en")[i].steps[0][0]) for i in answers}
    return Corpus(templates, countries)
