"""The table of the review, and `lm-eval-ext data review`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.data.blend import dataset, review
from lm_eval_ext.data.blend.tables import decontext
from lm_eval_ext.languages import LANGUAGES


def ask(file: Path, lines: str, *more: str) -> str:
    arguments = ["data", "review", "--lang", "el", "--file", str(file), *more]
    result = CliRunner().invoke(cli.app, arguments, input=lines)
    assert result.exit_code == 0, result.output
    return result.output


def test_every_row_is_a_verdict_with_its_class_and_reason() -> None:
    for row in review.table():
        assert row.language in (*LANGUAGES, review.ANY), row
        assert row.id in decontext("en"), row
        assert row.verdict in review.VERDICTS, row
        assert (row.subject == review.ANY) == (row.verdict in review.FINAL) or row.verdict == review.KEEP, row
        assert bool(row.replacement) == (row.verdict in (review.VARIANT, review.EDIT)), row
        if row.verdict != review.KEEP:
            assert row.kind in review.CLASSES, row
            assert row.reason.strip(), row


def test_rows_are_written_as_they_are_read() -> None:
    for row in review.table()[:200]:
        padded = [*row.line().rstrip("\n").split("\t"), "", "", "", "", ""]
        assert review.Verdict(*padded[:8]) == row


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_item_was_read(shared_data: Path, monkeypatch: pytest.MonkeyPatch, language: str) -> None:
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(shared_data))
    read = {row.id for row in review.table() if row.language == language and not row.reader}
    unread = [row["id"] for row in dataset.documents(language, split="all") if row["id"] not in read]
    assert unread == []


@pytest.fixture
def mirror(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(shared_data))


@pytest.mark.usefixtures("mirror")
def test_a_reader_sees_an_item_gives_verdicts_and_goes_on_later(tmp_path: Path) -> None:
    file = tmp_path / "review.tsv"
    first, second = dataset.arranged(dataset.corpus(), "el", 0)[:2]
    wrong = "ABCD"[(first.gold + 1) % 4]
    output = ask(file, f"x {wrong} true-too sold here as well\nk\nq\n")
    assert first.question in output
    assert first.options[first.gold].text in output
    rows = review.read(file)
    assert [(row.id, row.verdict, row.reader) for row in rows] == [
        (first.question_id, review.EXCLUDE, "human"),
        (first.question_id, review.KEEP, "human"),
    ]
    assert rows[0].subject == first.options["ABCD".index(wrong)].english.lower()
    assert rows[0].reason == "sold here as well"
    again = ask(file, "d gold-false no longer true\n")
    assert second.question in again
    assert first.question not in again
    assert review.read(file)[-1].verdict == review.DROP
    assert first.question in ask(file, "q\n", "--reader", "maria")  # she has read nothing yet


@pytest.mark.usefixtures("mirror")
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("z", "no such verdict: 'z'"),
        ("x", "x needs a letter from A to D"),
        ("x E true-too here", "x needs a letter from A to D, not 'E'"),
        ("d because", "a class and a reason are needed"),
        ("d wrong it is", "classes: wording"),
        ("e something", "e needs OLD => NEW"),
        ("v A", "v needs the new text"),
    ],
)
def test_an_answer_that_is_no_verdict_is_asked_again(tmp_path: Path, answer: str, message: str) -> None:
    assert message in ask(tmp_path / "review.tsv", f"{answer}\nq\n")
    assert not (tmp_path / "review.tsv").exists()


@pytest.mark.usefixtures("mirror")
def test_gold_is_not_excluded(tmp_path: Path) -> None:
    first = dataset.arranged(dataset.corpus(), "el", 0)[0]
    assert "is gold: drop the item" in ask(tmp_path / "r.tsv", f"x {'ABCD'[first.gold]} true-too it is\nq\n")


def test_the_classes_found_are_those_of_the_card() -> None:
    counted = Counter(row.kind for row in review.table() if row.kind)
    assert set(counted) <= set(review.CLASSES)
