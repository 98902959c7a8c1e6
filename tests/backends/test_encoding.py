"""Batched tokenisation: the very tokens that the harness scores, from few calls of the tokenizer."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM
from support import tiny
from tokenizers import processors

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

MERGED = ("Which b", "ird")

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
    encoded = encode_pairs(model, usual)
    assert [usual[index] for index in encoded.merged] == [MERGED]
    for pair, tokens, theirs in zip(usual, encoded.pairs, by_the_harness(model, usual), strict=True):
        assert tokens[:2] == theirs or pair == MERGED
    texts = [text for pair in PAIRS for text in pair]
    assert encode(model, texts) == {text: tuple(model.tok_encode(text)) for text in texts}
    assert encode_pairs(model, []).pairs == []


@pytest.fixture(scope="module")
def models() -> list[Any]:
    return [tiny.hf(family) for family in ("llama", "gpt2")]


TEXT = st.text(st.sampled_from("ab Wrd새.\n\t "), max_size=9)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXT, TEXT.filter(bool)), min_size=1, max_size=6))
def test_tokens_of_any_text_equal_the_harness(models: list[Any], pairs: list[tuple[str, str]]) -> None:
    for model in models:
        encoded = encode_pairs(model, pairs)
        merged = {pairs[index][0].rstrip() for index in encoded.merged}
        for pair, tokens, theirs in zip(pairs, encoded.pairs, by_the_harness(model, pairs), strict=True):
            if pair[0].rstrip() not in merged or not pair[0]:
                assert tokens[:2] == theirs
            else:  # no character of the continuation is lost
                text = model.tokenizer.decode([*tokens.prompt, *tokens.continuation])
                assert text.removeprefix("<begin>").removeprefix("<end>") == "".join(pair)
                assert model.tokenizer.decode(tokens.continuation).endswith(pair[1])


def test_a_token_that_spans_prompt_and_option(caplog: pytest.LogCaptureFixture) -> None:
    """Options keep all their characters, and all options of such a prompt are scored from the same token on."""
    model = tiny.steered("llama")
    pairs = [("Which b", option) for option in ("ird", "rd", "read")] + [("Which is", " rice")]
    encoded = encode_pairs(model, pairs)
    of_prompt, other = encoded.pairs[:3], encoded.pairs[3]
    assert [model.tokenizer.decode(pair.continuation) for pair in of_prompt] == [" bird", " brd", " bread"]
    assert {pair.prompt for pair in of_prompt} == {tuple(model.tok_encode("Which"))}
    assert [pair.lead for pair in of_prompt] == [0, 2, 2]  # " b" is prompt where it is a token of its own
    assert encoded.merged == [0]
    assert [other[:2]] == by_the_harness(model, pairs[3:])
    scores = model.loglikelihood(tiny.requests("loglikelihood", pairs))
    assert (
        "A token spans prompt and option in 1 requests (tiny: 1; first: document 0, 'ird' after 'Which b')"
        in caplog.text
    )
    whole = tiny.hf("llama").loglikelihood(
        tiny.requests("loglikelihood", [("Which", text) for text in (" bird", " brd", " bread")])
    )
    assert [score for score, _ in scores[:3]] == pytest.approx([score for score, _ in whole], abs=1e-4)


def test_a_prompt_that_its_option_swallows_ends_no_run() -> None:
    """Nothing stands before the joint token: as for an empty prompt, the model's prefix token does."""
    model = tiny.steered("qwen2")
    (pair, _) = encode_pairs(model, [("u", "no"), ("uno", " dos")]).pairs
    assert pair == ((model.prefix_token_id,), tuple(model.tok_encode("uno")), 0)
    ((score, _),) = model.loglikelihood(tiny.requests("loglikelihood", [("u", "no")]))
    ((whole, _),) = model.loglikelihood(tiny.requests("loglikelihood", [("", "uno")]))
    assert score == pytest.approx(whole)


def test_a_tokenizer_that_appends_an_end_does_not_part_prompt_and_option() -> None:
    """huggingface/transformers#30947; the harness scores the rest of the option after an end token."""
    model = tiny.steered("llama")
    model.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<begin> $A <end>", special_tokens=[("<begin>", 1), ("<end>", 0)]
    )
    (pair,) = encode_pairs(model, [("Which bird", " rice")]).pairs
    assert model.tokenizer.decode(pair.prompt) == "<begin>Which bird"
    assert model.tokenizer.decode(pair.continuation) == " rice<end>"


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
