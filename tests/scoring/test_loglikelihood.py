"""The scorer: the same log-likelihoods as the harness's `hf`, from fewer and smaller computations."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from support import tiny
from support.scores import ALL, FEW_SHOT, PAIRS, QUESTIONS, SHOTS, ask, assert_same
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from lm_eval_ext.backends.hf.model import SteeredHFLM
from lm_eval_ext.errors import ModelError
from lm_eval_ext.scoring import batching as budget
from lm_eval_ext.scoring import lm_head as head
from lm_eval_ext.scoring import prefixes, sharing
from lm_eval_ext.scoring.requests import Request, Score
from lm_eval_ext.scoring.scorer import Scorer
from lm_eval_ext.steering.decoder import decoder_layers
from lm_eval_ext.steering.injection import Injector
from lm_eval_ext.steering.plan import Plan
from lm_eval_ext.steering.table import SteeringTable
from lm_eval_ext.steering.tokens import GeneratedTokens

pytestmark = pytest.mark.transformers4


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_scores_equal_the_harness(family: str, kind: str) -> None:
    assert_same(ask(tiny.steered(family), PAIRS[kind]), ask(tiny.hf(family), PAIRS[kind]))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_answers_are_recognised(family: str) -> None:
    model, tokenizer = tiny.hf(family), tiny.load_tokenizer(family)
    ids = tokenizer(QUESTIONS[0], return_tensors="pt").input_ids
    whole = model.model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)[0].tolist()
    prompt, best = tuple(whole[:-4]), tuple(whole[-4:])
    scorer = tiny.steered(family)._scorer
    last_is_worse = (*best[:-1], best[-1] ^ 1)
    first_is_worse = (best[0] ^ 1, int(model.model(torch.tensor([[*prompt, best[0] ^ 1]])).logits[0, -1].argmax()))
    first, second, third = scorer.score([Request(prompt, c, 0) for c in (best, last_is_worse, first_is_worse)], 2)
    assert first.is_greedy
    assert not second.is_greedy
    assert not third.is_greedy
    assert scorer.score([Request(prompt, best, 0)], 1)[0].is_greedy  # alone, in one forward
    assert first.log_likelihood > second.log_likelihood


@pytest.mark.parametrize("steer", ["", "en@1:2+loc@2:3", "loc@2:3/last", "loc@0-3:1/all"])
@pytest.mark.parametrize("family", ["gemma3", "mistral", "gpt2"])
def test_batches_order_and_padding_do_not_matter(family: str, steer: str) -> None:
    languages = [tiny.LANGUAGES[i % 4] for i in range(len(ALL))]
    expected = ask(tiny.steered(family, steer, batch_size=1), ALL, languages)
    order = list(range(len(ALL)))
    for size, side in ((1, "left"), (3, "right"), (7, "left"), (64, "right"), (64, "left")):
        random.Random(size).shuffle(order)
        model = tiny.steered(family, steer, batch_size=size, padding_side=side)
        found = ask(model, [ALL[i] for i in order], [languages[i] for i in order])
        assert_same(found, [expected[i] for i in order])


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_padding_token_outside_the_vocabulary(padding_side: str) -> None:
    """A tokenizer may have got one that the model's embeddings have no row for; the harness pads with token 0."""
    tokenizer = tiny.load_tokenizer("llama")
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer.pad_token_id >= tiny.load("llama").config.vocab_size
    model = SteeredHFLM(tiny.load("llama"), tokenizer=tokenizer, batch_size=4, padding_side=padding_side)
    assert_same(ask(model, PAIRS["options"]), ask(tiny.hf("llama"), PAIRS["options"]))


# What it costs --------------------------------------------------------------------------------------------------------


