"""LoRA adapters: which modules one changes, which base it was trained on, and merging the two."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lm_eval_ext.errors import TrainingError, UserError
from lm_eval_ext.io import write_folder
from lm_eval_ext.models import embedded
from lm_eval_ext.models.loading import load_config, load_model, loading, with_adapter
from lm_eval_ext.steering.decoder import decoder_layers
from lm_eval_ext.training import checkpoints

if TYPE_CHECKING:
    from transformers import PreTrainedModel


#: Of a state-space mixer (Mamba and its kin), the one projection that is called as a module: the kernels read the weights of
#: the others themselves, so that an adapter on them would be trained in one place and ignored in another. PEFT refuses some.
_OF_STATE_SPACE = ("in_proj",)


class Parts(NamedTuple):
    """What an adapter changes in the decoder layers, by name within the model.

    Attributes:
        modules: linear layers.
        parameters: weights of fused experts, [experts, ..., ...], which are no modules of their own.
        left: other weights of two or more dimensions.
    """

    modules: dict[str, torch.nn.Module]
    parameters: list[str]
    left: list[str]

    def record(self) -> dict[str, list[str]]:
        """Names within a decoder layer: what is adapted, and what is left as it is."""
        return {
            "adapted": list(dict.fromkeys(map(_within_layer, (*self.modules, *self.parameters)))),
            "not_adapted": list(dict.fromkeys(map(_within_layer, self.left))),
        }


def adapted_parts(model: PreTrainedModel, *, mlp: bool) -> Parts:
    """The parts of the decoder that an adapter changes: of attention, and of the MLP or its experts where `mlp`.

    Raises:
        TrainingError: there are none.
    """
    from transformers.pytorch_utils import Conv1D

    full_names = {module: name for name, module in model.named_modules()}
    parts = Parts({}, [], [])
    for layer in decoder_layers(model):
        for name, module in layer.named_modules():
            attention = "att" in name.rpartition(".")[0]
            parent = layer.get_submodule(name.rpartition(".")[0])
            fused = not hasattr(parent, "A_log") or name.rpartition(".")[2] in _OF_STATE_SPACE
            if isinstance(module, (torch.nn.Linear, Conv1D)) and (mlp or attention) and fused:
                parts.modules[full_names[module]] = module
                continue
            built_in = type(module).__module__.startswith("torch.")
            for parameter, weight in module.named_parameters(recurse=False):
                if weight.dim() == 3 and mlp and not built_in and "bias" not in parameter:
                    parts.parameters.append(f"{full_names[module]}.{parameter}")
                elif weight.dim() > 1:
                    parts.left.append(f"{full_names[module]}.{parameter}")
    if not (parts.modules or parts.parameters):
        what = "attention, MLP or experts" if mlp else "attention"
        raise TrainingError(
            f"the decoder layers of {model.config.model_type} have no {what} that an adapter could change: train the whole "
            f"model with --full{'' if mlp else ', or use another method (mist, midalign)'}"
        )
    return parts


def lora_config(model: PreTrainedModel, rank: int, alpha: int, parts: Parts) -> Any:
    """A LoRA adapter on some parts of the decoder.

    No dropout (our default), so that a run depends on its seed only through the adapter's start and the order of rows. The
    choice of modules of MIST and MIDALIGN is ours; CLO's attention projections are the ancestor's (Lee 2025).
    """
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    # Short names where they mean nothing else in the model, such as a vision tower's.
    short = {name.rpartition(".")[2] for name in parts.modules}
    matched = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in short}
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        target_modules=sorted(short if matched == set(parts.modules) else parts.modules),
        target_parameters=parts.parameters or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in parts.modules.values()),
    )


def _within_layer(name: str) -> str:
    """`self_attn.q_proj` of `model.layers.3.self_attn.q_proj`."""
    return re.split(r"\.\d+\.", name, maxsplit=1)[-1].removesuffix(".weight")


def weights_id(model: PreTrainedModel) -> str:
    """A short hash that tells models of one architecture apart: of the first values of each tensor, as bfloat16."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_floating_point():
            digest.update(name.encode())
            digest.update(tensor.flatten()[:16].to("cpu", torch.bfloat16).float().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_base(model: PreTrainedModel, base: dict[str, str], name: str) -> None:
    """Make sure that a model is the one that an adapter was trained on.

    Args:
        model: the model, without any adapter.
        base: `name` and `weights` of the one it was trained on.
        name: what the user called the model.

    Raises:
        TrainingError: it is another one.
    """
    if (weights := weights_id(model)) != base["weights"]:
        raise TrainingError(
            f"the adapter was trained on {base['name']!r} (weights {base['weights']}), {name!r} is another model (weights "
            f"{weights}): give the folder or name of its own base with --model"
        )


def put_on(model: PreTrainedModel, folder: Path) -> Any:
    """The model with an adapter on it.

    Raises:
        ModelError: the adapter cannot be read, or fits another architecture.
    """
    with loading(str(folder), "Give the folder of a finished run, with adapter_config.json and its weights"):
        return with_adapter(model, str(folder)).eval()


def merge(folder: Path, out: Path, base: str = "", dtype: str = "auto") -> None:
    """Merge the adapter of a run into its base and write the model; weights are added in float32.

    Args:
        folder: of a finished run.
        out: folder to write, whole or not at all.
        base: name or folder of the base; the one that the run names where empty.
        dtype: of the merged weights; that of the base where `auto`.

    Raises:
        TrainingError: no finished run of an adapter, another base, or `out` exists.
        OutputError: the folder cannot be written.
    """
    record = checkpoints.read(folder / checkpoints.FINISHED)
    if record["settings"]["full"]:
        raise TrainingError(f"{folder} holds a whole model, not an adapter: use it as it is")
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise TrainingError(f"--out {out} exists: give another folder")
    name = base or record["settings"]["model_name_or_path"] or str(embedded.path())
    options = checkpoints.loading_options(record)
    merged_dtype = load_config(name, **options).dtype if dtype == "auto" else getattr(torch, dtype)
    model, tokenizer = load_model(name, dtype="float32", device="cpu", **options)
    check_base(model, record["base"], name)
    merged = put_on(model, folder).merge_and_unload().to(merged_dtype)
    try:
        with write_folder(out) as unfinished:
            merged.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
    except UserError:
        raise
    except Exception as error:  # SafetensorError, where the disk is full
        raise TrainingError(f"cannot write {out}: {type(error).__name__}: {error}") from error
