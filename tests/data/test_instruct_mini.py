"""The shipped instruction set: complete, split for good, and nothing of it is ever asked in an evaluation."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

import pytest

from lm_eval_ext.data import instruct, sources
from lm_eval_ext.languages import LANGUAGES, NON_ENGLISH

EVALUATED = ("mini/transfer.jsonl", "mini/localization.jsonl", "mini/pairs_en.jsonl", "mini/pairs_loc.jsonl")


def every_row() -> list[instruct.Instruction]:
    return instruct.load("mini", split=None)[0]


def words(text: str) -> set[str]:
    return set(instruct.normal_form(text).split())


def test_every_question_is_there_in_every_language() -> None:
    rows = every_row()
    ids = {row.id for row in rows}
    assert len(ids) >= 96
    assert Counter(row.language for row in rows) == dict.fromkeys(LANGUAGES, len(ids))
    assert len({row.id for row in rows if row.cultural}) >= 24
    assert all(row.source for row in rows)


def test_a_sixth_of_each_kind_is_held_out_and_never_trained_on() -> None:
    train, held_out = instruct.load("mini")[0], instruct.load("mini", split="held_out")[0]
    assert not {row.id for row in train} & {row.id for row in held_out}
    assert not {row.question for row in train} & {row.question for row in held_out}
    for cultural in (True, False):
        n = len({row.id for row in every_row() if row.cultural == cultural})
        assert len({row.id for row in held_out if row.cultural == cultural}) == n // 6


def test_the_tuples_say_what_the_instructions_say() -> None:
    said = {(row.id, row.language): (row.prompt, row.response) for row in every_row()}
    tuples = instruct.load_tuples("mini", split=None)[0]
    assert Counter(row.language for row in tuples) == dict.fromkeys(NON_ENGLISH, len(said) // len(LANGUAGES))
    for row in tuples:
        assert (row.x_en, row.y_en) == said[row.id, "en"]
        assert (row.x_xx, row.y_xx) == said[row.id, row.language]


def test_texts_are_in_the_script_of_their_language() -> None:
    scripts = {"el": ("Ͱ", "Ͽ"), "ko": ("가", "힣"), "zh": ("一", "鿿"), "ar": ("؀", "ۿ")}
    for row in every_row():
        first, last = scripts.get(row.language, ("a", "z"))
        for text in (row.prompt, row.response):
            letters = [c for c in text if c.isalpha()]
            assert sum(first <= c <= last or c.isascii() == (last == "z") for c in letters) > 0.5 * len(letters), row


def test_english_is_american_and_prompts_name_no_place_of_the_country() -> None:
    british = r"(?i)\b(colours?|favourites?|metres?|tyres?|practise|recognise|summarise|on holiday)\b"
    for row in every_row():
        if row.language == "en":
            assert not re.search(british, f"{row.prompt} {row.response}"), row
        assert "Jawa" not in row.prompt, row


def test_no_question_is_evaluated_or_extracted_from() -> None:
    asked: dict[str, set[str]] = {code: set() for code in LANGUAGES}
    for name in EVALUATED:
        for row in sources.read_jsonl(sources.packaged(name)):
            for key in ("question", "named", "plain", "text"):
                for code, text in row.get(key, {}).items():
                    asked[code].add(instruct.normal_form(text))
    assert all(asked.values())
    for row in every_row():
        assert row.question not in asked[row.language], row
    english = [words(text) for text in asked["en"]]
    for row in every_row():
        if row.language == "en":
            said = words(row.prompt)
            assert max(len(said & other) / len(said | other) for other in english) <= 0.5, row.prompt


def test_no_question_is_one_of_blend(shared_data: Path) -> None:
    with (shared_data / "blend" / "questions" / "US_questions.csv").open(encoding="utf-8") as file:
        asked = [row["Translation"].partition("(")[0].replace(" in the US", "") for row in csv.DictReader(file)]
    for row in every_row():
        if row.language == "en":
            said = words(row.prompt)
            nearest = max(asked, key=lambda text: len(said & words(text)) / len(said | words(text)))
            assert len(said & words(nearest)) / len(said | words(nearest)) <= 0.5, (row.prompt, nearest)


@pytest.mark.parametrize("code", LANGUAGES)
def test_one_language_can_be_asked_for(code: str) -> None:
    rows, report = instruct.load("mini", [code])
    assert {row.language for row in rows} == {code}
    assert sum(report.left_out["in a language that is not wanted"].values()) == (len(LANGUAGES) - 1) * 100
