"""PEFT adapters on vocabularies that are not as long as the tokenizer."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support import tiny
from support.scores import PAIRS, ask, assert_same
from transformers import AutoModelForCausalLM

from lm_eval_ext.models.loading import load_model

if TYPE_CHECKING:
    from pathlib import Path

#: Rows of the embeddings, and tokens of the tokenizer: padded, as in Qwen, or without a row for a token, as in Gemma 3 1B,
#: whose last one is of images.
SIZES = {"padded": (400, 384), "short": (384, 385)}


@cache
def base(rows: int, tokens: int = 384) -> Path:
    path = tiny._root / f"llama-{rows}-{tokens}"
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(tiny.config("llama", vocab_size=rows)).save_pretrained(path)
    tokenizer = tiny.load_tokenizer("llama")
    tokenizer.add_tokens([f"<image{number}>" for number in range(tokens - 384)])
    assert len(tokenizer) == tokens
    tokenizer.save_pretrained(path)
    return path


def adapter(path: Path, model: Any, *, scale: float = 0.0, **settings: Any) -> Any:
    """Saves an adapter whose second matrices are random; returns model and adapter."""
    adapted = get_peft_model(model, LoraConfig(r=2, **{"target_modules": ["q_proj", "v_proj"], **settings}))
    torch.manual_seed(11)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name or "trainable_tokens_delta" in name:
                parameter.copy_(torch.randn_like(parameter) * scale)
    adapted.save_pretrained(path)
    return adapted.eval()


@pytest.mark.parametrize("kind", SIZES)
def test_an_adapter_of_zeros_changes_nothing_and_merging_neither(kind: str, tmp_path: Path) -> None:
    folder, pairs = base(*SIZES[kind]), PAIRS["options"]
    plain = ask(tiny.steered("llama", pretrained=str(folder)), pairs)
    adapter(tmp_path / "zeros", AutoModelForCausalLM.from_pretrained(folder))
    assert_same(ask(tiny.steered("llama", pretrained=str(folder), peft=str(tmp_path / "zeros")), pairs), plain)
    adapted = adapter(tmp_path / "some", AutoModelForCausalLM.from_pretrained(folder), scale=0.3)
    unmerged = ask(tiny.steered("llama", pretrained=str(folder), peft=str(tmp_path / "some")), pairs)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    tiny.tokenizer("llama").save_pretrained(tmp_path / "merged")
    assert_same(ask(tiny.steered("llama", pretrained=str(tmp_path / "merged")), pairs), unmerged, 1e-4)
    with pytest.raises(AssertionError):
        assert_same(unmerged, plain, 1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
        {"trainable_token_indices": [388, 389]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_an_adapter_with_tokens_of_its_own(settings: dict[str, Any], tmp_path: Path) -> None:
    """Embeddings get the rows that it was trained with, which are those of neither model nor tokenizer."""
    folder = base(384)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(390, mean_resizing=False)
    adapted = adapter(tmp_path, model, scale=0.3, **settings)
    loaded, _ = load_model(str(folder), dtype="float32", device="cpu", peft=str(tmp_path))
    ids = torch.tensor([[1, 5, 9, 300]] if "trainable_token_indices" in settings else [[1, 5, 388, 389]])
    assert loaded.get_input_embeddings().weight.shape[0] == 390
    for found in (loaded, tiny.steered("llama", pretrained=str(folder), peft=str(tmp_path)).model):
        with torch.inference_mode():
            difference = found(ids).logits[..., :384] - adapted(ids).logits[..., :384]
        assert float(difference.abs().max()) < 1e-4


@pytest.mark.parametrize("settings", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_an_adapter_on_a_tied_head(settings: dict[str, Any], tmp_path: Path) -> None:
    """huggingface/peft#2018: only the head is adapted, though it shares its weights with the embeddings."""
    folder = tmp_path / "tied"
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(tiny.config("llama", tie_word_embeddings=True)).save_pretrained(folder)
    tiny.tokenizer("llama").save_pretrained(folder)
    adapted = adapter(tmp_path / "lora", AutoModelForCausalLM.from_pretrained(folder), scale=0.3, **settings)
    model = tiny.steered("llama", pretrained=str(folder), peft=str(tmp_path / "lora"))
    for context, option in PAIRS["options"][:5]:
        (request,) = model.encode(tiny.requests("loglikelihood", [(context, option)]))
        ids = torch.tensor([[*request.prompt, *request.continuation]])
        with torch.inference_mode():
            logits = adapted(ids).logits[0, len(request.prompt) - 1 : -1].log_softmax(-1)
        expected = float(logits.gather(1, torch.tensor(request.continuation)[:, None]).sum())
        assert ask(model, [(context, option)])[0][0] == pytest.approx(expected, abs=1e-4)
