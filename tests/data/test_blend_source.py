"""BLEnD's files in both shapes, and what is made of damaged ones."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_ext.data.blend import source
from lm_eval_ext.errors import DataError

ENTRY = {
    "question": "Τι τρώνε στην Ελλάδα;",
    "en_question": "What do they eat in Greece?",
    "annotations": [
        {"answers": ["τοστ"], "en_answers": ["toast"], "count": 1},
        {"answers": ["φέτα، φετα", "τυρί"], "en_answers": ["feta", "cheese"], "count": 3},
    ],
    "idks": {"idk": 0, "not-applicable": 2, "no-answer": 0, "δεν ξέρω": 1},
}


def test_the_github_object_and_the_hub_records_are_read_alike() -> None:
    keyed = json.dumps({"Al-en-01": ENTRY})
    records = json.dumps([{"ID": "Al-en-01", **ENTRY, "idks": {**ENTRY["idks"], "άλλο": None}}])
    lines = "\n".join(json.dumps({"ID": question_id, **ENTRY}) for question_id in ("Al-en-01", "Al-en-02")) + "\n"
    first, _ = source.parse_annotations(keyed, "Greece")
    second, _ = source.parse_annotations(records, "Greece")
    third, _ = source.parse_annotations(lines, "Greece")
    assert first == second == {"Al-en-01": third["Al-en-01"]}
    assert list(third) == ["Al-en-01", "Al-en-02"]


def test_answers_come_by_falling_votes_and_joined_spellings_are_split() -> None:
    questions, problems = source.parse_annotations(json.dumps({"Al-en-01": ENTRY}), "Greece")
    question = questions["Al-en-01"]
    assert [answer.votes for answer in question.answers] == [3, 1]
    assert question.answers[0].local == ("φέτα", "φετα", "τυρί")
    assert question.not_applicable == 2
    assert problems == []


def test_british_chips_are_fries() -> None:
    entry = {"annotations": [{"en_answers": ["chips", "fries"], "count": 2}]}
    questions, _ = source.parse_annotations(json.dumps({"Al-en-06": entry}), "UK")
    assert questions["Al-en-06"].answers[0].english == ("french fries",)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        None,
        [],
        {"annotations": None},
        {"annotations": [{}]},
        {"annotations": [{"answers": ["a"], "en_answers": ["a"]}]},
        {"annotations": [{"answers": ["a"], "en_answers": ["a"], "count": "many"}]},
        {"annotations": [{"answers": ["a"], "en_answers": ["a"], "count": -1}]},
        {"annotations": [{"answers": "a", "en_answers": ["a"], "count": 1}]},
        {"annotations": [{"answers": [1], "en_answers": ["a"], "count": 1}]},
        {"annotations": [], "question": 7},
        {"annotations": [], "idks": [1]},
    ],
)
def test_a_malformed_entry_is_reported_and_the_others_are_read(broken: object) -> None:
    questions, problems = source.parse_annotations(json.dumps({"bad": broken, "good": ENTRY}), "Greece")
    assert list(questions) == ["good"]
    (problem,) = problems
    assert (problem.country, problem.id) == ("Greece", "bad")
    assert "malformed" in problem.message


def test_an_id_that_occurs_twice_is_reported() -> None:
    twice = json.dumps([{"ID": "x", **ENTRY}, {"ID": "x", **ENTRY, "question": "άλλο"}])
    questions, problems = source.parse_annotations(twice, "Greece")
    assert questions["x"].text == ENTRY["question"]
    assert "twice" in problems[0].message


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"text"', "7", '{"ID": 1}\n{'])
def test_a_file_of_no_known_shape_is_an_error_that_names_the_country(text: str) -> None:
    with pytest.raises(DataError, match="Greece"):
        source.parse_annotations(text, "Greece")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["annotations", "answers", "en_answers", "count", "idks", "question", "ID"]), inner
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=3), json_values, max_size=4))
def test_whatever_the_entries_are_each_is_read_or_reported(entries: dict[str, object]) -> None:
    questions, problems = source.parse_annotations(json.dumps(entries), "Greece")
    assert set(questions) | {problem.id for problem in problems} == set(entries)
    assert set(questions).isdisjoint(problem.id for problem in problems)
