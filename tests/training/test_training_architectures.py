"""Training other architectures: fused experts, state-space mixers, a multimodal wrapper."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support import tiny
from support.scores import PAIRS, ask, assert_same
from support.training_runs import trained
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.gemma3.modeling_gemma3 import Gemma3ForConditionalGeneration

from lm_eval_ext.errors import TrainingError
from lm_eval_ext.steering.decoder import decoder_layers
from lm_eval_ext.training import adapter

if TYPE_CHECKING:
    from pathlib import Path

ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]
MLP = [f"{{}}.{name}_proj" for name in ("gate", "up", "down")]

_SHAPE: dict[str, Any] = {"vocab_size": 384, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": None}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64}
_MAMBA = {f"mamba_{name}": value for name, value in {"d_ssm": 32, "n_heads": 4, "d_head": 8, "n_groups": 1}.items()}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {**_HEADS, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {**_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "falcon_h1": {**_HEADS, **_MAMBA, "mamba_d_state": 8, "mamba_expand": 1, "mamba_chunk_size": 16},
}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

#: What is adapted, and what is said to be left as it is.
PARTS = {
    "qwen3_moe": ([*ATTENTION, *EXPERTS], ["mlp.gate"]),
    "gpt_oss": ([*ATTENTION, *EXPERTS], ["mlp.router", *(f"{name}_bias" for name in EXPERTS)]),
    "mamba": (["mixer.in_proj"], [f"mixer.{name}" for name in ("A_log", "conv1d", "x_proj", "dt_proj", "out_proj")]),
    "falcon_h1": (
        [*(name.format("feed_forward") for name in MLP), "mamba.in_proj", *ATTENTION],
        ["mamba.conv1d", "mamba.out_proj"],
    ),
}


def saved(kind: str, folder: Path) -> Path:
    """A tiny model; `gemma3` is the multimodal wrapper."""
    torch.manual_seed(7)
    if kind == "gemma3":
        model: Any = tiny.multimodal()
    else:
        common = {"initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 0}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **_SHAPE, **common, **CONFIGS[kind]))
    model.save_pretrained(folder)
    tiny.tokenizer("gemma3").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", PARTS)
def test_all_that_an_adapter_can_change_is_trained_and_named(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = saved(kind, tmp_path / kind)
    weights = trained("mist", tmp_path, model_name_or_path=str(base), max_steps=3, learning_rate=0.05)
    out = tmp_path / "mist"
    record = json.loads((out / "training.json").read_text())["adapter"]
    adapted, left = PARTS[kind]
    assert (record["adapted"], record["not_adapted"]) == (adapted, left)
    line = f"LoRA on {', '.join(adapted)}"
    assert line in (out / "README.md").read_text()
    assert line in capsys.readouterr().out
    trained_tensors = [tensor for name, tensor in weights.items() if "lora_B" in name]
    n_layers = len(list(decoder_layers(AutoModelForCausalLM.from_pretrained(base))))
    assert len(trained_tensors) == len(adapted) * n_layers
    assert all(float(tensor.abs().max()) > 0 for tensor in trained_tensors)

    pairs = PAIRS["options"][:10]
    found = ask(tiny.steered("gemma3", pretrained=str(base), vectors=None, peft=str(out)), pairs)
    adapter.merge(out, tmp_path / "merged", str(base))
    assert_same(ask(tiny.steered("gemma3", pretrained=str(tmp_path / "merged"), vectors=None), pairs), found, 1e-4)
    with pytest.raises(AssertionError):
        assert_same(ask(tiny.steered("gemma3", pretrained=str(base), vectors=None), pairs), found, 1e-3)


def test_a_method_that_has_nothing_to_adapt(tmp_path: Path) -> None:
    """CLO adapts attention, which Mamba has none of."""
    base = saved("mamba", tmp_path / "mamba")
    with pytest.raises(
        TrainingError, match=r"mamba have no attention that an adapter could change: .*--full, or .*mist"
    ):
        trained("clo", tmp_path, model_name_or_path=str(base))


def test_a_model_that_asks_in_training_which_tokens_are_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Gemma 3 does in some releases of transformers, such as 5.5."""
    forward = Gemma3ForConditionalGeneration.forward

    @functools.wraps(forward)
    def asking(self: Any, *args: Any, token_type_ids: Any = None, **kwargs: Any) -> Any:
        if self.training and token_type_ids is None:
            raise ValueError("`token_type_ids` is required as a model input when training")
        return forward(self, *args, token_type_ids=token_type_ids, **kwargs)

    monkeypatch.setattr(Gemma3ForConditionalGeneration, "forward", asking)
    base = saved("gemma3", tmp_path / "gemma3")
    weights = trained("midalign", tmp_path, model_name_or_path=str(base), max_steps=2)
    record = json.loads((tmp_path / "midalign" / "training.json").read_text())["adapter"]
    assert record == {"adapted": [*ATTENTION, *(name.format("mlp") for name in MLP)], "not_adapted": []}
    assert not any("vision" in name for name in weights)
