"""A training run from its settings to its adapter: data, model, steps, checkpoints, card."""

from __future__ import annotations

import json
import math
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate import PartialState
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import logging
from trl import SFTConfig

from lm_eval_ext.errors import TrainingError
from lm_eval_ext.models import embedded
from lm_eval_ext.models.loading import load_config, load_model
from lm_eval_ext.steering.decoder import layer_count, text_config
from lm_eval_ext.steering.extraction import parse_layers
from lm_eval_ext.training import adapter, card, checkpoints
from lm_eval_ext.training.batches import packed, padded
from lm_eval_ext.training.encoding import Encoder
from lm_eval_ext.training.losses import DIRECTIONS
from lm_eval_ext.training.methods.clo import CloTrainer
from lm_eval_ext.training.methods.midalign import MidalignTrainer
from lm_eval_ext.training.methods.mist import MistTrainer, NotFiniteError
from lm_eval_ext.training.rows import prepare
from lm_eval_ext.training.schedule import order
from lm_eval_ext.training.settings import Clo, Midalign

if TYPE_CHECKING:
    from pathlib import Path

    from lm_eval_ext.training.rows import Trained
    from lm_eval_ext.training.schedule import Place
    from lm_eval_ext.training.settings import Settings


def train(settings: Settings) -> None:
    """Train what the settings ask for; what is already done in their folder is kept.

    Raises:
        UserError: data, model, layer or folder that does not fit; a loss that is not finite; a disk that is full.
            Checkpoints written before stay.
    """
    # TRL's own use of what transformers will rename: nothing that a user could act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    state = PartialState(cpu=_on_cpu(settings))
    if checkpoints.claim(settings.out, settings.identity(), resume=settings.resume):
        _say(state, f"{settings.out}: finished already")
        return
    ready = set_up(settings, state)
    _run(ready.trainer, settings, state)
    _finish(ready, settings)
    _say(state, f"{settings.out}: {settings.method}, {ready.record['steps']} steps; see its README.md")
    state.wait_for_everyone()


class Ready(NamedTuple):
    """A run that can begin: its trainer, what it is trained on, and what its card will say."""

    trainer: MistTrainer
    tokenizer: Any
    data: Trained
    record: dict[str, Any]


def set_up(settings: Settings, state: PartialState) -> Ready:
    """Load and check all that a run needs, and write down what it was asked to do.

    Raises:
        UserError: data, model or layer that does not fit.
    """
    name = settings.model or str(embedded.path())
    config = load_config(name, revision=settings.revision, trust_remote_code=settings.trust_remote_code)
    layer = _layer(settings, config)
    _check_negatives(settings, state.num_processes)
    model, tokenizer = load_model(
        name,
        dtype="float32" if settings.full else settings.dtype,
        device=str(state.device),
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
    )
    context = getattr(text_config(config), "max_position_embeddings", settings.max_length)
    encoder = Encoder(tokenizer, settings.template)
    data = prepare(settings, encoder, tokenizer, min(settings.max_length, context))
    _say(state, data.report)
    base = {"name": settings.model or embedded.NAME, "weights": adapter.weights_id(model)}
    steps, contrastive = _steps(settings, len(data.examples), state.num_processes)
    record = {"settings": settings.identity(), "base": base, "template": encoder.template, "steps": steps}
    record |= {"layer": layer, "contrastive_steps": contrastive, **data.record} if layer is not None else data.record
    places = _places(settings, data, steps, contrastive, state.num_processes)
    trainer = _trainer(settings, model, tokenizer, data, places, steps, layer)
    if settings.packing:
        _check_packing(trainer, data)
    if isinstance(trainer, CloTrainer) and settings.full:
        trainer.refer(settings.batch_size)
    if state.is_main_process:
        checkpoints.write(settings.out / checkpoints.BEGUN, record)
    return Ready(trainer, tokenizer, data, record)


def _on_cpu(settings: Settings) -> bool:
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("--device cuda: torch finds no GPU here; leave the option out")
    return settings.device == "cpu" or not torch.cuda.is_available()


def _say(state: PartialState, text: str) -> None:
    if state.is_main_process:
        print(text, flush=True)


def _layer(settings: Settings, config: Any) -> int | None:
    if not isinstance(settings, Midalign):
        return None
    layers = parse_layers(settings.layer, layer_count(config))
    if len(layers) != 1:
        raise TrainingError(
            f"--layer {settings.layer!r}: the contrastive loss works at one layer, this names {len(layers)}"
        )
    return layers[0]


