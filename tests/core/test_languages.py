"""Codes of languages, and which languages have names."""

from __future__ import annotations

import pytest

from lm_eval_ext import languages
from lm_eval_ext.errors import LanguageError
from lm_eval_ext.languages import FURTHER, KNOWN, LANGUAGES, normalise
from lm_eval_ext.viz.panels import language_style


@pytest.mark.parametrize(
    ("tag", "code"),
    [
        ("tr", "tr"),
        ("TUR", "tr"),
        ("ben_Beng", "bn"),
        ("fra_Latn", "fr"),
        ("ru-RU", "ru"),
        ("zsm_Latn", "ms"),
        ("kor_Hang", "ko"),
        ("zho_Hans", "zh"),
        ("arb", "ar"),
        ("apc_arab_jord", "apc"),
        ("fil", "fil"),
        ("any", "any"),
    ],
)
def test_codes(tag: str, code: str) -> None:
    assert normalise(tag) == code


def test_the_seven_languages_stay_the_seven() -> None:
    assert tuple(LANGUAGES) == ("en", "es", "id", "el", "ko", "zh", "ar")
    assert tuple(FURTHER) == ("tr", "bn", "fr", "ru")
    assert tuple(KNOWN) == (*LANGUAGES, *FURTHER)
    with pytest.raises(LanguageError, match="unknown language 'tr'; valid: en, es, id, el, ko, zh, ar "):
        languages.get("tr")
    assert languages.get("tur", KNOWN).country == "Turkey"


def test_every_language_has_a_style_of_its_own() -> None:
    styles = [tuple(language_style(code).values()) for code in KNOWN]
    assert len(set(styles)) == len(styles)
