"""Tiny models that vLLM's CPU kernels take (heads of 32), their vectors, and `steered-vllm` beside `steered-hf` on them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lm_eval_ext import backends
from lm_eval_ext.steering.vectors import ModelIdentity, SteeringVectors, VectorInfo, VectorSet
from support import tiny

HIDDEN, CONTEXT = 128, 256


@cache
def folder(family: str) -> Path:
    """The folder of a saved model; made once."""
    path = tiny.folder(family).parent / f"{family}-vllm"
    changes: dict[str, Any] = {"hidden_size": HIDDEN, "initializer_range": 0.1, "max_position_embeddings": CONTEXT}
    changes |= {} if family == "qwen2" else {"head_dim": 32}
    changes |= {"query_pre_attn_scalar": 32} if family == "gemma3" else {}
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(tiny.config(family, **changes)).save_pretrained(path)
    tiny.tokenizer(family).save_pretrained(path)
    return path


@cache
def adapter(family: str) -> Path:
    """The folder of a LoRA adapter that changes what the model says."""
    from peft import LoraConfig, get_peft_model

    path = tiny.folder(family).parent / f"{family}-vllm-lora"
    torch.manual_seed(11)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder(family)), LoraConfig(r=8, target_modules=["q_proj", "v_proj"])
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(path)
    return path


def vectors(path: Path, scale: float = 0.3) -> VectorSet:
    """Random vectors of both kinds for a model, of each language and layer."""
    config = AutoConfig.from_pretrained(path)
    layers = tuple(range(config.num_hidden_layers))
    generator = torch.Generator().manual_seed(3)
    entries = {}
    for kind in ("en", "loc"):
        for language in tiny.LANGUAGES:
            if (kind, language) != ("en", "en"):
                info = VectorInfo(kind, language, layers, "last", 9, "test", "0" * 64, "float32", (4.0,) * len(layers))
                values = torch.randn(len(layers), config.hidden_size, generator=generator) * scale
                entries[kind, language] = SteeringVectors(info, {"vector": values})
    return VectorSet(ModelIdentity.of(path.name, config), entries)


def pair(path: Path, *, lora: Path | None = None, **engine: Any) -> tuple[Any, Any]:
    """The model as `steered-vllm` and as `steered-hf`, without a plan, in float32 and with equal contexts."""
    of_model = vectors(path)
    options: dict[str, Any] = {"max_num_seqs": 16, "max_model_len": CONTEXT, "enforce_eager": True} | engine
    if lora is not None:
        options |= {"lora_local_path": str(lora)}
    on_vllm = backends.load("steered-vllm", str(path), vectors=of_model, dtype="float32", **options)
    peft = {} if lora is None else {"peft": str(lora)}
    arguments = {"dtype": "float32", "device": "cpu", "batch_size": 8, "max_length": on_vllm.max_length, **peft}
    return on_vllm, backends.load("steered-hf", str(path), vectors=of_model, **arguments)
