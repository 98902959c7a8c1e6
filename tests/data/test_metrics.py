"""Choices by country: hand-computed values, and the harness's own formulas."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.task import ConfigurableTask

from lm_eval_ext.data import metrics

KOREAN: dict[str, Any] = {
    "question": "긴급 전화번호는?",
    "options": ["112", "119", "911번", "17"],
    "countries": [["Spain", "Greece"], ["South_Korea", "China"], ["US"], ["Algeria"]],
    "gold": 1,
    "language": "ko",
}
ENGLISH = KOREAN | {"gold": 2, "language": "en"}
SHARED = KOREAN | {"countries": [["Spain"], ["South_Korea", "US", "UK"], ["US"], ["Algeria"]]}
BRITISH = KOREAN | {"countries": [["Greece", "UK"], ["South_Korea"], ["Mexico"], ["Algeria"]]}


def chose(index: int) -> list[tuple[float, bool]]:
    return [(-1.0 if option == index else -5.0, False) for option in range(4)]


@pytest.mark.parametrize(
    ("doc", "index", "acc", "english_bias", "other_rate"),
    [
        (KOREAN, 1, 1, 0, 0),
        (KOREAN, 2, 0, 1, 0),
        (KOREAN, 0, 0, 0, 1),
        (KOREAN, 3, 0, 0, 1),
        (BRITISH, 0, 0, 1, 0),
        (SHARED, 1, 1, 0, 0),
        (SHARED, 2, 0, 1, 0),
        (ENGLISH, 2, 1, 1, 0),
        (ENGLISH, 1, 0, 0, 1),
    ],
)
def test_a_letter_belongs_to_the_local_culture_to_the_us_or_uk_or_to_another(
    doc: dict[str, Any], index: int, acc: float, english_bias: float, other_rate: float
) -> None:
    expected = {"acc": acc, "english_bias": english_bias, "other_rate": other_rate}
    assert metrics.letters(doc, chose(index)) == expected


def test_three_scoring_rules_may_choose_three_options() -> None:
    given_question = [-6.0, -4.0, -2.0, -3.0]
    # by sum: 2 (US); per character (3, 3, 4, 2 characters): -2, -1.33, -.5, -1.5: 2 (US)
    # against the prior: -6+10=4, -4+9=5, -2+1=-1, -3+5=2: 1 (local); the prior alone: 2 (US)
    # per byte (3, 3, 6, 2 bytes): -2, -1.33, -.33, -1.5: 2 (US)
    alone = [-10.0, -9.0, -1.0, -5.0]
    results = [(value, False) for value in given_question + alone]
    assert metrics.cloze(KOREAN, results) == {
        "acc": 0.0,
        "acc_norm": 0.0,
        "acc_bytes": 0.0,
        "acc_mutual_info": 1.0,
        "acc_prior": 0.0,
        "english_bias": 1.0,
        "english_bias_norm": 1.0,
        "other_rate": 0.0,
    }


def test_length_decides_between_the_sum_and_the_normalised_rule() -> None:
    # by sum: 3 (Algeria, two characters); per character -1.33, -1.17, -1.25, -1.5: 1 (local); per byte the third has
    # six: -.83: 2 (US)
    results = [(value, False) for value in [-4.0, -3.5, -5.0, -3.0, -1.0, 0.0, -1.0, -1.0]]
    assert metrics.cloze(KOREAN, results) == {
        "acc": 0.0,
        "acc_norm": 1.0,
        "acc_bytes": 0.0,
        "acc_mutual_info": 0.0,
        "acc_prior": 1.0,
        "english_bias": 0.0,
        "english_bias_norm": 0.0,
        "other_rate": 1.0,
    }


def harness_task(names: list[str], choice: str | list[str]) -> ConfigurableTask:
    return ConfigurableTask(
        config={
            "task": "reference",
            "custom_dataset": lambda **_: {"test": Dataset.from_list([KOREAN])},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": choice,
            "doc_to_target": "gold",
            "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names],
        }
    )


@pytest.fixture(scope="module")
def cloze_reference() -> ConfigurableTask:
    return harness_task(["acc", "acc_norm", "acc_bytes", "acc_mutual_info"], "options")


@pytest.fixture(scope="module")
def letters_reference() -> ConfigurableTask:
    return harness_task(["acc"], ["A", "B", "C", "D"])


log_likelihoods = st.one_of(st.floats(-200, 0), st.sampled_from([0.0, -1.0, -2.0]))
options = st.lists(st.text(min_size=1, max_size=12), min_size=4, max_size=4)


@settings(max_examples=200, deadline=None)
@given(values=st.lists(log_likelihoods, min_size=8, max_size=8), texts=options, gold=st.integers(0, 3))
def test_accuracies_are_the_harness_s_own(
    cloze_reference: ConfigurableTask, values: list[float], texts: list[str], gold: int
) -> None:
    doc = KOREAN | {"options": texts, "gold": gold}
    results = [(value, False) for value in values]
    ours, theirs = metrics.cloze(doc, results), cloze_reference.process_results(doc, results)
    assert {name: ours[name] for name in theirs} == theirs


@settings(max_examples=100, deadline=None)
@given(values=st.lists(log_likelihoods, min_size=4, max_size=4), gold=st.integers(0, 3))
def test_letter_accuracy_is_the_harness_s_own(
    letters_reference: ConfigurableTask, values: list[float], gold: int
) -> None:
    doc = KOREAN | {"gold": gold}
    results = [(value, False) for value in values]
    assert metrics.letters(doc, results)["acc"] == letters_reference.process_results(doc, results)["acc"]


@settings(deadline=None)
@given(values=st.lists(log_likelihoods, min_size=8, max_size=8))
def test_local_english_and_other_share_every_choice(values: list[float]) -> None:
    results = [(value, False) for value in values]
    for scores in (metrics.letters(KOREAN, results[:4]), metrics.cloze(KOREAN, results)):
        assert scores["acc"] + scores["english_bias"] + scores["other_rate"] == 1
        assert set(scores.values()) <= {0.0, 1.0}


@pytest.mark.parametrize("shared", [False, True])
def test_the_bias_without_shared_options_leaves_their_documents_out(shared: bool) -> None:
    doc = KOREAN | {"us_uk_shared": shared}
    for index, bias in ((1, 0.0), (2, 1.0)):
        scores = metrics.letters(doc, chose(index))
        assert scores["english_bias"] == bias
        assert scores.get("english_bias_unshared") == (None if shared else bias)
