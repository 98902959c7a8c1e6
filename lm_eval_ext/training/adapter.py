"""Which modules a LoRA adapter changes, and which base it was trained on."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch

from lm_eval_ext.steering.decoder import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def lora_config(model: PreTrainedModel, rank: int, *, mlp: bool) -> Any:
    """A LoRA adapter on the linear layers of the decoder: of attention, and of the MLP where `mlp`.

    No dropout, so that a run depends on its seed only through the adapter's start and the order of rows; scale
    alpha / rank = 2. Both are our defaults, and so is the choice of modules of MIST and MIDALIGN; CLO's attention
    projections are the ancestor's (Lee 2025).
    """
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    of = {module: name for name, module in model.named_modules()}
    found: dict[str, torch.nn.Module] = {}
    for layer in decoder_layers(model):
        for name, module in layer.named_modules():
            attention = "att" in name.rpartition(".")[0]
            if isinstance(module, (torch.nn.Linear, Conv1D)) and (mlp or attention):
                found[of[module]] = module
    # Short names where they mean nothing else in the model, such as a vision tower's.
    short = {name.rpartition(".")[2] for name in found}
    meant = {name for name in of.values() if name.rpartition(".")[2] in short}
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=2 * rank,
        target_modules=sorted(short if meant == set(found) else found),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in found.values()),
    )


def weights_id(model: PreTrainedModel) -> str:
    """A short hash that tells models of one architecture apart: of the first values of each tensor, as bfloat16."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_floating_point():
            digest.update(name.encode())
            digest.update(tensor.flatten()[:16].to("cpu", torch.bfloat16).float().numpy().tobytes())
    return digest.hexdigest()[:16]
