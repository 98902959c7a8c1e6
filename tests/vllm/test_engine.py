"""`steered-vllm` on the CPU, in float32: the answers of `steered-hf`, whatever the engine batches, chunks and caches.

Each family has one engine, whose table is changed: with chunked prefill (48 tokens a step, prompts of more), without, and
with layers that see a window only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
import torch
from support import tiny, vllm_models
from support.generations import first_differences, watch_hf, watch_vllm
from support.scores import PAIRS, QUESTIONS, ask, assert_same
from support.sweeps import given_settings, sweep

from lm_eval_ext import backends
from lm_eval_ext.backends.vllm.salts import Salts
from lm_eval_ext.errors import ModelError, PlanError
from lm_eval_ext.steering.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.vllm

#: float32 sums in another order.
TOLERANCE = 1e-3

PLANS = ["", "en@1:2/last", "en@1:2+loc@2:3", "loc@0:1/all+en@2:2/last3", "loc@0-3:1/generated+en@1:2/first2"]
ENGINES: dict[str, dict[str, Any]] = {
    "llama": {"max_num_batched_tokens": 48},
    "qwen2": {"max_num_batched_tokens": 512, "enable_chunked_prefill": False},
    "gemma3": {"max_num_batched_tokens": 512, "enable_prefix_caching": False},
}

EVERY = [
    pair for name in ("letters", "options", "unconditional", "duplicates", "spaces", "too long") for pair in PAIRS[name]
]


def languages(n: int) -> list[str]:
    return [tiny.LANGUAGES[number % 4] for number in range(n)]


@pytest.fixture(scope="module", params=ENGINES)
def both(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    on_vllm, on_hf = vllm_models.pair(vllm_models.folder(request.param), **ENGINES[request.param])
    yield on_vllm, on_hf
    on_vllm.close()


def steer(both: tuple[Any, Any], plan: str) -> None:
    for model in both:
        model.steer(Plan.parse(plan), model._vectors or vllm_models.vectors(vllm_models.folder("llama")))


@pytest.mark.parametrize("plan", PLANS)
def test_log_likelihoods(both: tuple[Any, Any], plan: str) -> None:
    steer(both, plan)
    on_vllm, on_hf = (ask(model, EVERY, languages(len(EVERY))) for model in both)
    assert_same(on_vllm, on_hf, TOLERANCE)
    texts = tiny.requests("loglikelihood_rolling", [(text,) for text in tiny.TEXTS.values()], list(tiny.LANGUAGES))
    on_vllm, on_hf = (model.loglikelihood_rolling(texts, disable_tqdm=True) for model in both)
    assert_same(on_vllm, on_hf, TOLERANCE)


@pytest.mark.parametrize("position", ["prompt", "last", "all"])
def test_generation_token_for_token(both: tuple[Any, Any], position: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokens, up to a place where the two best are as near to each other as rounding moves them."""
    steer(both, f"en@1:2/{position}+loc@2:2/{position}")
    options = {"until": ["\n\n\n"], "max_gen_toks": 8, "do_sample": False}
    prompts = [text[: 12 + 11 * i] for i, text in enumerate(tiny.TEXTS.values())]
    requests = tiny.requests("generate_until", [(text, options) for text in prompts], list(tiny.LANGUAGES))
    of_vllm, of_hf = watch_vllm(both[0], monkeypatch), watch_hf(both[1], monkeypatch)
    on_vllm, on_hf = (model.generate_until(requests, disable_tqdm=True) for model in both)
    differences = first_differences(of_vllm, of_hf)
    assert all(margin < TOLERANCE for _, margin in differences.values())
    if not differences:  # vLLM leaves out an incomplete character at the end
        assert on_vllm == [text.rstrip("\N{REPLACEMENT CHARACTER}") for text in on_hf]
    assert len(set(on_vllm)) > 2