class Costs:
    """Rows, tokens and head positions of every forward of a model."""

    def __init__(self, model: Any) -> None:
        self.rows: list[int] = []
        self.tokens: list[int] = []
        self.positions: list[int] = []
        decoder_layers(model)[0].register_forward_pre_hook(self._layer, with_kwargs=True)
        model.get_output_embeddings().register_forward_hook(self._head)

    def _layer(self, module: Any, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        self.rows.append(hidden.shape[0])
        self.tokens.append(hidden.shape[0] * hidden.shape[1])

    def _head(self, module: Any, args: Any, output: torch.Tensor) -> None:
        self.positions.append(output.numel() // output.shape[-1])


def measured(model: Any, pairs: list[tuple[str, str]]) -> Any:
    """The model, after it was measured what rows as long as those of these pairs may share."""
    model._scorer.check(model.encode(tiny.requests("loglikelihood", pairs, ["ko"] * len(pairs))))
    return model


def costs(pairs: list[tuple[str, str]], batch_size: int, **arguments: Any) -> Costs:
    model = measured(tiny.steered("llama", batch_size=batch_size, **arguments), pairs)
    counted = Costs(model.model)
    ask(model, pairs)
    return counted


def test_letters_cost_one_row_and_one_position_per_document() -> None:
    counted = costs(PAIRS["letters"], 2)
    assert counted.rows == [2, 2]
    assert counted.positions == [2, 2]


def test_a_document_costs_no_more_when_it_is_asked_twice() -> None:
    once, twice = costs(PAIRS["options"], 2), costs(PAIRS["options"] * 2, 2)
    assert (once.rows, once.tokens, once.positions) == (twice.rows, twice.tokens, twice.positions)


def test_options_share_their_prompt() -> None:
    pairs, tokenizer = PAIRS["options"], tiny.load_tokenizer("llama")
    prompts = [len(tokenizer(question).input_ids) for question in QUESTIONS]
    options = [
        len(tokenizer(question + option).input_ids) - len(tokenizer(question).input_ids) for question, option in pairs
    ]
    model = measured(tiny.steered("llama", batch_size=1), pairs)
    counted = Costs(model.model)
    ask(model, pairs)
    multiple = sum(n - 1 for n in options if n > 1)
    assert len(counted.tokens) == len(QUESTIONS)
    assert sum(counted.tokens) <= sum(prompts) + multiple
    assert sum(counted.tokens) < 0.6 * sum(p + o for p, o in zip(prompts * 5, options, strict=False))


def test_options_follow_their_prompt_where_a_model_takes_no_trees(caplog: pytest.LogCaptureFixture) -> None:
    expected = ask(tiny.steered("llama"), PAIRS["options"])
    model = tiny.steered("llama", batch_size=2)
    model._scorer.verdict = None
    with (
        mock.patch.object(sharing, "cannot_run_trees", return_value="it computes positions itself"),
        caplog.at_level("INFO"),
    ):
        measured(model, PAIRS["options"])
    counted = Costs(model.model)
    assert_same(ask(model, PAIRS["options"]), expected)
    assert "continue from shared keys and values: it computes positions itself" in caplog.text
    # The head: one position for each prompt, and one for each token but the first of each option.
    tokenizer = tiny.load_tokenizer("llama")
    lengths = [
        len(tokenizer(text + option).input_ids) - len(tokenizer(text).input_ids) for text, option in PAIRS["options"]
    ]
    assert sum(counted.positions) == len(QUESTIONS) + sum(n - 1 for n in lengths if n > 1)


def test_many_options_become_several_rows() -> None:
    """As those of all questions after an empty prompt."""
    pairs = [("", f" {word} {number}") for number, word in enumerate(tiny.TEXTS["en"].split() * 3)]
    model = tiny.steered("llama", batch_size="auto")
    counted = Costs(model.model)
    assert_same(ask(model, pairs), ask(tiny.hf("llama"), pairs))
    assert sum(counted.rows) > 1, counted.rows


def test_a_single_continuation_is_one_forward_without_a_cache() -> None:
    model = measured(tiny.steered("llama", batch_size=64), PAIRS["one continuation"])
    seen: list[Any] = []
    model.model.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs), with_kwargs=True)
    ask(model, PAIRS["one continuation"])
    assert [kwargs["use_cache"] for kwargs in seen] == [False]
    assert "attention_mask" not in seen[0]