def _check_negatives(settings: Settings, processes: int) -> None:
    if isinstance(settings, Midalign) and settings.batch_size * settings.group * processes < 2:
        if settings.contrastive_steps == 0:
            return
        raise TrainingError(
            f"--batch-size {settings.batch_size}: the contrastive loss needs at least two pairs in a batch, or there is "
            "nothing to tell a translation from. Give --batch-size 2 or more, or --contrastive-batch-size"
        )


def _steps(settings: Settings, n_rows: int, processes: int) -> tuple[int, int]:
    """Optimiser steps, and how many of them are contrastive only."""
    alternate = isinstance(settings, Midalign) and settings.mode == "alternate"
    asked = settings.contrastive_steps if isinstance(settings, Midalign) and alternate else 0
    if settings.steps:
        return settings.steps, settings.steps // 2 if asked == -1 else asked
    own = math.ceil(settings.epochs * n_rows / (settings.batch_size * settings.accumulation * processes))
    contrastive = own if asked == -1 else asked
    return own + contrastive, contrastive


def _places(settings: Settings, data: Trained, steps: int, contrastive: int, processes: int) -> list[Place]:
    batch = settings.batch_size * settings.accumulation * processes
    summed = isinstance(settings, Midalign) and settings.mode == "sum"
    groups = data.pairs.n_groups if data.pairs else 0
    if (summed or contrastive) and groups < batch:
        assert isinstance(settings, Midalign)
        raise TrainingError(
            f"--pairs {settings.pairs}: a step takes {batch * settings.group} different pairs, there are fewer: give more "
            "parallel sentences, or lower --batch-size or --contrastive-batch-size"
        )
    return order(
        steps, batch, len(data.examples), groups, contrastive_steps=contrastive, summed=summed, seed=settings.seed
    )


def _trainer(
    settings: Settings,
    model: Any,
    tokenizer: Any,
    data: Trained,
    places: list[Place],
    steps: int,
    layer: int | None,
) -> MistTrainer:
    lora = None if settings.full else adapter.lora_config(model, settings.rank, mlp=settings.mlp)
    arguments = _arguments(settings, model, steps)
    common: dict[str, Any] = {"packed": settings.packing, "peft_config": lora}
    logging.get_logger("transformers.trainer").setLevel(logging.ERROR)
    if isinstance(settings, Midalign):
        assert data.pairs is not None
        assert layer is not None
        trainer: MistTrainer = MidalignTrainer(
            model,
            arguments,
            tokenizer,
            data.examples,
            places,
            pairs=data.pairs,
            layer=layer,
            temperature=settings.temperature,
            direction=DIRECTIONS[DIRECTIONS.index(settings.direction)],
            weight=settings.contrastive_weight,
            **common,
        )
    elif isinstance(settings, Clo):
        objective = {"beta": settings.beta, "response_weight": settings.response_weight}
        trainer = CloTrainer(model, arguments, tokenizer, data.examples, places, **objective, **common)
    else:
        trainer = MistTrainer(model, arguments, tokenizer, data.examples, places, **common)
    trainer.add_callback(_Watch(trainer))
    return trainer


def _arguments(settings: Settings, model: Any, steps: int) -> SFTConfig:
    _check_reports(settings.report_to)
    wanted = str(model.config.dtype) if settings.dtype == "auto" else settings.dtype
    try:
        return SFTConfig(
            output_dir=str(settings.out / checkpoints.FOLDER),
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.accumulation,
            learning_rate=settings.rate,
            lr_scheduler_type="linear",
            warmup_steps=math.ceil(settings.warmup * steps),
            num_train_epochs=1,
            logging_steps=settings.log_every,
            logging_nan_inf_filter=False,
            save_steps=settings.save_every,
            save_total_limit=settings.keep,
            seed=settings.seed,
            bf16=wanted.endswith("bfloat16"),
            use_cpu=_on_cpu(settings),
            dataloader_pin_memory=not _on_cpu(settings),
            gradient_checkpointing=settings.gradient_checkpointing,
            report_to=settings.report_to,
            remove_unused_columns=False,
            average_tokens_across_devices=True,
            ddp_find_unused_parameters=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
        )
    except (ValueError, ImportError, RuntimeError) as error:
        raise TrainingError(f"transformers refuses these settings: {str(error).partition(chr(10))[0]}") from error


def _check_reports(name: str) -> None:
    try:
        for callback in get_reporting_integration_callbacks([] if name == "none" else [name]):
            callback()
    except (ValueError, ImportError, RuntimeError) as error:
        raise TrainingError(f"--report-to {name}: {str(error).partition(chr(10))[0]}") from None


