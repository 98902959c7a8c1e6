"""On a GPU: the same answers as on the CPU, from tiny models. Skipped without one.

The CPU's answers are compared with the harness elsewhere; here only the device changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support import tiny
from support.scores import ALL, FEW_SHOT, PAIRS, ask, assert_same
from support.sweeps import given_settings, sweep

from lm_eval_ext.data.pairs import Pair, PairSet
from lm_eval_ext.scoring import prefixes
from lm_eval_ext.steering.extraction import extract
from lm_eval_ext.steering.pooling import POOLINGS, Pooling

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.gpu

PLAN = "en@1:2/last+loc@2:3+loc@0:1/all"
#: Float32 sums in another order; a steering of these vectors moves answers by more than 0.1.
TOLERANCE = 1e-3


def languages(pairs: list[Any]) -> list[str]:
    return [tiny.LANGUAGES[i % 4] for i in range(len(pairs))]


def on(device: str, model: Any) -> Any:
    """The model, which must lie where it was asked to."""
    assert {parameter.device for parameter in model.model.parameters()} == {torch.device(device)}
    return model


# Scoring --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", ["auto", 5])
@pytest.mark.parametrize("steer", ["", PLAN])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_scores_equal_those_of_the_cpu(family: str, steer: str, batch_size: Any, device: str) -> None:
    expected = ask(tiny.steered(family, steer), ALL, languages(ALL))
    found = ask(on(device, tiny.steered(family, steer, device=device, batch_size=batch_size)), ALL, languages(ALL))
    assert_same(found, expected, TOLERANCE)


@pytest.mark.parametrize("family", ["gemma3", "llama"])
def test_shared_beginnings(family: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ask(tiny.steered(family, PLAN), FEW_SHOT, languages(FEW_SHOT))
    monkeypatch.setattr(prefixes, "MIN_SHARED", 1)
    found = ask(tiny.steered(family, PLAN, device=device, batch_size=4), FEW_SHOT, languages(FEW_SHOT))
    assert_same(found, expected, TOLERANCE)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_unsteered_scores_equal_the_harness_on_the_same_device(family: str, device: str) -> None:
    assert_same(ask(tiny.steered(family, device=device), ALL), ask(tiny.hf(family, device=device), ALL), TOLERANCE)


@pytest.mark.parametrize("steer", ["", PLAN])
@pytest.mark.parametrize("family", ["gemma3", "llama"])
def test_bfloat16_scores(family: str, steer: str, device: str) -> None:
    """As near to float32 on the CPU as three digits allow; the same dtype throughout."""
    pairs = PAIRS["letters"] + PAIRS["one continuation"]
    model = on(device, tiny.steered(family, steer, device=device, dtype="bfloat16"))
    assert model.model.dtype == torch.bfloat16
    found, expected = (
        [value for value, _ in ask(each, pairs, languages(pairs))] for each in (model, tiny.steered(family, steer))
    )
    assert found == pytest.approx(expected, rel=0.1, abs=0.1)
    assert np.corrcoef(found, expected)[0, 1] > 0.999


def test_bfloat16_equals_the_harness_in_bfloat16(device: str) -> None:
    """The harness's log-softmax in float32, since it rounds to the model's dtype otherwise."""
    pairs = PAIRS["letters"] + PAIRS["one continuation"]
    found, expected = (
        [value for value, _ in ask(make("llama", device=device, dtype="bfloat16", softmax_dtype="float32"), pairs)]
        for make in (tiny.steered, tiny.hf)
    )
    assert found == pytest.approx(expected, rel=0.05, abs=0.05)


# Device maps ----------------------------------------------------------------------------------------------------------


def device_map(kind: str, device: str) -> Any:
    parts = ["model.embed_tokens", *(f"model.layers.{n}" for n in range(tiny.LAYERS)), "model.norm", "model.rotary_emb"]
    match kind:
        case "auto":
            return "auto"
        case "one device":
            return {"": device}
        case "head on the CPU":
            return dict.fromkeys(parts, device) | {"lm_head": "cpu"}
        case "deep layers on the CPU":
            return dict.fromkeys(parts, device) | {"model.layers.2": "cpu", "model.layers.3": "cpu", "lm_head": device}
    raise KeyError(kind)


@pytest.mark.parametrize("kind", ["auto", "one device", "head on the CPU", "deep layers on the CPU"])
def test_device_maps(kind: str, device: str) -> None:
    steer = "en@1:2/last+loc@2:3+loc@3:1/all"  # on both sides of the border
    expected = ask(tiny.steered("llama", steer), ALL, languages(ALL))
    model = tiny.steered("llama", steer, device=device, device_map=device_map(kind, device))
    assert model.model.get_input_embeddings().weight.device.type == torch.device(device).type
    assert_same(ask(model, ALL, languages(ALL)), expected, TOLERANCE)


# Generation -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("position", ["prompt", "last", "all"])
@pytest.mark.parametrize("family", ["gemma3", "llama", "gpt2"])
def test_generation(family: str, position: str, options: dict[str, Any], device: str) -> None:
    """Mixed languages, left padding, one batch, a KV cache on the device."""
    prompts = [text[: 12 + 11 * i] for i, text in enumerate(tiny.TEXTS.values())]
    arguments = {"until": ["\n\n\n"], "max_gen_toks": 8, "do_sample": False, **options}
    requests = tiny.requests("generate_until", [(prompt, arguments) for prompt in prompts], list(tiny.LANGUAGES))
    found, expected, plain = (
        tiny.steered(family, steer, positions=position, batch_size=4, device=where).generate_until(
            requests, disable_tqdm=True
        )
        for steer, where in (("loc@1:2", device), ("loc@1:2", "cpu"), ("", "cpu"))
    )
    assert found == expected
    assert found != plain


# Compiled -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_compiled(family: str, device: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    pairs = [*ALL, *FEW_SHOT]
    expected = ask(tiny.steered(family, PLAN), pairs, languages(pairs))
    model = tiny.steered(family, PLAN, batch_size="auto", device=device, torch_compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert_same(ask(on(device, model), pairs, languages(pairs)), expected, TOLERANCE)


# Sweep and extraction -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gemma3", "llama"])
def test_sweep(family: str, device: str, tmp_path: Path) -> None:
    grid: dict[str, Any] = {"layers": "0,2", "positions": ("prompt", "last", "all"), "pair_layers": 1, "n_random": 1}
    key = ["condition", "task", "doc_id"]
    on_device, on_cpu = (
        sweep(given_settings(family, tmp_path / name, device=where, max_tokens=tokens, **grid)).set_index(key)
        for name, where, tokens in (("device", device, None), ("cpu", "cpu", 1024))
    )
    assert len(on_cpu) > 100
    margins = on_device["margin"].reindex(on_cpu.index)
    np.testing.assert_allclose(margins, on_cpu["margin"], atol=TOLERANCE)
    clear = on_cpu["margin"].abs() > 2 * TOLERANCE  # a tie may fall either way
    assert clear.mean() > 0.9
    assert (on_device["acc"].reindex(on_cpu.index)[clear] == on_cpu["acc"][clear]).all()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_extraction(family: str, pooling: Pooling, device: str) -> None:
    texts = tiny.TEXTS
    pairs = PairSet("en", "ko", "test", tuple(Pair(texts["en"][: 9 + 5 * i], texts["ko"][i : 9 + i]) for i in range(7)))
    tokenizer = tiny.load_tokenizer(family)
    found, expected = (
        extract(tiny.load(family).to(where), tokenizer, pairs, layers=(0, 2, 3), pooling=pooling, batch_size=3).vectors[
            "en", "ko"
        ]
        for where in (device, "cpu")
    )
    vector, reference = found.tensors["vector"], expected.tensors["vector"]
    assert vector.device.type == "cpu"
    assert reference.abs().max() > 10 * TOLERANCE
    torch.testing.assert_close(vector, reference, rtol=0, atol=TOLERANCE)
    assert found.info.residual_norms == pytest.approx(expected.info.residual_norms, rel=1e-4)