@pytest.mark.parametrize(("steer", "rows"), [("", 1), ("loc@1:2/all", 2)])
def test_priors_are_computed_once_per_option_and_language(steer: str, rows: int) -> None:
    """What `acc_mutual_info` asks of every document again."""
    model = measured(tiny.steered("llama", steer, batch_size=8), [("", " rice")])
    counted = Costs(model.model)
    found = ask(model, [("", " rice")] * 6, ["ko", "zh"] * 3)
    assert counted.rows == [rows]
    assert len(set(found)) == rows


def test_prompts_of_letters_need_no_mask() -> None:
    model = measured(tiny.steered("llama", batch_size=64), PAIRS["letters"])
    seen: list[Any] = []
    model.model.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs), with_kwargs=True)
    ask(model, PAIRS["letters"])
    (prompts,) = [kwargs for kwargs in seen if kwargs["input_ids"].shape[0] == len(QUESTIONS)]
    assert not {"attention_mask", "position_ids"} & set(prompts)


def test_half_precision() -> None:
    """The harness's log-softmax in float32, since it rounds to the model's dtype otherwise."""
    found, expected = (
        ask(make("gemma3", dtype="bfloat16", softmax_dtype="float32"), PAIRS["letters"] + PAIRS["one continuation"])
        for make in (tiny.steered, tiny.hf)
    )
    for (a, _), (b, _) in zip(found, expected, strict=True):
        assert a == pytest.approx(b, rel=0.05, abs=0.05)


def test_log_sums_are_computed_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ask(tiny.steered("llama", batch_size=64), ALL)
    largest: list[int] = []
    whole = torch.Tensor.exp_

    def watched(self: torch.Tensor) -> torch.Tensor:
        largest.append(self.numel())
        return whole(self)

    limit = 5 * tiny.config("llama").vocab_size
    monkeypatch.setattr(head, "CPU_LOGITS", limit)
    monkeypatch.setattr(torch.Tensor, "exp_", watched)
    assert_same(ask(tiny.steered("llama", batch_size=64), ALL), expected, 1e-6)
    assert max(largest) == limit


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_scoring_leaves_no_hook_on_the_model(padding_side: str) -> None:
    model = tiny.steered("gemma3", batch_size=3, padding_side=padding_side)
    ask(model, [*ALL, *FEW_SHOT])
    assert tiny.hooks(model.model) == []
    with mock.patch.object(model._scorer, "_tokens", side_effect=RuntimeError("boom")), pytest.raises(RuntimeError):
        ask(model, PAIRS["one continuation"])
    assert tiny.hooks(model.model) == []


def test_progress_hands_over_each_distinct_score_once() -> None:
    scorer = tiny.steered("llama")._scorer
    requests = [Request((1, 5, 6), continuation, 0) for continuation in ((7,), (8,), (9, 10), (7,), (9, 11))]
    done: dict[Request, Score] = {}

    def progress(scores: dict[Request, Score]) -> None:
        assert not set(scores) & set(done)
        done.update(scores)

    found = scorer.score(requests, 1, progress)
    assert found == [done[request] for request in requests]
    assert scorer.score([], 4) == []


# Beginnings that prompts share ------------------------------------------------------------------------------------------


