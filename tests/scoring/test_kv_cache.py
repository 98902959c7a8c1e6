"""The size of keys and values: the formula against the caches of real models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from support import tiny
from support.scores import FEW_SHOT, ask, assert_same
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, Gemma3TextConfig

from lm_eval_ext.backends.hf.model import SteeredHFLM
from lm_eval_ext.scoring.batching import RowCost
from lm_eval_ext.scoring.kv_cache import kv_bytes_per_token
from lm_eval_ext.scoring.shared_forward import SweepModel

pytestmark = pytest.mark.transformers4


def cached_bytes(model: Any, tokens: int = 5) -> float:
    """Of one token of a real cache, shorter than any window."""
    with torch.inference_mode():
        cache = model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=True).past_key_values
    return sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values)) / tokens


def test_the_embedded_model() -> None:
    """Gemma 3 270M: 18 layers, one head of keys and values, 256 wide though the stream of 640 has four heads."""
    shape = {"num_hidden_layers": 18, "hidden_size": 640, "num_attention_heads": 4, "num_key_value_heads": 1}
    assert kv_bytes_per_token(Gemma3TextConfig(**shape, head_dim=256), torch.bfloat16.itemsize) == 18_432


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_tiny_models(family: str, dtype: torch.dtype) -> None:
    model = tiny.load(family).to(dtype)
    assert kv_bytes_per_token(model.config, dtype.itemsize) == cached_bytes(model)
    shared = SweepModel(model)
    assert shared.bytes_per_token(0) == cached_bytes(model)
    assert shared.bytes_per_token(3) == cached_bytes(model) + 3 * tiny.HIDDEN * dtype.itemsize
    assert RowCost.from_memory(model).past == 2 * cached_bytes(model)


def test_a_multimodal_model_s_text() -> None:
    model = tiny.multimodal()
    assert kv_bytes_per_token(model.config, 4) == cached_bytes(model)


OTHERS: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 24, "num_key_value_heads": 2},
    "mpt": {"d_model": 32, "n_layers": 4, "n_heads": 4},
    "gemma4_text": {
        "head_dim": 8,
        "global_head_dim": 16,
        "num_key_value_heads": 2,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"],
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 64,
    },
}


@pytest.mark.parametrize("model_type", OTHERS)
def test_other_architectures(model_type: str) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    try:
        config = AutoConfig.for_model(model_type, **shape, vocab_size=64, pad_token_id=0, **OTHERS[model_type])
    except ValueError:
        pytest.skip(f"this release of transformers has no {model_type}")
    model = AutoModelForCausalLM.from_config(config).eval()
    assert kv_bytes_per_token(config, 4) == cached_bytes(model.float())


def test_a_config_with_a_list_for_its_layers() -> None:
    heads = {"num_attention_heads": 4, "num_key_value_heads": [1, 2, 4, 4], "head_dim": [8, 8, 16, 4]}
    config = SimpleNamespace(num_hidden_layers=4, hidden_size=32, **heads)
    assert kv_bytes_per_token(config, 2) == 2 * 2 * (8 + 16 + 64 + 16)


def test_a_config_without_attention() -> None:
    assert kv_bytes_per_token(SimpleNamespace(num_hidden_layers=4, hidden_size=32), 2) == 0  # Mamba, xLSTM


# Position state between calls -----------------------------------------------------------------------------------------


def multimodal(kind: str) -> Any:
    """A tiny model that keeps an offset of positions from one generation (`rope_deltas`)."""
    text = tiny.config("qwen2").to_dict()
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    vision = {"depth": 1, "hidden_size": 32, "embed_dim": 32, "num_heads": 2, "out_hidden_size": 32}
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(kind, text_config=text, vision_config=vision)
    ).eval()


def test_scores_after_a_generation_of_a_multimodal_model() -> None:
    inner = multimodal("qwen2_5_vl")
    model = SteeredHFLM(inner, tokenizer=tiny.load_tokenizer("qwen2"), batch_size=3)
    before = ask(model, FEW_SHOT)
    assert_same(before, ask(HFLM(inner, tokenizer=tiny.load_tokenizer("qwen2"), batch_size=1), FEW_SHOT))
    prompts = [(text, {"until": [], "max_gen_toks": 2}) for text in ("Which bird", "Which bird is it")]
    model.generate_until(tiny.requests("generate_until", prompts))
    assert inner.model.rope_deltas is not None
    assert_same(ask(model, FEW_SHOT), before)
    inner.model.rope_deltas = torch.tensor([[-5]])  # as after an image
    assert_same(ask(model, FEW_SHOT), before)
