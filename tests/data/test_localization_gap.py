"""localization_gap: the questions, their splits, the order of their options, and the pairs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager
from typer.testing import CliRunner

from lm_eval_ext.cli import app
from lm_eval_ext.data import derived, localization_gap, pairs, sources
from lm_eval_ext.data.localization_gap import LANGUAGES, SPLITS, documents
from lm_eval_ext.errors import DataError, LanguageError
from lm_eval_ext.paths import tasks_dir

#: Documents of each language: 39 and 81, less those whose options have one text twice.
COUNTS = {"tr": (39, 79), "bn": (39, 80), "fr": (39, 80), "ru": (39, 79), "en": (39, 80)}


@pytest.fixture(autouse=True)
def _mirror(upstream_data: Path) -> None:
    """The data is set for each test: the real one for what is counted or published, else the small mirror does."""


@pytest.mark.usefixtures("shared_data")
@pytest.mark.parametrize("code", LANGUAGES)
@pytest.mark.parametrize("split", SPLITS)
def test_the_local_option_is_right_and_one_option_is_of_the_us(code: str, split: str) -> None:
    rows = documents(code, split=split)
    assert len(rows) == COUNTS[code][split == "test"]
    for row in rows:
        assert len(set(row["options"])) == len(row["countries"]) == 5
        assert row["countries"][row["gold"]] == [row["country"]]
        assert row["countries"].count(["US"]) == 1
        assert row["subtask"] in ("names", "cities", "culture")
        assert (row["language"], row["split"], row["context"]) == (code, split, False)


@pytest.mark.parametrize("code", LANGUAGES)
def test_the_country_is_named_before_the_same_question_with_the_same_options(code: str) -> None:
    for split in SPLITS:
        named = documents(code, named=True, split=split)
        for with_country, row in zip(named, documents(code, split=split), strict=True):
            sentence = with_country["question"].removesuffix(row["question"])
            assert with_country["question"] == sentence + row["question"] != row["question"]
            assert {**with_country, "question": "", "context": False} == {**row, "question": ""}


@pytest.mark.usefixtures("shared_data")
def test_questions_on_names_ask_for_names() -> None:
    upstream = {row["question"] for row in documents("en", split="test") if row["subtask"] == "cities"}
    for row in documents("en", split="test"):
        assert (row["question"] in upstream) == (row["subtask"] == "cities")
    (named,) = {row["question"] for row in documents("en", named=True) if row["subtask"] == "names"}
    assert named == "I live in the United States. Which of the following names is most likely my name?"


def test_positions_are_balanced() -> None:
    """Of 80 questions every position has 16 right options and 16 of the US, up to the blocks that are not whole."""
    for code in LANGUAGES:
        rows = documents(code)
        for positions in ([row["gold"] for row in rows], [row["countries"].index(["US"]) for row in rows]):
            assert all(14 <= Counter(positions)[position] <= 18 for position in range(5))


@pytest.mark.usefixtures("shared_data")
def test_a_question_is_in_one_split_in_every_language_and_form() -> None:
    of_id: dict[str, set[str]] = {}
    for code in LANGUAGES:
        for named in (False, True):
            for split in SPLITS:
                for row in documents(code, named, split):
                    of_id.setdefault(row["id"], set()).add(split)
                    of_id.setdefault(row["cluster"], set()).add(split)
    assert len(of_id) == 119  # one has the same text twice in every language
    assert all(len(splits) == 1 for splits in of_id.values())


def test_questions_with_nearly_the_same_options_are_one_cluster() -> None:
    table = localization_gap.places()
    assert {n: place.cluster for n, place in table.items() if place.cluster != n} == {
        98: 76,
        100: 50,
        101: 90,
        118: 111,
    }


@pytest.mark.usefixtures("shared_data")
def test_the_frozen_table_is_what_the_data_gives() -> None:
    file = sources.packaged(localization_gap.SPLITS_FILE)
    assert file.read_text("utf-8") == localization_gap.table_text()
    assert hashlib.sha256(file.read_bytes()).hexdigest()[:12] == "86f336eadbde"


def test_a_seed_moves_the_options_and_nothing_else() -> None:
    before, after = documents("ru"), documents("ru", shuffle_seed=3)
    assert [row["options"][row["gold"]] for row in before] == [row["options"][row["gold"]] for row in after]
    assert sum(a["options"] != b["options"] for a, b in zip(before, after, strict=True)) > 60


def test_pairs_are_whole_prompts_of_the_dev_split() -> None:
    loaded = pairs.load_pairs("loc", "localization_gap", languages=list(LANGUAGES))
    tested = {row["question"] + row["options"][0] for code in LANGUAGES for row in documents(code)}
    for pair_set in loaded:
        assert len(pair_set.pairs) == 39
        for pair in pair_set.pairs:
            assert (
                pair.positive.endswith(pair.negative)
                or pair.negative.splitlines()[1:] == pair.positive.splitlines()[1:]
            )
            assert pair.negative.splitlines()[0] + pair.negative.splitlines()[1][3:] not in tested
    with pytest.raises(LanguageError, match="unknown el; valid: en, tr, bn, fr, ru"):
        pairs.load_pairs("loc", "localization_gap", languages=["el"])


def test_prompts_of_both_forms() -> None:
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    tasks = manager.load(["localization_gap_tr", "localization_gap_ctx_tr_cloze"])["tasks"]
    letters, cloze = tasks["localization_gap_tr"], tasks["localization_gap_ctx_tr_cloze"]
    document = letters.test_docs()[0]
    lines = [f"{letter}. {option}" for letter, option in zip("ABCDE", document["options"], strict=True)]
    prompt = "\n".join([document["question"], *lines, "Answer:"])
    assert [request.args for request in letters.construct_requests(document, letters.fewshot_context(document, 0))] == [
        (prompt, f" {letter}") for letter in "ABCDE"
    ]
    document = cloze.test_docs()[0]
    requests = cloze.construct_requests(document, cloze.fewshot_context(document, 0))
    assert requests[0].args == (f"Soru: {document['question']}\nCevap:", f" {document['options'][0]}")


@pytest.mark.usefixtures("shared_data")
def test_items_are_shown() -> None:
    shown = CliRunner().invoke(app, ["data", "show", "localization_gap_ctx", "--lang", "fr", "--n", "1"])
    assert shown.exit_code == 0, shown.output
    assert "Je vis en France." in shown.output


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Path) -> None:
    with pytest.raises(LanguageError, match="unknown language 'ko' of localization_gap; valid: tr, bn, fr, ru, en"):
        documents("ko")
    with pytest.raises(DataError, match="unknown split 'all'"):
        documents("tr", split="all")
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(tmp_path))
    copy = tmp_path / localization_gap.FILE
    copy.parent.mkdir()
    lines = (shared_data / localization_gap.FILE).read_text("utf-8").splitlines()
    copy.write_text("\n".join(lines[:-1]), "utf-8")
    with pytest.raises(DataError, match="is not the upstream file"):
        documents("tr")
    monkeypatch.setenv("LM_EVAL_EXT_ALLOW_MODIFIED", "1")
    with pytest.raises(DataError, match="must have 120 questions in every language"):
        documents("tr")
    copy.write_text(json.dumps({"lang": "Klingon", "context": False}), "utf-8")
    with pytest.raises(DataError, match="row without 'Klingon'"):
        documents("tr")


def test_the_conversion_keeps_all_but_the_prompts() -> None:
    """One row in upstream's columns, made up."""
    header = "context,idx,lang,option_bn,option_fr,option_ru,option_tr,option_us,options,question,subtask,prompt,input"
    row = "True,7,Turkish,b,f,r,t,\"u, v\",\"['t', 'u, v', 'r', 'f', 'b']\",q?,o1,\"do this\nq?\n1. t\",i"
    assert json.loads(derived.localization_gap([f"{header}\n{row}\n"])) == {
        "idx": 7,
        "lang": "Turkish",
        "context": True,
        "subtask": "o1",
        "question": "q?",
        "options": ["t", "u, v", "r", "f", "b"],
        "by_culture": {"bn": "b", "fr": "f", "ru": "r", "tr": "t", "us": "u, v"},
        "instruction": "do this",
    }
