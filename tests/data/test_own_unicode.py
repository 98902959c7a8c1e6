"""Text that looks equal and differs in its Unicode form."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from lm_eval_ext.data import own
from lm_eval_ext.data.questions import look
from lm_eval_ext.errors import DataError


def put(folder: Path, options: list[str], answer: str | int) -> Path:
    file = folder / "my.jsonl"
    row = {"question": "?", "options": options, "answer": answer, "language": "ko"}
    file.write_text(json.dumps(row) + "\n", "utf-8")
    return file


@pytest.mark.parametrize("text", ["한국 음식", "café", "Ελλάδα", "Tiếng Việt"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_an_answer_in_another_form_is_found(tmp_path, text, form):
    other = unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[form], text)
    option = unicodedata.normalize(form, text)
    (document,) = own.read(put(tmp_path, ["x", option], other))
    assert document["gold"] == 1
    assert document["options"][1] == option  # as it was given


def test_an_answer_with_what_cannot_be_seen_is_found(tmp_path):
    (document,) = own.read(put(tmp_path, ["x", "rice\u200b cake"], "\ufeffrice\u00a0cake"))
    assert document["gold"] == 1


@pytest.mark.parametrize(
    "options",
    [
        ["caf\u00e9", "cafe\u0301"],
        ["\ud55c", "\u1112\u1161\u11ab"],
        ["a b", "a\u00a0b"],
        ["ab", "a\u200bb"],
        ["ab", "ab\u200f"],
    ],
)
def test_options_that_look_the_same_are_refused(tmp_path, options):
    with pytest.raises(DataError, match=r"options 0 and 1 look the same.*Unicode form \('.*' and '.*'\)"):
        own.read(put(tmp_path, options, 0))


def test_an_option_that_shows_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"option 1 shows nothing: '\\u200b'"):
        own.read(put(tmp_path, ["a", "\u200b"], 0))


def test_what_looks_different_stays_different():
    texts = ["x2", "x²", "Ａ", "A", "a", "á", "نمی\u200cخواهم", "نمیخواهم"]
    assert len({look(text) for text in texts}) == len(texts)
