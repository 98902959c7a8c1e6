"""Our tables: how they are read, how edits apply, what counts as the same answer."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from lm_eval_ext.data import sources
from lm_eval_ext.data.blend import source, tables
from lm_eval_ext.data.blend.tables import EditError, Edits, meaning
from lm_eval_ext.languages import LANGUAGES

if TYPE_CHECKING:
    from pathlib import Path


def test_edits_apply_in_order() -> None:
    edits = Edits((("in your country", "there"), ("there?", "?")))
    assert tables.remove_country("What do people eat in your country?", edits) == "What do people eat ?"


@pytest.mark.parametrize("question", ["What do people eat?", "In Spain, what do people from Spain eat?"])
def test_a_text_that_is_not_there_exactly_once_is_an_error(question: str) -> None:
    with pytest.raises(EditError, match="times, not once"):
        tables.remove_country(question, Edits(((" Spain", ""),)))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_row_of_the_edits_is_an_edit_or_a_drop_with_its_reason(language: str) -> None:
    for fields in tables.rows(f"{language}/decontext.tsv", 5):
        assert fields[2] if fields[1] == "edit" else fields[1] == "drop" and fields[4], fields


def test_fields_keep_their_spaces() -> None:
    assert tables.decontext("en")["Al-en-01"].steps == ((" in your country", ""),)


def test_a_checkout_with_windows_newlines_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(sources.packaged("blend_tables"), tmp_path / "blend_tables")
    names = [str(file.relative_to(tmp_path / "blend_tables")) for file in tmp_path.rglob("*.tsv")]
    before = {name: tables.rows(name, 9) for name in names}
    for file in tmp_path.rglob("*.tsv"):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    monkeypatch.setattr(sources, "packaged", lambda name: tmp_path / name)
    assert {name: tables.rows(name, 9) for name in names} == before


def overlaps(a: str, b: str) -> bool:
    first, second = meaning((a,)), meaning((b,))
    assert first.overlaps(second) == second.overlaps(first)
    return first.overlaps(second)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("soccer", "football"),  # one concept
        ("apple", "fruit"),  # narrower
        ("red wine", "wine"),
        ("Eggs", "egg-filled pancake"),  # one vote only: not in the table, but one's words are among the other's
        ("08:00", "8:00"),
        ("toy", "toys"),
    ],
)
def test_what_is_the_same_broader_or_narrower(a: str, b: str) -> None:
    assert overlaps(a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [("apple", "banana"), ("0.5", "5"), ("1", "1.5"), ("harvard university", "comillas pontifical university")],
)
def test_what_is_not(a: str, b: str) -> None:
    assert not overlaps(a, b)


def test_answers_of_the_other_regions_have_a_meaning_and_a_word_in_each_language() -> None:
    assert meaning(("teji",)).known
    assert {tables.translations(code)["teji"] for code in LANGUAGES if code != "en"} >= {"hidromiel", "蜂蜜酒"}


@pytest.mark.parametrize("name", ["leaks_allowed.tsv"])
def test_exceptions_give_their_reason(name: str) -> None:
    assert all(reason.strip() for *_, reason in tables.rows(name, 4))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_answer_of_the_own_country_has_a_concept(
    language: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(shared_data))
    questions = source.corpus().countries[LANGUAGES[language].country].values()
    answers = {answer.english for question in questions for answer in question.answers if answer.english}
    words = {english for english in answers if not any(map(str.isdigit, english[0]))}
    assert {english for english in words if not meaning(english).known} == set()
