"""Batched tokenisation: the very tokens that the harness scores, from few calls of the tokenizer."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM
from support import tiny

from lm_eval_ext.backends.encoding import encode, encode_pairs
from lm_eval_ext.errors import LanguageError, ModelError

pytestmark = pytest.mark.transformers4

PAIRS = [
    ("Which bird", " rice"),
    ("Which bird", " rice is"),
    ("Which bird  ", "rice"),
    ("어느 새가\n\n", " 쌀"),
    ("Which b", "ird"),
    ("<begin>Which bird", " rice"),
    ("<end>Which bird", " rice"),
    ("", " rice"),
    ("", "<begin> rice"),
    ("", "<end> rice"),
    (" ", " rice"),
    ("Which bird", ""),
    ("", ""),
    ("Which bird", " rice"),
]

ARGUMENTS: list[dict[str, Any]] = [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"prefix_token_id": 7}]


def by_the_harness(model: Any, pairs: list[tuple[str, str]]) -> list[Any]:
    """What the harness's own `loglikelihood` hands to its scoring; it fails on an empty text without a context."""
    with mock.patch.object(HFLM, "_loglikelihood_tokens", lambda self, requests, **_: requests):
        requests = HFLM.loglikelihood(model, tiny.requests("loglikelihood", pairs), disable_tqdm=True)
    return [(tuple(prompt), tuple(continuation)) for _, prompt, continuation in requests]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_tokens_equal_the_harness(family: str, arguments: dict[str, Any]) -> None:
    model = tiny.hf(family, **arguments)
    usual = [pair for pair in PAIRS if any(pair)]
    assert encode_pairs(model, usual) == by_the_harness(model, usual)
    texts = [text for pair in PAIRS for text in pair]
    assert encode(model, texts) == {text: tuple(model.tok_encode(text)) for text in texts}
    assert encode_pairs(model, []) == []


@pytest.fixture(scope="module")
def models() -> list[Any]:
    return [tiny.hf(family) for family in ("llama", "gpt2")]


TEXT = st.text(st.sampled_from("ab Wrd새.\n\t "), max_size=9)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXT, TEXT.filter(bool)), min_size=1, max_size=6))
def test_tokens_of_any_text_equal_the_harness(models: list[Any], pairs: list[tuple[str, str]]) -> None:
    for model in models:
        assert encode_pairs(model, pairs) == by_the_harness(model, pairs)


def test_each_text_is_tokenised_once_in_a_few_calls() -> None:
    model = tiny.steered("llama")
    asked: list[list[str]] = []
    inner = type(model.tokenizer).__call__
    usual = [pair for pair in PAIRS if pair[1] and pair[0] != "Which b"]

    def counted(self: Any, texts: list[str], **options: Any) -> Any:
        asked.append(texts)
        return inner(self, texts, **options)

    with mock.patch.object(type(model.tokenizer), "__call__", counted):
        requests = model.encode(tiny.requests("loglikelihood", usual * 3))
    assert len(requests) == 3 * len(usual)
    assert len(asked) == 3  # with a prefix token, with one in the text, without
    for texts in asked:
        assert len(texts) == len(set(texts))


def test_requests_carry_the_row_of_their_language() -> None:
    model = tiny.steered("llama", "loc@1:2")
    instances = tiny.requests("loglikelihood", [("Which bird", " rice")] * 4, list(tiny.LANGUAGES))
    requests = model.encode(instances)
    assert [request.row for request in requests] == [model._injector.table.row(code) for code in tiny.LANGUAGES]
    assert [model.language(instance) for instance in instances] == list(tiny.LANGUAGES)
    with pytest.raises(LanguageError, match="task tiny: the language is not known"):
        model.encode(tiny.requests("loglikelihood", [("Which bird", " rice")]))


@pytest.mark.parametrize(
    ("family", "pair", "part"),
    [
        ("gpt2", ("Which bird", ""), "continuation"),
        ("llama", ("Which bird", ""), "continuation"),
        ("llama", ("", ""), "continuation"),
        ("llama", ("", "<begin>"), "continuation"),
        ("gpt2", (" ", "x"), "prompt"),
    ],
)
def test_a_request_without_tokens_is_named(family: str, pair: tuple[str, str], part: str) -> None:
    instances = tiny.requests("loglikelihood", [("Which bird", " rice"), pair])
    with pytest.raises(ModelError) as caught:
        tiny.steered(family).loglikelihood(instances)
    assert f"task tiny, document 1: the tokenizer gives no tokens for the {part} in {pair!r}" in str(caught.value)