@pytest.fixture
def share_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beginnings of any length are shared."""
    monkeypatch.setattr(prefixes, "MIN_SHARED", 1)


@pytest.mark.usefixtures("share_all")
@pytest.mark.parametrize("steer", ["", "loc@1:2", "loc@2:3/last", "loc@0-3:1/all", "loc@1:2/last5", "loc@1:2/first3"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_shared_beginnings_change_no_answer(family: str, steer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [*ALL, *FEW_SHOT]
    languages = [tiny.LANGUAGES[i % 2] for i in range(len(pairs))]
    models = [
        measured(tiny.steered(family, steer, batch_size=size, padding_side=side), pairs)
        for size, side in ((5, "right"), (3, "left"))
    ]
    counted = [Costs(model.model) for model in models]
    found = [ask(model, pairs, languages) for model in models]
    monkeypatch.setattr(prefixes, "MIN_SHARED", 10**9)
    plain = measured(tiny.steered(family, steer, batch_size=5), pairs)
    alone = Costs(plain.model)
    expected = ask(plain, pairs, languages)
    for answers, cost in zip(found, counted, strict=True):
        assert_same(answers, expected)
        assert sum(cost.tokens) < 0.9 * sum(alone.tokens)


@pytest.mark.usefixtures("share_all")
@pytest.mark.parametrize("model_type", ["gemma2", "cohere", "mpt", "falcon", "mamba", "lfm2"])
def test_shared_beginnings_of_other_architectures(model_type: str) -> None:
    model, tokenizer = other(model_type, **OTHERS[model_type]), tiny.load_tokenizer("llama")
    expected = ask(tiny.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=128), FEW_SHOT)
    assert_same(ask(SteeredHFLM(model, tokenizer=tokenizer, batch_size=4, max_length=128), FEW_SHOT), expected)


@pytest.mark.usefixtures("share_all")
def test_shared_beginnings_under_an_adapter() -> None:
    expected = ask(tiny.hf("llama", peft=str(tiny.adapter("llama"))), FEW_SHOT)
    assert_same(ask(tiny.steered("llama", peft=str(tiny.adapter("llama"))), FEW_SHOT), expected)


def test_examples_are_computed_once_for_all_questions() -> None:
    """More than MIN_SHARED tokens: the examples cost their tokens once, a question its own."""
    shots = "".join(SHOTS)[:60]
    pairs = [(shots + question[-9 - n :], f" {letter}") for n, question in enumerate(QUESTIONS) for letter in "AB"]
    tokenizer = tiny.load_tokenizer("llama")
    whole = [tokenizer(prompt).input_ids for prompt, _ in pairs[::2]]
    counted = costs(pairs, 8)
    prefix, questions = counted.rows
    assert (prefix, questions) == (1, 4)
    shared = counted.tokens[0]
    assert prefixes.MIN_SHARED <= shared <= len(tokenizer(shots).input_ids)
    assert counted.tokens[1] == 4 * (max(map(len, whole)) - shared)
    assert counted.positions == [0, 4]


# Batches and memory -----------------------------------------------------------------------------------------------------


def test_automatic_batches_hold_rows_up_to_a_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "CPU_TOKENS", 120)
    model = measured(tiny.steered("llama", batch_size="auto"), ALL)
    counted = Costs(model.model)
    assert_same(ask(model, ALL), ask(tiny.steered("llama", batch_size=1), ALL))
    several = [tokens for tokens, rows in zip(counted.tokens, counted.rows, strict=True) if rows > 1]
    assert several
    assert max(several) <= 120


def test_the_memory_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    inner = budget.RowCost.from_memory
    monkeypatch.setattr(budget.RowCost, "from_memory", lambda *args: looked.append(args) or inner(*args))
    model = tiny.steered("llama", batch_size="auto")
    for kind in ("letters", "options", "one continuation"):
        ask(model, PAIRS[kind])
    assert len(looked) == 1


def test_little_memory_makes_small_batches() -> None:
    model = tiny.load("llama")
    roomy = budget.RowCost.from_memory(model)
    tight = replace(roomy, free=roomy.token * 50)
    assert roomy(20, 1) == pytest.approx(20 / budget.CPU_TOKENS)
    assert tight(20, 1) > 0.4
    assert tight(20, 20) > tight(20, 1)  # logits
    assert tight(20, 1, past=100) > tight(20, 1)  # keys and values that are copied
    assert budget.RowCost(4)(10**6, 10**6, 10**6) == 0.25
    assert budget.RowCost(4)(1, 1, per_row=4) == 1 / 16


ERRORS = {
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
    ),
    "device": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "python": MemoryError(),
}


def limited(model: Any, tokens: int, error: Exception) -> list[int]:
    """Lets forwards of more tokens fail; the tokens of those that were tried."""
    tried: list[int] = []

    def check(module: Any, args: Any, kwargs: Any) -> None:
        tried.append(kwargs["input_ids"].numel())
        if tried[-1] > tokens:
            raise error

    model.model.register_forward_pre_hook(check, with_kwargs=True)
    return tried


@pytest.mark.parametrize("batch_size", ["auto", 16])
@pytest.mark.parametrize("error", ERRORS)
def test_running_out_of_memory_halves_the_batches_for_good(
    error: str, batch_size: Any, caplog: pytest.LogCaptureFixture
) -> None:
    expected = ask(tiny.steered("llama"), ALL)
    model = measured(tiny.steered("llama", batch_size=batch_size), ALL)
    tried = limited(model, 200, ERRORS[error])
    assert_same(ask(model, ALL), expected)
    failures = [tokens for tokens in tried if tokens > 200]
    assert 1 <= len(failures) <= 8
    warnings = [record for record in caplog.records if "Out of memory with" in record.getMessage()]
    assert len(warnings) == len(failures)
    tried.clear()
    assert_same(ask(model, PAIRS["letters"]), ask(tiny.steered("llama"), PAIRS["letters"]))
    assert max(tried) <= 200  # what one task learnt serves the next


@pytest.mark.parametrize("error", ERRORS)
def test_one_prompt_that_is_too_much_ends_the_run_with_a_message(error: str) -> None:
    model = tiny.steered("llama", batch_size="auto")
    limited(model, 3, ERRORS[error])
    with pytest.raises(ModelError, match=r"out of memory even with one prompt .*set max_length="):
        ask(model, PAIRS["options"])


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    model = tiny.steered("llama", batch_size=16)
    tried = limited(model, 3, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        ask(model, PAIRS["options"])
    assert len(tried) == 1


# Other models ---------------------------------------------------------------------------------------------------------


def other(model_type: str, **changes: Any) -> Any:
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    special = {"vocab_size": 384, "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **shape, **special, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return model.float()


OTHERS: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8, "num_key_value_heads": 2},  # soft caps
    "cohere": {"num_key_value_heads": 2},  # scaled logits
    "mpt": {"d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 256},  # no position ids
    "falcon": {},
    "gpt_neox": {},  # huggingface/transformers#22161
    "qwen3": {"head_dim": 8, "num_key_value_heads": 2},
    "mamba": {"state_size": 8},  # recurrent: a prompt's state cannot be shared
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "num_key_value_heads": 2},  # recurrent in part
}


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("model_type", OTHERS)
def test_other_architectures(model_type: str, padding_side: str) -> None:
    model, tokenizer = other(model_type, **OTHERS[model_type]), tiny.load_tokenizer("llama")
    expected = ask(tiny.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=128), ALL)
    found = SteeredHFLM(model, tokenizer=tokenizer, batch_size=4, padding_side=padding_side, max_length=128)
    assert_same(ask(found, ALL), expected)


def test_a_multimodal_model_reads_text() -> None:
    model, tokenizer = tiny.multimodal(), tiny.load_tokenizer("gemma3")
    expected = ask(tiny.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4), ALL)
    assert_same(ask(SteeredHFLM(model, tokenizer=tokenizer, batch_size=4), ALL), expected)


def test_a_head_that_is_not_called() -> None:
    """A model that multiplies by the head's weight itself gets its positions gathered afterwards."""
    expected = ask(tiny.steered("llama", batch_size=4), ALL)
    model = tiny.load("llama")

    def forward(input_ids: torch.Tensor, **kwargs: Any) -> CausalLMOutputWithPast:
        output = model.model(input_ids=input_ids, **kwargs)
        logits = output.last_hidden_state @ model.lm_head.weight.T
        return CausalLMOutputWithPast(logits=logits, past_key_values=output.past_key_values)

    model.forward = forward
    assert_same(ask(SteeredHFLM(model, tokenizer=tiny.load_tokenizer("llama"), batch_size=4), ALL), expected)


