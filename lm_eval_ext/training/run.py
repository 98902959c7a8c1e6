"""A training run from its configuration to its adapter: data, model, steps, checkpoints, card."""

from __future__ import annotations

import json
import math
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate import PartialState
from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import logging

from lm_eval_ext.console import Progress
from lm_eval_ext.errors import TrainingError
from lm_eval_ext.models import embedded
from lm_eval_ext.models.loading import load_config, load_model
from lm_eval_ext.steering.decoder import text_config
from lm_eval_ext.training import adapter, card, checkpoints
from lm_eval_ext.training.batches import to_batch
from lm_eval_ext.training.encoding import Encoder
from lm_eval_ext.training.methods import METHODS
from lm_eval_ext.training.trainer import AlignmentTrainer, NotFiniteError, sft_config

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedModel

    from lm_eval_ext.training.config import TrainingConfig
    from lm_eval_ext.training.methods.base import Method
    from lm_eval_ext.training.schedule import BatchItem


def train(config: TrainingConfig) -> None:
    """Train what a configuration asks for; what is already done in its folder is kept.

    Raises:
        UserError: data, model, layer or folder that does not fit; a loss that is not finite; a disk that is full.
            Checkpoints written before stay.
    """
    # TRL's own use of what transformers will rename: nothing that a user could act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    state = PartialState(cpu=_on_cpu(config))
    if checkpoints.claim(config.output_dir, config, resume=config.resume):
        _say(state, f"{config.output_dir}: finished already")
        return
    ready = set_up(config, state)
    _run(ready.trainer, config, state)
    _finish(ready, config)
    _say(state, f"{config.output_dir}: {config.method}, {ready.record['steps']} steps; see its README.md")
    state.wait_for_everyone()


class Ready(NamedTuple):
    """A run that can begin: its trainer, and what its record says so far."""

    trainer: AlignmentTrainer
    tokenizer: Any
    record: dict[str, Any]


def set_up(config: TrainingConfig, state: PartialState) -> Ready:
    """Load and check all that a run needs, and write down what it was asked to do.

    Raises:
        UserError: data, model or layer that does not fit.
    """
    name = config.model_name_or_path or str(embedded.path())
    model_config = load_config(name, revision=config.model_revision, trust_remote_code=config.trust_remote_code)
    method = METHODS[config.method](config, model_config, state.num_processes)
    model, tokenizer = load_model(
        name,
        dtype="float32" if config.full else config.dtype,
        device=str(state.device),
        revision=config.model_revision,
        trust_remote_code=config.trust_remote_code,
    )
    context = getattr(text_config(model_config), "max_position_embeddings", config.max_length)
    encoder = Encoder(tokenizer, config.template)
    data = method.load(encoder, tokenizer, min(config.max_length, context))
    _say(state, data.report)
    base = {"name": config.model_name_or_path or embedded.NAME, "weights": adapter.weights_id(model)}
    items = method.batch_items()
    steps = len(items) // method.items_per_step
    record = {"settings": config.identity(), "base": base, "template": encoder.template, "steps": steps}
    record |= {**method.details, **data.record}
    parts = None if config.full else adapter.adapted_parts(model, mlp=method.adapts_mlp)
    if parts is not None:
        record |= {"adapter": parts.record()}
        _say(state, card.adapted(parts.record()))
    trainer = _trainer(method, model, tokenizer, items, steps, parts)
    if config.packing:
        _check_packing(trainer)
    method.begin(trainer)
    if state.is_main_process:
        checkpoints.write(config.output_dir / checkpoints.BEGUN, record)
    return Ready(trainer, tokenizer, record)


def _on_cpu(config: TrainingConfig) -> bool:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("--device cuda: torch finds no GPU here; leave the option out")
    return config.device == "cpu" or not torch.cuda.is_available()


def _say(state: PartialState, text: str) -> None:
    if state.is_main_process:
        print(text, flush=True)


def _trainer(
    method: Method,
    model: PreTrainedModel,
    tokenizer: Any,
    items: Sequence[BatchItem],
    steps: int,
    parts: adapter.Parts | None,
) -> AlignmentTrainer:
    config = method.config
    _check_reports(config.report_to)
    dtype = str(model.config.dtype) if config.dtype == "auto" else config.dtype
    warmup = config.warmup_steps
    arguments = sft_config(
        config,
        output_dir=str(config.output_dir / checkpoints.FOLDER),
        warmup_steps=math.ceil(warmup * steps) if warmup < 1 else int(warmup),
        bf16=dtype.endswith("bfloat16"),
        use_cpu=_on_cpu(config),
        dataloader_pin_memory=not _on_cpu(config),
    )
    lora = None
    if parts is not None:
        lora = adapter.lora_config(model, config.lora_r, config.alpha, parts)
    logging.get_logger("transformers.trainer").setLevel(logging.ERROR)
    trainer = AlignmentTrainer(model, arguments, tokenizer, method, items, peft_config=lora)
    trainer.add_callback(_Watch(trainer))
    return trainer


