"""BMLAMA-53: gold out of its last place, one answer per fact, parallel, split by fact."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from lm_eval_ext.data import bmlama
from lm_eval_ext.errors import DataError, LanguageError
from lm_eval_ext.languages import LANGUAGES
from lm_eval_ext.paths import tasks_dir

PLACES = ("Rome", "Venice", "Paris", "Berlin", "Seoul", "Athens")


def fact(row: int, gold: str, candidates: tuple[str, ...] = PLACES, **changes: Any) -> dict[str, Any]:
    options = [*(name for name in candidates if name != gold), gold]  # last, as upstream
    own = {
        code: {"cloze": f"{code}: X died in <mask>.", "subject": "X", "candidates": options, "gold": len(options) - 1}
        for code in LANGUAGES
    }
    return {"row": row, "template_en": "[X] died in <mask>.", "near_functional": True, **own, **changes}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror with facts of our own."""
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(tmp_path))
    monkeypatch.setenv("LM_EVAL_EXT_ALLOW_MODIFIED", "1")
    (tmp_path / "bmlama53").mkdir()
    return tmp_path / bmlama.FILE


def write(file: Path, *rows: dict[str, Any]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def load(code: str = "en", **wanted: Any) -> list[dict[str, Any]]:
    return [row for split in bmlama.SPLITS for row in bmlama.load(code, split=split, **wanted)["test"]]


@pytest.fixture
def real(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(shared_data))


# --- the real facts ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("real")
def test_every_language_asks_the_same_facts_with_the_same_order_of_candidates() -> None:
    by_language = {code: list(bmlama.load(code)["test"]) for code in LANGUAGES}
    first = by_language["en"]
    assert len(first) > 500
    for code, rows in by_language.items():
        assert [(row["id"], row["gold"], len(row["options"])) for row in rows] == [
            (row["id"], row["gold"], len(row["options"])) for row in first
        ]
        assert {row["language"] for row in rows} == {code}
        assert all(row["question"].count("___") == 1 for row in rows)
        for row in rows:
            assert len({option.casefold() for option in row["options"]}) == len(row["options"]) >= 4


@pytest.mark.usefixtures("real")
def test_gold_stands_anywhere_among_the_candidates() -> None:
    tens = [row for row in bmlama.load("ko")["test"] if len(row["options"]) == 10]
    places = Counter(row["gold"] for row in tens)
    assert set(places) == set(range(10))
    assert max(places.values()) < 2 * len(tens) / 10


@pytest.mark.usefixtures("real")
def test_no_candidate_is_another_answer_of_the_same_fact() -> None:
    rows = load(relations="all")
    answers: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        answers.setdefault((row["relation"], row["subject"]), set()).add(row["options"][row["gold"]])
    assert sum(len(found) > 1 for found in answers.values()) > 40
    for row in rows:
        assert answers[row["relation"], row["subject"]] & set(row["options"]) == {row["options"][row["gold"]]}


@pytest.mark.usefixtures("real")
def test_only_near_functional_relations_unless_all_are_asked_for() -> None:
    relations = {row["relation"] for row in load()}
    assert len(relations) == 9
    assert not [name for name in relations if "twin" in name or "border" in name or "diplomatic" in name]
    assert relations < {row["relation"] for row in load(relations="all")}
    assert len(load()) == 780  # as the README says
    assert len(load(relations="all")) == 780 + 2_198


@pytest.mark.usefixtures("real")
def test_a_fact_is_in_one_split_only() -> None:
    test, dev = (
        {(row["relation"], row["subject"]) for row in bmlama.load("en", split=s)["test"]} for s in bmlama.SPLITS
    )
    assert not test & dev
    assert 0.2 < len(dev) / len(test | dev) < 0.3


@pytest.mark.usefixtures("real")
def test_the_readme_counts_what_is_there() -> None:
    readme = (tasks_dir() / "bmlama" / "README.md").read_text("utf-8")
    test = {code: bmlama.load(code)["test"] for code in ("en", "es", "id")}
    assert f"{len(test['en'])} facts per language" in readme
    assert f"{len(bmlama.load('en', split='dev')['test'])} facts per language" in readme
    copies = {code: sum(rows["same_as_english"]) for code, rows in test.items()}
    assert copies["en"] == 0
    assert f"as in English in {copies['es']} facts of Spanish and {copies['id']} of Indonesian" in " ".join(
        readme.split()
    )
    english = sum(row["options"][row["gold"]] == "English" for row in test["en"])
    assert f"{english} of {len(test['en'])}" in readme
    assert "Non-commercial" in readme


@pytest.mark.usefixtures("upstream_data")
def test_a_candidate_is_scored_with_the_rest_of_the_sentence_after_what_stands_before_the_gap() -> None:
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    spaced, unspaced = (manager.load([name])["tasks"][name] for name in ("bmlama_ko", "bmlama_dev_zh"))
    for task, space in ((spaced, " "), (unspaced, "")):
        for document in list(task.test_docs())[:40]:
            before, _, after = document["question"].partition("___")
            requests = task.construct_requests(document, task.fewshot_context(document, 0))
            given = [request.args for request in requests]
            assert given[: len(document["options"])] == [
                (before.rstrip(), space + option + after) for option in document["options"]
            ]
            assert given[len(document["options"]) :] == [("", space + option + after) for option in document["options"]]
            assert task.doc_to_target(document) == document["gold"]


# --- facts of our own -------------------------------------------------------------------------------------------------


def test_candidates_that_read_alike_in_any_language_are_one(own: Path) -> None:
    row = fact(0, "Rome")
    row["ar"] = {**row["ar"], "candidates": ["X", "x", "P", "B", "A", "R"]}  # the first two
    write(own, row)
    for code in LANGUAGES:
        (document,) = load(code)
        assert len(document["options"]) == 5
        assert document["gold"] == load("en")[0]["gold"]


def test_rows_with_too_few_candidates_are_left_out(own: Path) -> None:
    write(own, fact(0, "Rome", PLACES[:3]), fact(1, "Rome", PLACES[:4]))
    assert [row["id"] for row in load()] == ["bmlama-1"]


def test_other_answers_of_a_fact_are_no_distractors(own: Path) -> None:
    write(own, fact(0, "Rome"), fact(1, "Venice"), fact(2, "Paris", template_en="[X] was born in <mask>."))
    options = {row["id"]: set(row["options"]) for row in load()}
    assert options["bmlama-0"] == set(PLACES) - {"Venice"}
    assert options["bmlama-1"] == set(PLACES) - {"Rome"}
    assert options["bmlama-2"] == set(PLACES)


def test_fewer_candidates_keep_the_right_one_and_a_seed_moves_them(own: Path) -> None:
    write(own, *(fact(number, "Seoul", template_en=f"[X] died in <mask> {number}.") for number in range(40)))
    for row in load(candidates="4"):
        assert len(row["options"]) == 4
        assert row["options"][row["gold"]] == "Seoul"
    before, after = load(), load(shuffle_seed=1)
    assert [set(row["options"]) for row in before] == [set(row["options"]) for row in after]
    assert sum(a["gold"] != b["gold"] for a, b in zip(before, after, strict=True)) > 20


def test_a_changed_file_is_read_again(own: Path) -> None:
    write(own, fact(0, "Rome"))
    assert len(load()) == 1
    write(own, fact(0, "Rome"), fact(1, "Rome", template_en="[X] lives in <mask>."))
    assert len(load()) == 2


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"split": "train"}, "unknown split 'train' of bmlama; valid: test, dev"),
        ({"relations": "some"}, "unknown relations 'some' of bmlama; valid: near-functional, all"),
        ({"candidates": "few"}, "must be whole numbers"),
        ({"candidates": 1}, "at least 2, not 1"),
        ({"shuffle_seed": None}, "must be whole numbers"),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_ones(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        bmlama.load("en", **wanted)


def test_unknown_languages_and_changed_files_are_refused(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LanguageError, match="'fr'; valid: en, es"):
        bmlama.load("fr")
    write(own, fact(0, "Rome"))
    monkeypatch.delenv("LM_EVAL_EXT_ALLOW_MODIFIED")
    with pytest.raises(DataError, match="is not the upstream file"):
        bmlama.load("en")