# What is unusual, and what cannot be scored ---------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", ["auto", 4])
def test_no_item_and_one_item(batch_size: Any) -> None:
    model = tiny.steered("llama", batch_size=batch_size)
    assert ask(model, []) == []
    assert_same(ask(model, PAIRS["options"][:1]), ask(tiny.hf("llama"), PAIRS["options"][:1]))


def test_items_longer_than_the_context_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    found = ask(tiny.steered("llama"), PAIRS["too long"] + PAIRS["letters"])
    (warning,) = [record.getMessage() for record in caplog.records if "longer than" in record.getMessage()]
    assert (
        warning == "8 of 24 requests are longer than the model's 128 tokens: their prompts are truncated from the left"
    )
    assert_same(found, ask(tiny.hf("llama"), PAIRS["too long"] + PAIRS["letters"]))


def test_a_continuation_longer_than_the_context() -> None:
    model = tiny.load("llama")
    scorer = Scorer(model, Injector(model, SteeringTable.build(Plan(), None, 4)), max_length=8)
    assert len(scorer.score([Request((1, 2), tuple(range(8)), 0)], 1)) == 1
    with pytest.raises(ModelError, match="continuation of 9 tokens does not fit the model's 8; raise max_length="):
        scorer.score([Request((1, 2), tuple(range(9)), 0)], 1)


