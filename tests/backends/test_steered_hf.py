"""`steered-hf` in real runs of the harness: equal to `hf` without steering, to `steered` with the same vector; languages,
positions, generation, adapters, caches and what the results say.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file, save_file
from support import tiny
from support.scores import assert_same

from lm_eval_ext import backends
from lm_eval_ext.backends.hf.model import SteeredHFLM
from lm_eval_ext.errors import LanguageError, ModelError, UserError
from lm_eval_ext.steering.decoder import decoder_layers, residual, with_residual
from lm_eval_ext.steering.plan import Plan
from lm_eval_ext.steering.vectors import VectorSet

pytestmark = pytest.mark.transformers4

FORMS = ("letters", "cloze", "generate", "rolling")
TASKS = tuple(f"tiny_{form}" for form in FORMS)
UNSTEERED = {"no plan": "", "strength 0": "en@1:0+loc@2-3:0/all+loc@1:0%/last"}


def run(model: Any, *tasks: str, **arguments: Any) -> dict[str, list[Any]]:
    return tiny.answers(tiny.evaluate(model, *tasks, log_samples=True, **arguments))


@cache
def plain(family: str) -> dict[str, list[Any]]:
    """What the harness's `hf` answers."""
    return run(tiny.hf(family), *TASKS)


def differs(a: Any, b: Any) -> bool:
    try:
        assert_same(a, b, 1e-3)
    except AssertionError:
        return True
    return False


# Without steering: the harness's `hf` ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steer", UNSTEERED.values(), ids=UNSTEERED)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_without_steering_results_equal_hf(family: str, steer: str) -> None:
    tasks = (*TASKS, "tiny_beams")
    expected = tiny.evaluate(tiny.hf(family), *tasks, log_samples=True)
    found = tiny.evaluate(tiny.steered(family, steer), *tasks, log_samples=True)
    assert_same(tiny.answers(found), tiny.answers(expected))
    for task in tasks:
        assert_same(
            {key: value for key, value in found["results"][task].items() if "," in key},
            {key: value for key, value in expected["results"][task].items() if "," in key},
        )


def test_no_pretrained_vectors_or_plan_is_needed_for_plain_evaluation() -> None:
    model = SteeredHFLM(str(tiny.folder("llama")), dtype="float32", device="cpu")
    assert_same(run(model, "tiny_letters")["tiny_letters"], plain("llama")["tiny_letters"])


def test_a_loaded_model_can_be_given() -> None:
    model, tokenizer = tiny.load("llama"), tiny.load_tokenizer("llama")
    steered = SteeredHFLM(model, vectors=str(tiny.vector_file("llama")), steer="loc@1", tokenizer=tokenizer)
    assert_same(run(steered, "tiny_cloze"), run(tiny.steered("llama", "loc@1"), "tiny_cloze"))
    assert differs(run(steered, "tiny_cloze")["tiny_cloze"], plain("llama")["tiny_cloze"])


@pytest.mark.parametrize("batch_size", ["auto", "auto:2", 5])
def test_batch_sizes_of_the_harness(batch_size: Any) -> None:
    found = run(tiny.steered("llama", "loc@1:3", batch_size=batch_size, max_batch_size=4), *TASKS)
    assert_same(found, run(tiny.steered("llama", "loc@1:3", batch_size=1), *TASKS))


def test_softmax_and_mixed_precision_of_the_harness() -> None:
    for options in ({"softmax_dtype": "float64"}, {"mixed_precision_dtype": "bfloat16", "softmax_dtype": "float32"}):
        found, expected = (run(make("llama", **options), "tiny_letters") for make in (tiny.steered, tiny.hf))
        assert_same(found, expected, 1e-5 if "mixed_precision_dtype" not in options else 2e-2)


# With the same vector at all positions: the harness's `steered` -------------------------------------------------------


def harness_steered(family: str, folder: Path, **arguments: Any) -> Any:
    """The harness's own model, with the Korean `loc` vectors of layers 1 and 2, times 1.5 and -1."""
    if tiny.IS_NEXT_HARNESS:
        pytest.skip(
            "lm_eval 0.5.0.dev1 cannot import its own steered model: 'model' alias 'steered' already registered"
        )
    from lm_eval.models.hf_steered import SteeredModel

    model = tiny.load(family)
    names = {module: name for name, module in model.base_model.named_modules()}
    vectors = tiny.vector_set(family).vectors["loc", "ko"]
    file = folder / "steer.pt"
    torch.save(
        {
            names[decoder_layers(model)[layer]]: {
                "steering_vector": vectors.artifact(layer)["vector"],
                "steering_coefficient": coefficient,
                "action": "add",
                "bias": None,
            }
            for layer, coefficient in ((1, 1.5), (2, -1.0))
        },
        file,
    )
    defaults = {"dtype": "float32", "device": "cpu", "batch_size": 3} | arguments
    return SteeredModel(pretrained=str(tiny.folder(family)), steer_path=str(file), **defaults)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_same_vector_at_all_positions_equals_the_harness_s_steered(family: str, tmp_path: Path) -> None:
    tasks = (*TASKS, "tiny_beams")
    expected = run(harness_steered(family, tmp_path), *tasks)
    found = run(tiny.steered(family, "loc~ko@1:1.5/all+loc~ko@2:-1/all"), *tasks)
    assert_same(found, expected)
    assert all(differs(found[task], plain(family)[task]) for task in TASKS)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_for_one_token_options_prompt_equals_all(family: str, tmp_path: Path) -> None:
    prompt, everywhere = (
        run(tiny.steered(family, "loc~ko@1:1.5+loc~ko@2:-1", positions=p), "tiny_letters") for p in ("prompt", "all")
    )
    assert_same(prompt, everywhere)
    assert_same(prompt, run(harness_steered(family, tmp_path), "tiny_letters"))