def test_a_poisoned_cache_is_not_hit(both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt in each language, then as part of a longer one: with the salts the answers of `steered-hf`, without not."""
    on_vllm, on_hf = both
    plan = "en@0:2/prompt+loc@1:4/prompt"
    text = " ".join(tiny.TEXTS["en"].split() * 3)
    pairs = [(text, option) for _ in tiny.LANGUAGES for option in (" A", " B")] + [(text[:40], text[40:])]
    own = [language for language in tiny.LANGUAGES for _ in range(2)] + ["ko"]

    def one_by_one() -> list[tuple[float, bool]]:
        return [ask(on_vllm, [pair], [language])[0] for pair, language in zip(pairs, own, strict=True)]

    steer(both, plan)
    expected = ask(on_hf, pairs, own)
    assert_same(one_by_one(), expected, TOLERANCE)
    if on_vllm.model_args["enable_prefix_caching"]:
        monkeypatch.setattr(Salts, "of", lambda *_: "the same for all")
        assert max(abs(a - b) for (a, _), (b, _) in zip(one_by_one(), expected, strict=True)) > 100 * TOLERANCE


def test_what_was_scored_before_is_scored_again_from_the_cache(both: tuple[Any, Any]) -> None:
    steer(both, "en@1:2/last")
    text = " ".join(tiny.TEXTS["es"].split() * 2)
    pairs = [(text[:30], text[30:]), (text[:30], text[30:] + " rice")]
    first, again = (ask(both[0], pairs, ["es", "es"]) for _ in range(2))
    assert_same(again, first, TOLERANCE)


def test_a_run_of_the_harness(both: tuple[Any, Any]) -> None:
    steer(both, "en@1:2/prompt")
    on_vllm, on_hf = (tiny.evaluate(model, "tiny_letters", "tiny_cloze", log_samples=True) for model in both)
    assert_same(tiny.answers(on_vllm), tiny.answers(on_hf), TOLERANCE)
    identity = on_vllm["config"]["steering"]
    assert identity == on_hf["config"]["steering"]
    assert on_vllm["config"]["engine"].startswith("vllm")
    assert on_vllm["config"]["dtype"]["used"] == "float32"


def test_a_sweep_on_one_engine(tmp_path: Path) -> None:
    """Conditions one after the other on a running engine: the cells of a sweep with transformers."""
    folder = vllm_models.folder("llama")
    changes = {
        "vectors": vllm_models.vectors(folder),
        "model": str(folder),
        "layers": "1,2",
        "positions": ("last", "all"),
    }
    on_hf = sweep(given_settings("llama", tmp_path / "hf", **changes))
    engine = f"dtype=float32,max_model_len={vllm_models.CONTEXT},max_num_seqs=16"
    on_vllm = sweep(given_settings("llama", tmp_path / "vllm", **changes, engine="vllm", model_args=engine, device=""))
    assert list(on_vllm.columns) == list(on_hf.columns)
    numbers = on_hf.select_dtypes("number").columns
    pd.testing.assert_frame_equal(on_vllm[numbers], on_hf[numbers], atol=TOLERANCE, rtol=TOLERANCE)


def test_lora() -> None:
    both = vllm_models.pair(vllm_models.folder("llama"), lora=vllm_models.adapter("llama"))
    try:
        pairs = [(question, option) for question in QUESTIONS for option in (" A", " B", " uno dos tres")]
        steer(both, "en@1:2/prompt+loc@2:3/last")
        on_vllm, on_hf = (ask(each, pairs, languages(len(pairs))) for each in both)
        assert_same(on_vllm, on_hf, TOLERANCE)
        assert both[0].steering_identity()["peft"] == str(vllm_models.adapter("llama"))
        both[1].model.disable_adapter_layers()
        plain = ask(both[1], pairs, languages(len(pairs)))
        assert max(abs(a - b) for (a, _), (b, _) in zip(on_vllm, plain, strict=True)) > 100 * TOLERANCE
    finally:
        both[0].close()


def test_a_layer_that_the_model_lacks_is_refused_before_the_engine_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.models.vllm_causallms import VLLM

    monkeypatch.setattr(VLLM, "__init__", lambda *_, **__: pytest.fail("it was started"))
    path = vllm_models.folder("llama")
    with pytest.raises(PlanError, match="99"):
        backends.load("steered-vllm", str(path), vectors=vllm_models.vectors(path), steer="en@99:2")


def test_layers_that_are_not_found(both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    steer(both, "en@1:2")
    with monkeypatch.context() as changed:
        changed.setattr(both[0].model.llm_engine.model_config.hf_config, "num_hidden_layers", 3)
        with pytest.raises(ModelError, match="cannot tell which module list"):
            both[0]._put_table()
    steer(both, "en@1:2")


def test_a_compiled_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced by torch.compile once, before there is a plan; inductor, which takes a minute, is left out."""
    monkeypatch.setattr(torch._dynamo.config, "disable", False)
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")
    from vllm.compilation.counter import compilation_counter

    before = compilation_counter.num_models_seen
    both = vllm_models.pair(vllm_models.folder("llama"), enforce_eager=False, max_num_batched_tokens=48)
    try:
        for plan in ("", "en@1:2/last+loc@1:3/prompt+loc@2:2/all", "loc@0-3:1/generated+en@1:2/first2", "en@2:2"):
            steer(both, plan)
            on_vllm, on_hf = (ask(model, EVERY, languages(len(EVERY))) for model in both)
            assert_same(on_vllm, on_hf, TOLERANCE)
        assert compilation_counter.num_models_seen > before
    finally:
        both[0].close()
