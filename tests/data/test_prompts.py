"""The words of the cloze prompts."""

from __future__ import annotations

import unicodedata

import pytest

from lm_eval_ext.data.prompts import PROMPTS
from lm_eval_ext.languages import LANGUAGES


@pytest.mark.parametrize("code", PROMPTS)
def test_every_language_has_two_words_of_its_own(code: str) -> None:
    prompt = PROMPTS[code]
    for word in (prompt.question, prompt.answer):
        assert word == word.strip() == unicodedata.normalize("NFC", word)
        assert ":" not in word
    assert prompt.question != prompt.answer
    assert prompt.template == (
        f"{prompt.question}{prompt.colon}{prompt.delimiter}{{{{question.strip()}}}}\n{prompt.answer}{prompt.colon}"
    )


def test_languages_without_spaces_have_a_wide_colon_and_no_delimiter() -> None:
    wide = {code for code, prompt in PROMPTS.items() if prompt.colon == "："}
    assert wide == {code for code, prompt in PROMPTS.items() if not prompt.delimiter} == {"ja", "zh"}


def test_the_seven_languages_have_the_words_they_always_had() -> None:
    for code, language in LANGUAGES.items():
        assert PROMPTS[code] == (language.question, language.answer, language.colon, language.delimiter)