def test_longer_options_tell_prompt_from_all() -> None:
    found = [run(tiny.steered("llama", "loc@1:3", positions=p), "tiny_cloze") for p in ("prompt", "last", "all")]
    assert differs(found[0], found[1])
    assert differs(found[0], found[2])
    assert differs(found[1], found[2])


@pytest.mark.parametrize("position", ["prompt", "last", "all"])
def test_positions_as_a_default_and_in_the_plan(position: str) -> None:
    default = run(tiny.steered("llama", "loc@1:3", positions=position), "tiny_cloze", "tiny_generate")
    assert_same(default, run(tiny.steered("llama", f"loc@1:3/{position}"), "tiny_cloze", "tiny_generate"))


# A reference that knows nothing of batches, caches or hooks of ours -----------------------------------------------------


class Reference:
    """One prompt at a time, no cache: adds gamma times the language's vector at one layer by a plain hook."""

    def __init__(self, family: str, language: str, layer: int, gamma: float, position: str) -> None:
        self.model, self.tokenizer = tiny.load(family), tiny.load_tokenizer(family)
        self.vector = gamma * tiny.vector_set(family).vectors["loc", language].artifact(layer)["vector"]
        self.position = position
        self.prompt_length = 0
        self.scoring = True
        decoder_layers(self.model)[layer].register_forward_hook(self._add)

    def _add(self, module: Any, inputs: Any, output: Any) -> Any:
        hidden = residual(output)
        at = torch.arange(hidden.shape[1])[None, :, None]
        steered = {
            "all": torch.ones_like(at, dtype=torch.bool),
            "prompt": at < self.prompt_length,
            "last": at == self.prompt_length - 1 if self.scoring else at >= self.prompt_length - 1,
            "last3": (at >= self.prompt_length - 3) & ((at < self.prompt_length) | (not self.scoring)),
            "first2": at < 2,
            "generated": at >= self.prompt_length,
        }[self.position]
        return with_residual(output, hidden + steered * self.vector)

    @torch.inference_mode()
    def score(self, prompt: str, option: str) -> float:
        self.scoring = True
        ids = self.tokenizer(prompt + option, return_tensors="pt").input_ids
        self.prompt_length = n = len(self.tokenizer(prompt).input_ids)
        log_probabilities = self.model(ids, use_cache=False).logits[0].log_softmax(-1)
        return sum(float(log_probabilities[t - 1, ids[0, t]]) for t in range(n, ids.shape[1]))

    @torch.inference_mode()
    def generate(self, prompt: str, n_tokens: int) -> str:
        self.scoring = False
        ids = self.tokenizer(prompt, return_tensors="pt").input_ids
        self.prompt_length = n = ids.shape[1]
        for _ in range(n_tokens):
            token = self.model(ids, use_cache=False).logits[0, -1].argmax()
            if int(token) == 0:
                break
            ids = torch.cat([ids, token.view(1, 1)], dim=1)
        return str(self.tokenizer.decode(ids[0, n:], skip_special_tokens=True))


POSITIONS = ("prompt", "last", "all", "last3", "first2", "generated")
PROMPTS = [text[: 12 + 11 * i] for i, text in enumerate(tiny.TEXTS.values())]


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_scores_equal_the_reference(family: str, position: str) -> None:
    model = tiny.steered(family, "loc@1:2", positions=position, batch_size=3)
    pairs = [(prompt, option) for prompt in PROMPTS for option in (" uno", " 국조 is", " rice and the")]
    languages = [tiny.LANGUAGES[i % 4] for i in range(len(pairs))]
    found = model.loglikelihood(tiny.requests("loglikelihood", pairs, languages), disable_tqdm=True)
    references = {language: Reference(family, language, 1, 2, position) for language in tiny.LANGUAGES}
    for (score, _), language, (prompt, option) in zip(found, languages, pairs, strict=True):
        expected = references[language].score(prompt, option)
        assert score == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_generation_with_a_cache_equals_generation_without(family: str, position: str) -> None:
    """Mixed languages, left padding, one batch."""
    model = tiny.steered(family, "loc@1:2", positions=position, batch_size=4)
    arguments = {"until": ["\n\n\n"], "max_gen_toks": 8}
    requests = tiny.requests("generate_until", [(prompt, arguments) for prompt in PROMPTS], list(tiny.LANGUAGES))
    found = model.generate_until(requests, disable_tqdm=True)
    for language, prompt, text in zip(tiny.LANGUAGES, PROMPTS, found, strict=True):
        assert text == Reference(family, language, 1, 2, position).generate(prompt, 8)