def _check_reports(name: str) -> None:
    try:
        for callback in get_reporting_integration_callbacks([] if name == "none" else [name]):
            callback()
    except (ValueError, ImportError, RuntimeError) as error:
        raise TrainingError(f"--report-to {name}: {str(error).partition(chr(10))[0]}") from None


def _check_packing(trainer: AlignmentTrainer) -> None:
    """Make sure that packed rows do not see each other: not every architecture keeps them apart.

    Raises:
        TrainingError: they do.
    """
    rows: list[Any] = [one for row in trainer.method.data.examples[:2] for one in getattr(row, "all", (row,))]
    trainer.model.eval()
    with torch.no_grad():
        log_probs = []
        for packing in (False, True):
            batch = {key: value.to(trainer.args.device) for key, value in to_batch(rows, packing=packing).items()}
            log_probs.append(trainer.log_probs(trainer.model, batch).float())
    difference = float((log_probs[0] - log_probs[1]).abs().mean())
    if difference > (0.05 if trainer.args.bf16 else 1e-3):
        raise TrainingError(
            f"--packing: this architecture lets packed rows see each other (log-probabilities differ by {difference:.2g} "
            "on average): leave --packing out"
        )


def _run(trainer: AlignmentTrainer, config: TrainingConfig, state: PartialState) -> None:
    checkpoint = checkpoints.newest(config.output_dir) if config.resume else None
    if config.resume:
        _say(state, f"going on from {checkpoint}" if checkpoint else "no checkpoint yet: starting at the beginning")
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except NotFiniteError as error:
        step = trainer.state.global_step
        raise TrainingError(
            f"step {step + 1}: {error}, training stopped before it changed the weights. "
            f"{_rescue(trainer, config.output_dir)}\n"
            "Lower --learning-rate, raise --warmup, or use --dtype float32; then give another folder"
        ) from None
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of memory: {str(error).partition('. ')[0]}. Checkpoints are kept. Use --gradient-checkpointing, or lower "
            "--batch-size and raise --accumulation"
        ) from error
    finally:
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)


def _rescue(trainer: AlignmentTrainer, out: Path) -> str:
    """Keep the weights as they were before a step that failed, if they are finite."""
    if all(bool(p.isfinite().all()) for p in trainer.model.parameters() if p.requires_grad):
        if trainer.state.global_step:
            trainer._save_checkpoint(trainer.model, None)
        return f"Kept: the weights of step {trainer.state.global_step}"
    newest = checkpoints.newest(out)
    return f"Kept: {newest.name if newest else 'no checkpoint yet'}"


def _finish(ready: Ready, config: TrainingConfig) -> None:
    """Write the adapter (or model) and its card; `training.json`, which says that all is there, comes last."""
    trainer, record, out = ready.trainer, ready.record, config.output_dir
    unfinished = out / ".unfinished"
    try:
        trainer.save_model(str(unfinished))  # in every process: a model that is spread over them is gathered
        if not trainer.is_world_process_zero():
            return
        (unfinished / "training_args.bin").unlink(missing_ok=True)
        if trainer.has_adapter:
            lora = json.loads((unfinished / "adapter_config.json").read_text(encoding="utf-8"))
            lora |= {"base_model_name_or_path": record["base"]["name"]}  # not its folder on this machine
            (unfinished / "adapter_config.json").write_text(json.dumps(lora, indent=2) + "\n", encoding="utf-8")
        else:
            ready.tokenizer.save_pretrained(unfinished)
        for file in unfinished.iterdir():
            file.chmod(0o644)  # safetensors lets nobody else read
            file.replace(out / file.name)
        unfinished.rmdir()
        record |= {"log": trainer.state.log_history, "versions": card.versions(), "command": card.command(config)}
        record |= {"processes": trainer.accelerator.num_processes}
        (out / checkpoints.TRAINED_ON).write_text(
            "\n".join(sorted(trainer.method.data.digests)) + "\n", encoding="utf-8"
        )
        (out / "README.md").write_text(card.text(record, trainer.method), encoding="utf-8")
        checkpoints.write(out / checkpoints.FINISHED, record)
    except Exception as error:  # OSError, SafetensorError, torch's RuntimeError
        raise TrainingError(
            f"trained, but the result cannot be written to {out}\n  because: {type(error).__name__}: {error}\n"
            "Its last checkpoint is kept. Make room (is the disk full?), then add --resume"
        ) from error


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Shows the progress bar with the losses, and checks the gradients before they are used."""

    def __init__(self, trainer: AlignmentTrainer) -> None:
        self._trainer = trainer
        self._bar: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._bar = Progress(state.max_steps, "Training", "step", initial=state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for parameter in self._trainer.model.parameters():
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                raise NotFiniteError("a gradient is not a finite number")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            latest = self._trainer.latest.items()
            self._bar.note(", ".join(f"{name.removesuffix('_loss')}={value:.3f}" for name, value in latest))
            self._bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
