"""LoRA adapters: which modules one changes, which base it was trained on, and merging the two."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lm_eval_ext.errors import TrainingError, UserError
from lm_eval_ext.io import write_folder
from lm_eval_ext.models import embedded
from lm_eval_ext.models.loading import load_config, load_model, loading, with_adapter
from lm_eval_ext.steering.decoder import decoder_layers
from lm_eval_ext.training import checkpoints

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def lora_config(model: PreTrainedModel, rank: int, alpha: int, *, mlp: bool) -> Any:
    """A LoRA adapter on the linear layers of the decoder: of attention, and of the MLP where `mlp`.

    No dropout (our default), so that a run depends on its seed only through the adapter's start and the order of rows. The
    choice of modules of MIST and MIDALIGN is ours; CLO's attention projections are the ancestor's (Lee 2025).
    """
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    full_names = {module: name for name, module in model.named_modules()}
    targets: dict[str, torch.nn.Module] = {}
    for layer in decoder_layers(model):
        for name, module in layer.named_modules():
            attention = "att" in name.rpartition(".")[0]
            if isinstance(module, (torch.nn.Linear, Conv1D)) and (mlp or attention):
                targets[full_names[module]] = module
    # Short names where they mean nothing else in the model, such as a vision tower's.
    short = {name.rpartition(".")[2] for name in targets}
    matched = {name for name in full_names.values() if name.rpartition(".")[2] in short}
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        target_modules=sorted(short if matched == set(targets) else targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in targets.values()),
    )


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