def test_generation_positions_differ_and_languages_share_a_batch() -> None:
    arguments = {"until": ["\n\n\n"], "max_gen_toks": 12}
    requests = tiny.requests("generate_until", [(prompt, arguments) for prompt in PROMPTS], list(tiny.LANGUAGES))
    texts = set()
    for position in ("prompt", "last", "all"):
        model = tiny.steered("llama", "loc@1:3", positions=position, batch_size=4)
        assert model._can_continue(requests)  # the probe's forwards are over
        batches = forward_sizes(model)
        texts.add(tuple(model.generate_until(requests, disable_tqdm=True)))
        assert batches[0] == 4
    assert len(texts) == 3


def forward_sizes(model: Any) -> list[int]:
    """Where the number of rows of every later forward is noted."""
    sizes: list[int] = []
    model.model.register_forward_pre_hook(lambda _, __, given: sizes.append(len(given["input_ids"])), with_kwargs=True)
    return sizes


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_rows_leave_a_generation_when_they_stop_and_others_enter(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts are those of the harness's generation; the forwards are fewer rows."""
    model = tiny.steered(family, "loc@1:2", positions="last", batch_size=4)
    texts = [f"{prompt} {number}" for prompt in PROMPTS for number in range(3)]
    asked = [(text, tiny.LANGUAGES[n % 4]) for n, text in enumerate(texts)]

    def generated(until: list[str]) -> tuple[list[str], int]:
        arguments = {"until": until, "max_gen_toks": 8}
        requests = tiny.requests(
            "generate_until", [(text, arguments) for text, _ in asked], [code for _, code in asked]
        )
        assert model._can_continue(requests) or by_harness
        sizes.clear()
        return model.generate_until(requests, disable_tqdm=True), sum(sizes)

    by_harness, sizes = False, forward_sizes(model)
    whole, n_whole = generated(["<never>"])
    assert n_whole <= len(texts) * 8
    # A piece of every second text, from its middle: these rows stop earlier.
    pieces = [text[len(text) // 2 :][:2] for text in whole[::2]]
    stops = [piece for piece in pieces if piece.isascii()]  # no half of a character, which the next token completes
    assert any(stops)
    ours, n_ours = generated(stops)
    assert n_ours < n_whole
    by_harness = True
    monkeypatch.setattr(type(model), "_can_continue", lambda *_: False)
    assert generated(["<never>"])[0] == whole
    assert generated(stops) == (ours, sum(sizes))
    assert sum(sizes) > n_ours


def test_a_generation_that_runs_out_of_memory_goes_on_with_fewer_rows(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny.steered("llama", "loc@1:2/all", batch_size=8)
    arguments = {"until": ["<never>"], "max_gen_toks": 4}
    texts = [f"{prompt} {number}" for prompt in PROMPTS for number in range(2)]
    requests = tiny.requests("generate_until", [(text, arguments) for text in texts], [*tiny.LANGUAGES] * 2)
    expected = model.generate_until(requests, disable_tqdm=True)

    def is_small(module: Any, _: Any, given: dict[str, Any]) -> None:
        if len(given["input_ids"]) > 2:
            raise MemoryError

    model.model.register_forward_pre_hook(is_small, with_kwargs=True)
    assert model.generate_until(requests, disable_tqdm=True) == expected
    assert "generating with at most 2 rows" in caplog.text


@pytest.mark.parametrize(
    "arguments", [{"do_sample": True}, {"temperature": 0.5}, {"num_beams": 2}, {"repetition_penalty": 1.1}]
)
def test_what_is_not_greedy_is_left_to_transformers(arguments: dict[str, Any]) -> None:
    model = tiny.steered("llama", "loc@1:2")
    requests = tiny.requests("generate_until", [("a b", {"max_gen_toks": 4, **arguments})], ["ko"])
    assert not model._can_continue(requests)
    plain = tiny.requests("generate_until", [("a b", {"max_gen_toks": 4})], ["ko"])
    assert model._can_continue(plain)
    model.model.generation_config.no_repeat_ngram_size = 2
    assert not model._can_continue(plain)


@pytest.mark.parametrize("position", ["prompt", "last", "all"])
def test_beams_of_mixed_languages_equal_each_prompt_alone(position: str) -> None:
    arguments = {"until": ["\n\n\n"], "max_gen_toks": 6, "num_beams": 3, "do_sample": False}
    requests = tiny.requests("generate_until", [(prompt, arguments) for prompt in PROMPTS], list(tiny.LANGUAGES))
    plan = f"loc@1:3/{position}"
    together = tiny.steered("llama", plan, batch_size=4).generate_until(requests, disable_tqdm=True)
    alone = tiny.steered("llama", plan, batch_size=1).generate_until(requests, disable_tqdm=True)
    assert together == alone
    assert together != tiny.hf("llama", batch_size=4).generate_until(requests, disable_tqdm=True)


def test_a_text_asked_in_several_languages_is_generated_once_in_each() -> None:
    """The others go on sharing batches."""
    arguments = {"until": ["\n\n\n"], "max_gen_toks": 8}
    asked = [(prompt, language) for prompt in PROMPTS[:2] for language in ("ko", "zh", "ko")] + [(PROMPTS[2], "es")]
    model = tiny.steered("llama", "loc@1:3", batch_size=8)
    requests = tiny.requests("generate_until", [(text, arguments) for text, _ in asked], [code for _, code in asked])
    assert model._can_continue(requests)  # the probe's forwards are over
    batches = forward_sizes(model)
    found = model.generate_until(requests, disable_tqdm=True)
    assert max(batches) == batches[0] == 5
    assert 2 in batches
    for (text, language), answer in zip(asked, found, strict=True):
        (alone,) = tiny.requests("generate_until", [(text, arguments)], [language])
        assert answer == tiny.steered("llama", "loc@1:3").generate_until([alone], disable_tqdm=True)[0]


class Changed:
    """What another release of the harness might do with prompts on their way to the model."""

    @staticmethod
    def strips(patch: pytest.MonkeyPatch) -> None:
        inner = HFLM.generate_until

        def generate_until(self: Any, requests: Any, *rest: Any) -> Any:
            return inner(self, [replace(r, arguments=(r.args[0].strip()[1:], r.args[1])) for r in requests], *rest)

        patch.setattr(HFLM, "generate_until", generate_until)

    @staticmethod
    def tokenises_otherwise(patch: pytest.MonkeyPatch) -> None:
        encode, generate = HFLM.tok_batch_encode, HFLM.generate_until

        def generate_until(self: Any, *given: Any) -> Any:
            self.tok_batch_encode = lambda *args, **options: encode(self, *args, **options)
            return generate(self, *given)

        patch.setattr(HFLM, "generate_until", generate_until)

    @staticmethod
    def generates_otherwise(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(HFLM, "generate_until", lambda self, requests, *_: ["" for _ in requests])

    @staticmethod
    def adds_a_prompt(patch: pytest.MonkeyPatch) -> None:
        encode = HFLM.tok_batch_encode

        def twice(*args: Any, **options: Any) -> Any:
            return tuple(torch.cat([tensor, tensor[:1]]) for tensor in encode(*args, **options))

        patch.setattr(HFLM, "tok_batch_encode", twice)

    @staticmethod
    def tokenises_first(patch: pytest.MonkeyPatch) -> None:
        inner = HFLM.generate_until

        def generate_until(self: Any, requests: Any, *rest: Any) -> Any:
            self.tok_batch_encode([requests[0].args[0]])
            return inner(self, requests, *rest)

        patch.setattr(HFLM, "generate_until", generate_until)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Changed.strips, "changed a prompt on its way to the model: .* was not requested"),
        (Changed.tokenises_otherwise, "generates from 4 prompts and tokenised 0"),
        (Changed.adds_a_prompt, "generates from 5 prompts and tokenised 4"),
        (Changed.generates_otherwise, "generated from 4 prompts without tokenising them"),
        (Changed.tokenises_first, "tokenised two batches before"),
    ],
)
def test_a_lost_language_is_an_error(change: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"until": ["\n\n\n"], "max_gen_toks": 2}
    requests = tiny.requests("generate_until", [(prompt, arguments) for prompt in PROMPTS], list(tiny.LANGUAGES))
    steered = tiny.steered("llama", "loc@1:3", batch_size=4)
    change(monkeypatch)
    with pytest.raises(ModelError, match=f"internal error: the language of a prompt was lost, .*{message}"):
        steered.generate_until(requests, disable_tqdm=True)
    if change is Changed.strips:  # nothing is lost where nothing is steered
        assert len(tiny.steered("llama", batch_size=4).generate_until(requests, disable_tqdm=True)) == 4


def test_rolling_equals_the_windows_scored_by_hand() -> None:
    text = " ".join(tiny.TEXTS.values()) * 2  # three windows of 128 tokens
    model = tiny.steered("llama", "loc@1:2", positions="all")
    requests = tiny.requests("loglikelihood_rolling", [(text,), ("쌀",)], ["ko", "zh"])
    found = tiny.rolling(model.loglikelihood_rolling(requests))
    reference = Reference("llama", "ko", 1, 2, "all")
    ids = reference.tokenizer(text).input_ids
    assert len(ids) > 256
    expected = 0.0
    for at in range(0, len(ids), 128):
        scored = torch.tensor(ids[at : at + 128])
        seen = ([model.prefix_token_id, *ids])[: at + len(scored)][-128:]  # the last window sees as much as the others
        with torch.inference_mode():
            log_probabilities = reference.model(torch.tensor([seen]), use_cache=False).logits[0].log_softmax(-1)
        expected += float(log_probabilities[-len(scored) :].gather(1, scored[:, None]).sum())
    assert found[0] == pytest.approx(expected, rel=1e-5)
    plain = tiny.rolling(tiny.hf("llama").loglikelihood_rolling(requests))
    assert all(abs(a - b) > 1e-2 for a, b in zip(found, plain, strict=True))


# Languages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steer", ["en@1:2+loc@2:3", "loc~random3@1:2/last"])
def test_mixed_languages_equal_one_language_at_a_time(steer: str) -> None:
    model = tiny.steered("gemma3", steer, batch_size=5)
    mixed = run(model, *TASKS)
    for number, language in enumerate(tiny.LANGUAGES):
        alone = run(model, *(f"tiny_meta_{form}_{language}" for form in FORMS))
        for form in FORMS:
            assert_same(alone[f"tiny_meta_{form}_{language}"], mixed[f"tiny_{form}"][2 * number : 2 * number + 2])


def test_the_language_comes_from_the_document_then_the_task_then_the_argument() -> None:
    def responses(model: Any, task: str) -> Any:
        return run(model, task)[task]

    korean = responses(tiny.steered("llama", "loc@1:3"), "tiny_meta_cloze_ko")
    assert_same(responses(tiny.steered("llama", "loc@1:3", lang="ko"), "tiny_mute_cloze"), korean)
    assert_same(responses(tiny.steered("llama", "loc@1:3", lang="KO-kr"), "tiny_mute_cloze"), korean)
    assert_same(responses(tiny.steered("llama", "loc@1:3", lang="zh"), "tiny_meta_cloze_ko"), korean)
    column = responses(tiny.steered("llama", "loc@1:3", lang="zh"), "tiny_cloze")
    assert_same(column[2:4], korean)
    assert differs(responses(tiny.steered("llama", "loc@1:3", lang="zh"), "tiny_mute_cloze"), korean)


@pytest.mark.parametrize("tag", ["ko", "KO", "ko-KR", "kor_Hang"])
@pytest.mark.parametrize("column", ["language", "lang"])
def test_tags_and_columns(tag: str, column: str) -> None:
    (request,) = tiny.requests("loglikelihood", [("Which bird", " is rice")])
    request.doc = {column: tag}
    (expected,) = tiny.requests("loglikelihood", [("Which bird", " is rice")], ["ko"])
    model = tiny.steered("llama", "loc@1:3")
    assert model.loglikelihood([request]) == model.loglikelihood([expected])


@pytest.mark.parametrize("form", FORMS)
def test_an_unknown_language_is_an_error_that_names_the_tasks(form: str) -> None:
    model = tiny.steered("llama", "loc@1:3")
    with pytest.raises(LanguageError) as caught:
        run(model, f"tiny_mute_{form}", f"tiny_{form}")
    message = str(caught.value)
    assert message.startswith(
        f"task tiny_mute_{form}: the language is not known; the plan has vectors for: en, ko, es, zh"
    )
    assert f"tiny_{form}:" not in message
    for way in ("document column", "metadata", "lang=ko"):
        assert way in message


def test_a_language_without_vectors_is_an_error_that_names_the_tasks() -> None:
    file = str(tiny.vector_file("llama", languages=("ko", "zh")))
    with pytest.raises(LanguageError) as caught:
        run(
            tiny.steered("llama", "loc@1", vectors=file),
            "tiny_meta_cloze_es",
            "tiny_meta_letters_en",
            "tiny_meta_cloze_ko",
        )
    lines = str(caught.value).splitlines()
    assert lines[0] == "task tiny_meta_cloze_es: the plan cannot steer language 'es'; it has vectors for: ko, zh"
    assert lines[1].startswith("task tiny_meta_letters_en: the plan cannot steer language 'en'")
    assert "cloze_ko" not in str(caught.value)


def test_an_unknown_language_does_not_matter_without_a_plan() -> None:
    assert_same(run(tiny.steered("llama"), "tiny_mute_cloze"), run(tiny.hf("llama"), "tiny_mute_cloze"))


def test_english_is_not_steered_by_the_english_vector() -> None:
    found, unsteered = run(tiny.steered("llama", "en@1:3"), "tiny_cloze")["tiny_cloze"], plain("llama")["tiny_cloze"]
    assert_same(found[:2], unsteered[:2])
    assert all(differs(found[i], unsteered[i]) for i in range(2, 8))


def test_vectors_for_any_language_steer_tasks_without_one() -> None:
    file = str(tiny.vector_file("llama", ("style",), ("any",)))
    found = run(tiny.steered("llama", "style@1:3", vectors=file), "tiny_mute_cloze")
    assert differs(found, run(tiny.hf("llama"), "tiny_mute_cloze"))


def test_a_fixed_language_and_a_random_control() -> None:
    def cloze(steer: str) -> Any:
        return run(tiny.steered("llama", steer), "tiny_cloze")["tiny_cloze"]

    own, fixed, random = cloze("loc@1:2"), cloze("loc~zh@1:2"), cloze("loc~random@1:2")
    assert_same(fixed[6:], own[6:])  # the Chinese documents
    assert differs(fixed[:6], own[:6])
    assert all(differs(random[i], own[i]) for i in range(8))
    assert cloze("loc~random@1:2") == random  # drawn again, the same
    assert differs(cloze("loc~random1@1:2"), random)


# Adapters, dtypes, devices --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter(family: str) -> None:
    adapter = str(tiny.adapter(family))
    expected = run(tiny.hf(family, peft=adapter), *TASKS)
    model = tiny.steered(family, peft=adapter)
    assert_same(run(model, *TASKS), expected)
    assert all(differs(expected[task], plain(family)[task]) for task in TASKS)
    info = model.get_model_info()
    assert info["steering"]["peft"] == adapter
    assert "peft_sha" in info
    steered = run(tiny.steered(family, "loc@1:3", peft=adapter), *TASKS)
    assert all(differs(steered[task], expected[task]) for task in TASKS)


def test_an_adapter_of_virtual_tokens_is_refused(tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    get_peft_model(tiny.load("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ModelError, match=r"PROMPT_TUNING, which adds virtual tokens; valid: .*LoRA.*--model hf"):
        tiny.steered("llama", peft=str(tmp_path))


def test_bfloat16() -> None:
    found = run(tiny.steered("llama", "loc@1:3", dtype="bfloat16"), *TASKS)
    exact = run(tiny.steered("llama", "loc@1:3"), *TASKS)
    assert_same(found["tiny_cloze"], exact["tiny_cloze"], 0.05)
    assert tiny.steered("llama", "loc@1:3", dtype="bfloat16").model.dtype == torch.bfloat16


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_map(device_map: Any) -> None:
    found = run(tiny.steered("llama", "loc@1:3", device_map=device_map), *TASKS)
    assert_same(found, run(tiny.steered("llama", "loc@1:3"), *TASKS))


def test_layers_and_embeddings_offloaded_to_the_disk(tmp_path: Path) -> None:
    places = dict.fromkeys(
        ["model.layers.0", "model.layers.2", "model.layers.3", "model.norm", "model.rotary_emb"], "cpu"
    )
    places |= dict.fromkeys(["model.embed_tokens", "model.layers.1", "lm_head"], "disk")
    found = run(tiny.steered("llama", "loc@1:3", device_map=places, offload_folder=str(tmp_path)), *TASKS)
    assert_same(found, run(tiny.steered("llama", "loc@1:3"), *TASKS))


def test_left_padding_as_an_argument() -> None:
    found = run(tiny.steered("mistral", "loc@1:3", padding_side="left"), *TASKS)
    assert_same(found, run(tiny.steered("mistral", "loc@1:3", padding_side="right"), *TASKS))
    with pytest.raises(ModelError, match="padding_side='both' is unknown, valid: left, right"):
        tiny.steered("mistral", padding_side="both")


def test_vectors_of_another_architecture_on_request() -> None:
    vectors = str(tiny.vector_file("llama"))
    found = run(tiny.steered("mistral", "loc@1:3", vectors=vectors, any_model=True), "tiny_cloze")
    assert differs(found["tiny_cloze"], plain("mistral")["tiny_cloze"])


# What is saved --------------------------------------------------------------------------------------------------------


def test_the_results_say_how_they_were_steered(tmp_path: Path) -> None:
    from lm_eval.loggers import EvaluationTracker

    file = tiny.vector_file("llama")
    results = tiny.evaluate(
        "steered-hf",
        "tiny_cloze",
        model_args=f"pretrained={tiny.folder('llama')},vectors={file},steer=en@1:2+loc@58%:.5/last,positions=all,dtype=float32",
        device="cpu",
    )
    tracker = EvaluationTracker(output_path=str(tmp_path))
    tracker.save_results_aggregated(results=results, samples=None)
    (saved,) = tmp_path.rglob("results_*.json")
    steering = json.loads(saved.read_text())["config"]["steering"]
    assert steering == {
        "plan": "en@1:2+loc@58%:0.5/last",
        "positions": "all",
        "lang": None,
        "vectors": {"path": str(file), "sha256": VectorSet.load(file).sha256},
        "model_fingerprint": VectorSet.load(file).model.fingerprint,
        "pretrained": str(tiny.folder("llama")),
        "peft": None,
    }
    assert str(Plan.parse(steering["plan"])) == steering["plan"]


def test_the_results_say_that_nothing_was_steered() -> None:
    steering = tiny.evaluate(tiny.steered("llama", vectors=None), "tiny_letters")["config"]["steering"]
    assert (steering["plan"], steering["vectors"]) == ("", None)


def test_vectors_and_a_plan_as_objects(tmp_path: Path) -> None:
    from_file = tiny.steered("llama", "loc@1:3")
    loaded = VectorSet.load(tiny.vector_file("llama"))
    objects = tiny.steered("llama", Plan.parse("loc@1:3"), vectors=loaded)
    assert objects.steering_identity() == from_file.steering_identity()
    assert_same(run(objects, "tiny_cloze"), run(from_file, "tiny_cloze"))
    unsaved = tiny.vector_set("llama")
    identity = tiny.steered("llama", "loc@1:3", vectors=unsaved).steering_identity()["vectors"]
    unsaved.save(tmp_path / "v.safetensors")
    assert identity == {"path": None, "sha256": VectorSet.load(tmp_path / "v.safetensors").sha256}
    others = tiny.steered("llama", "loc@1:3", vectors=tiny.vector_set("llama", scale=0.6)).steering_identity()
    assert others["vectors"]["sha256"] != identity["sha256"]


def test_a_closed_backend_leaves_no_hook_on_the_model() -> None:
    model = tiny.load("llama")
    backend = backends.load(
        "steered-hf",
        model,
        vectors=tiny.vector_set("llama"),
        steer="loc@1:3+en@2:1/all",
        tokenizer=tiny.load_tokenizer("llama"),
    )
    before = plain("llama")["tiny_letters"]
    assert differs(run(backend, *TASKS)["tiny_letters"], before)
    assert tiny.hooks(model) == ["model.layers.1", "model.layers.2"]
    backend.close()
    assert tiny.hooks(model) == []


# The harness's response cache -----------------------------------------------------------------------------------------


class Cached:
    """Runs of the harness that share one `--use_cache`, and how many requests each had to compute."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = str(folder / "cache")
        self.monkeypatch = monkeypatch

    def run(self, model: Any, *tasks: str) -> tuple[dict[str, list[Any]], int]:
        computed: list[int] = []
        for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            compute = getattr(model, name)

            def counted(requests: Any, *args: Any, __compute: Any = compute, **kwargs: Any) -> Any:
                computed.append(len(requests))
                return __compute(requests, *args, **kwargs)

            self.monkeypatch.setattr(model, name, counted)
        answers = run(model, *tasks, use_cache=self.path)
        return answers, sum(computed)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cached:
    return Cached(tmp_path, monkeypatch)


TASKS_WITHOUT_PRIORS = ("tiny_letters", "tiny_generate", "tiny_rolling")


def test_a_cache_is_reused_under_the_same_steering(cached: Cached, tmp_path: Path) -> None:
    first, computed = cached.run(tiny.steered("llama", "loc@1:2"), *TASKS_WITHOUT_PRIORS)
    assert computed == 32 + 8 + 8
    again, computed = cached.run(tiny.steered("llama", "loc@1:2.0"), *TASKS_WITHOUT_PRIORS)
    assert computed == 0
    assert_same(again, first)
    moved = tmp_path / "moved.safetensors"  # the same vectors elsewhere are the same steering
    moved.write_bytes(tiny.vector_file("llama").read_bytes())
    again, computed = cached.run(tiny.steered("llama", "loc@1:2", vectors=str(moved)), *TASKS_WITHOUT_PRIORS)
    assert computed == 0
    assert_same(again, first)


def test_a_cache_made_before_an_interruption_is_reused(cached: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.steered("llama", "loc@1:2", batch_size=3)
    score, calls = model._scorer._run_prompts, []

    def interrupted(rows: Any, **arguments: Any) -> Any:
        if model._scorer.verdict is None:  # what rows may share is measured first
            return score(rows, **arguments)
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(rows, **arguments)

    monkeypatch.setattr(model._scorer, "_run_prompts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached.run(model, "tiny_letters")
    found, computed = cached.run(tiny.steered("llama", "loc@1:2"), "tiny_letters")
    assert computed == 32 - 4 * 6  # two batches of three documents were done
    assert_same(found, run(tiny.steered("llama", "loc@1:2"), "tiny_letters"))


OTHER_STEERING: dict[str, dict[str, Any]] = {
    "strength": {"steer": "loc@1:3"},
    "layer": {"steer": "loc@2:2"},
    "position": {"positions": "all"},
    "default language": {"lang": "ko"},
    "vectors": {"vectors": ("loc",)},
    "adapter": {"peft": True},
    "none": {"steer": ""},
}


@pytest.mark.parametrize("change", OTHER_STEERING)
def test_a_cache_of_another_steering_is_refused(change: str, cached: Cached) -> None:
    cached.run(tiny.steered("llama", "loc@1:2"), "tiny_letters")
    arguments = {"steer": "loc@1:2"} | OTHER_STEERING[change]
    if "vectors" in arguments:
        arguments["vectors"] = str(tiny.vector_file("llama", arguments["vectors"]))
    if "peft" in arguments:
        arguments["peft"] = str(tiny.adapter("llama"))
    with pytest.raises(UserError, match="was made under another model or steering") as caught:
        cached.run(tiny.steered("llama", **arguments), "tiny_letters")
    assert "Give each model and each steering a cache of its own" in str(caught.value)
    names = {"strength": "plan", "layer": "plan", "none": "plan", "position": "positions", "adapter": "peft"}
    assert f"  {names.get(change, 'lang' if 'language' in change else change)}: " in str(caught.value)


@pytest.mark.parametrize("maker", [tiny.hf, tiny.steered], ids=["hf", "steered-hf"])
def test_an_unsteered_cache_is_refused_by_a_steered_run(maker: Any, cached: Cached) -> None:
    cached.run(maker("llama"), "tiny_letters")
    with pytest.raises(UserError, match=r"Give (each model and each steering|this run) a cache of its own"):
        cached.run(tiny.steered("llama", "loc@1:2"), "tiny_letters")


def test_a_cache_of_hf_is_refused_since_it_says_nothing_of_its_model(cached: Cached) -> None:
    cached.run(tiny.hf("llama"), "tiny_letters")
    with pytest.raises(UserError, match="does not say which model"):
        cached.run(tiny.steered("llama"), "tiny_letters")


def _copy(folder: Path, change: str) -> None:
    """Put a model that differs in one thing from `tiny.folder("llama")` in its place."""
    shutil.copytree(tiny.folder("llama"), folder, dirs_exist_ok=True)
    if change == "weights":
        model = tiny.load("llama")
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight[3, 5] += 0.5
        model.save_pretrained(folder)
    elif change == "config":
        config = json.loads((folder / "config.json").read_text())
        config["rms_norm_eps"] = 0.5
        (folder / "config.json").write_text(json.dumps(config))
    elif change == "generation":
        (folder / "generation_config.json").write_text(json.dumps({"repetition_penalty": 3.0}))
    elif change == "tokenizer":
        tokenizer = tiny.load_tokenizer("llama")
        tokenizer.add_tokens(["bird"])
        tokenizer.save_pretrained(folder)
    elif change == "chat template":
        tokenizer = tiny.load_tokenizer("llama")
        tokenizer.chat_template = "{{ messages[0].content }}"
        tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("change", ["weights", "config", "generation", "tokenizer", "chat template"])
def test_a_cache_of_what_stood_under_the_same_name_is_refused(change: str, cached: Cached, tmp_path: Path) -> None:
    folder, steer = tmp_path / "model", "loc@1:2" if change == "weights" else ""
    _copy(folder, "")
    cached.run(tiny.steered("llama", steer, pretrained=str(folder)), "tiny_generate")
    _copy(folder, change)
    with pytest.raises(
        UserError, match=rf"another model or steering:[\s\S]*{change.split()[0]}[\s\S]*cache of its own"
    ):
        cached.run(tiny.steered("llama", steer, pretrained=str(folder)), "tiny_generate")


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "bfloat16"},
        {"add_bos_token": False},
        {"prefix_token_id": 7},
        {"max_length": 60},
        {"revision": "other"},
        {"softmax_dtype": "float64"},
        {"think_end_token": "x"},
    ],
    ids=str,
)
def test_a_cache_under_other_arguments_is_refused(change: dict[str, Any], cached: Cached) -> None:
    cached.run(tiny.steered("llama"), "tiny_letters")
    ((name, value),) = change.items()
    with pytest.raises(UserError, match=rf"{name}: .* in the cache, now .*{value}"):
        cached.run(tiny.steered("llama", **change), "tiny_letters")


def test_an_adapter_trained_further_is_refused(cached: Cached, tmp_path: Path) -> None:
    for scale, alpha in ((1.0, 8), (1.5, 8), (1.0, 16)):
        shutil.copytree(tiny.adapter("llama"), tmp_path / "adapter", dirs_exist_ok=True)
        weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        save_file(
            {name: scale * tensor for name, tensor in weights.items()},
            tmp_path / "adapter" / "adapter_model.safetensors",
        )
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": alpha}))
        model = tiny.steered("llama", peft=str(tmp_path / "adapter"))
        if (scale, alpha) == (1.0, 8):
            cached.run(model, "tiny_letters")
        else:
            with pytest.raises(UserError, match="weights: " if scale > 1 else "adapters: "):
                cached.run(model, "tiny_letters")


def test_an_unsteered_cache_is_reused_by_an_unsteered_run(cached: Cached) -> None:
    first, _ = cached.run(tiny.steered("llama", vectors=None), "tiny_letters")
    for unsteered in (tiny.steered("llama", vectors=None), tiny.steered("llama", positions="all", lang="ko")):
        again, computed = cached.run(unsteered, "tiny_letters")
        assert computed == 0
        assert_same(again, first)


def test_priors_of_different_languages_are_not_taken_for_each_other(cached: Cached) -> None:
    """The unconditional score of an option names no language, but each language has its own vector."""
    expected = run(tiny.steered("llama", "loc@1:3", positions="all"), "tiny_cloze")
    first, _ = cached.run(tiny.steered("llama", "loc@1:3", positions="all"), "tiny_cloze")
    again, computed = cached.run(tiny.steered("llama", "loc@1:3", positions="all"), "tiny_cloze")
    assert_same(first, expected)
    assert_same(again, expected)
    assert computed == 0


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("loglikelihood", ("Which bird", " is rice")),
        ("loglikelihood_rolling", ("Which bird is rice",)),
        ("generate_until", ("Which bird", {"until": ["\n\n"], "max_gen_toks": 9})),
    ],
)
def test_the_same_text_in_two_languages_is_not_mixed_up(kind: str, arguments: tuple[Any, ...], tmp_path: Path) -> None:
    from lm_eval.api.model import CachingLM

    requests = tiny.requests(kind, [arguments, arguments], ["ko", "zh"])
    expected = getattr(tiny.steered("llama", "loc@1:3"), kind)(requests)
    assert expected[0] != expected[1]
    for _ in range(3):
        model = CachingLM(tiny.steered("llama", "loc@1:3"), str(tmp_path / "cache.db"))
        assert_same(getattr(model, kind)(requests), expected)


@pytest.mark.parametrize("patched", [True, False])
def test_a_text_that_another_run_asks_in_another_language_is_computed_again(
    patched: bool, cached: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key of a response is its text alone: without the patch of the harness, no steered response is reused."""
    from lm_eval.api.model import CachingLM

    if not patched:
        monkeypatch.setattr(CachingLM, "__getattr__", CachingLM.__getattr__.__wrapped__)
    for form, n in (("letters", 8), ("generate", 2)):
        expected = {
            code: run(tiny.steered("llama", "loc@1:3", lang=code), f"tiny_mute_{form}") for code in ("ko", "zh")
        }
        assert differs(expected["ko"], expected["zh"])
        with monkeypatch.context() as context:
            # The language of a whole run is part of the cache's identity; that of its documents is not.
            context.setattr(SteeredHFLM, "_cache_identity", lambda self: {"plan": str(self._plan)})
            for code, computed in (("ko", n), ("zh", n), ("zh", 0 if patched else n), ("ko", n)):
                found, n_computed = cached.run(tiny.steered("llama", "loc@1:3", lang=code), f"tiny_mute_{form}")
                assert_same(found, expected[code])
                assert n_computed == computed


# What cannot be evaluated ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"ster": "en@1"}, "unexpected keyword argument 'ster'"),
        ({"peft": "/nowhere/adapter"}, "adapter_config.json"),
        ({"dtype": "float33"}, "float33"),
        ({"tokenizer": "/nowhere/tokenizer"}, "/nowhere"),
        ({"batch_size": 0}, "valid: 1, 2, 3 ... or auto"),
        ({"batch_size": "many"}, "many"),
        ({"device_map": "somewhere"}, "somewhere"),
    ],
)
def test_arguments_that_cannot_be_used(arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(ModelError) as caught:
        tiny.steered("llama", **arguments)
    assert expected in str(caught.value)