def _check_packing(trainer: MistTrainer, data: Trained) -> None:
    """Make sure that rows in one do not see each other: not every architecture keeps them apart.

    Raises:
        TrainingError: they do.
    """
    rows: list[Any] = [one for row in data.examples[:2] for one in getattr(row, "all", (row,))]
    trainer.model.eval()
    with torch.no_grad():
        found = []
        for make in (padded, packed):
            batch = {key: value.to(trainer.args.device) for key, value in make(rows).items()}
            found.append(trainer.log_probs(trainer.model, batch).float())
    difference = float((found[0] - found[1]).abs().mean())
    if difference > (0.05 if trainer.args.bf16 else 1e-3):
        raise TrainingError(
            f"--packing: this architecture lets packed rows see each other (log-probabilities differ by {difference:.2g} "
            "on average): leave --packing out"
        )


def _run(trainer: MistTrainer, settings: Settings, state: PartialState) -> None:
    found = checkpoints.newest(settings.out) if settings.resume else None
    if settings.resume:
        _say(state, f"going on from {found}" if found else "no checkpoint to go on from: starting at the beginning")
    try:
        trainer.train(resume_from_checkpoint=str(found) if found else None)
    except NotFiniteError as error:
        step = trainer.state.global_step
        raise TrainingError(
            f"step {step + 1}: {error}, training stopped before it changed the weights. {_rescue(trainer, settings.out)}\n"
            "Lower --learning-rate, raise --warmup, or use --dtype float32; then give another folder"
        ) from None
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of memory: {str(error).partition('. ')[0]}. Checkpoints are kept. Use --gradient-checkpointing, or lower "
            "--batch-size and raise --accumulation"
        ) from error
    finally:
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)


def _rescue(trainer: MistTrainer, out: Path) -> str:
    """Keep the weights as they were before a step that failed, if they are sound."""
    if all(bool(p.isfinite().all()) for p in trainer.model.parameters() if p.requires_grad):
        if trainer.state.global_step:
            trainer._save_checkpoint(trainer.model, None)
        return f"Kept: the weights of step {trainer.state.global_step}"
    found = checkpoints.newest(out)
    return f"Kept: {found.name if found else 'no checkpoint yet'}"


def _finish(ready: Ready, settings: Settings) -> None:
    """Write the adapter (or model) and its card; `training.json`, which says that all is there, comes last."""
    trainer, record, out = ready.trainer, ready.record, settings.out
    unfinished = out / ".unfinished"
    try:
        trainer.save_model(str(unfinished))  # in every process: a model that is spread over them is gathered
        if not trainer.is_world_process_zero():
            return
        (unfinished / "training_args.bin").unlink(missing_ok=True)
        if trainer.has_adapter:
            config = json.loads((unfinished / "adapter_config.json").read_text(encoding="utf-8"))
            config |= {"base_model_name_or_path": record["base"]["name"]}  # not where it lies on this machine
            (unfinished / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        else:
            ready.tokenizer.save_pretrained(unfinished)
        for file in unfinished.iterdir():
            file.chmod(0o644)  # safetensors lets nobody else read
            file.replace(out / file.name)
        unfinished.rmdir()
        record |= {"log": trainer.state.log_history, "versions": card.versions(), "command": card.command(settings)}
        record |= {"processes": trainer.accelerator.num_processes}
        (out / checkpoints.TRAINED_ON).write_text("\n".join(sorted(ready.data.digests)) + "\n", encoding="utf-8")
        (out / "README.md").write_text(card.text(record), encoding="utf-8")
        checkpoints.write(out / checkpoints.FINISHED, record)
    except Exception as error:  # OSError, SafetensorError, torch's RuntimeError
        raise TrainingError(
            f"trained, but the result cannot be written to {out}\n  because: {type(error).__name__}: {error}\n"
            "Its last checkpoint is kept. Make room (is the disk full?), then add --resume"
        ) from error


class _Watch(TrainerCallback):  # type: ignore[misc]
    """The progress bar with the losses, and a look at the gradients before they are used."""

    def __init__(self, trainer: MistTrainer) -> None:
        self._trainer = trainer
        self._bar: tqdm[Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="Training", unit="step")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for parameter in self._trainer.model.parameters():
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                raise NotFiniteError("a gradient is not a finite number")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.3f}" for name, value in self._trainer.latest.items()})
            self._bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