@pytest.mark.parametrize(("pair", "part"), [(("Which bird", ""), "continuation"), ((" ", "x"), "prompt")])
def test_a_request_without_tokens_is_named(pair: tuple[str, str], part: str) -> None:
    with pytest.raises(ModelError, match=f"no tokens for the {part} in .*{pair[1]}"):
        ask(tiny.steered("gpt2"), [pair])


# White space at the end of a prompt -----------------------------------------------------------------------------------

CHAT = "<turn>user\n{}\n<turn>model\n"


@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_a_line_break_before_the_answer_is_steered_as_in_a_generation(family: str) -> None:
    """The harness scores it with the option; it is still the token that predicts the answer."""
    shots = CHAT.format(QUESTIONS[1]) if family == "gemma3" else ""  # long enough to be shared by prompts
    prompts = [shots + CHAT.format(question) for question in QUESTIONS[2:]]
    letters, texts = list("ABCD"), ["A", "B", "C uno", "D uno dos"]
    model = tiny.steered(family, batch_size=3)
    unsteered = tiny.hf(family)
    for options in (letters, texts):
        pairs = [(prompt, option) for prompt in prompts for option in options]
        assert_same(ask(model, pairs), ask(unsteered, pairs))
    for position in ("last", "prompt", "last2"):
        model.steer(Plan.parse(f"loc@1:3/{position}"), tiny.vector_set(family))
        for options in (letters, texts):
            pairs = [(prompt, option) for prompt in prompts for option in options]
            found = ask(model, pairs, ["ko"] * len(pairs))
            for number, prompt in enumerate(prompts):
                first, second = (score for score, _ in found[4 * number : 4 * number + 2])
                expected = [_after(model, prompt, letter) for letter in "AB"]
                # The line break's own score is the same for all letters.
                assert second - first == pytest.approx(expected[1] - expected[0], abs=1e-4)
        verdict = model._scorer.verdict
        assert verdict is not None
        assert verdict.sharing == sharing.Sharing.TREES
        model._scorer.verdict = replace(verdict, sharing=sharing.Sharing.CACHE)  # as if the model could not run trees
        assert_same(ask(model, pairs, ["ko"] * len(pairs)), found)
        model._scorer.verdict = verdict
        assert_same(ask(model, pairs[2:4], ["ko"] * 2), found[2:4])


def _after(model: Any, prompt: str, letter: str) -> float:
    """The log-probability that a steered generation from `prompt` begins with `letter`."""
    ids = torch.tensor([model.tok_encode(prompt)])
    (token,) = model.tok_encode(letter, add_special_tokens=False)
    with model._injector.batch([model._table.row("ko")], GeneratedTokens(torch.ones_like(ids))):
        return float(model.model(input_ids=ids).logits[0, -1].log_softmax(-1)[token])
