"""The trainer of all methods: TRL's SFTTrainer with the batches and the loss of a `Method`.

The output head is computed at response positions only, by TRL's fused head, which never holds the logits of the whole
vocabulary. Batches are padded on the right, which needs no attention mask in a causal model.
"""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import SFTConfig, SFTTrainer

from lm_eval_ext.errors import TrainingError
from lm_eval_ext.steering.decoder import text_only
from lm_eval_ext.training.losses import response_loss

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from peft import PeftConfig
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lm_eval_ext.training.config import TrainingConfig
    from lm_eval_ext.training.methods.base import Method
    from lm_eval_ext.training.schedule import BatchItem

#: Kinds of runs in several processes.
_DISTRIBUTED = (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class NotFiniteError(ArithmeticError):
    """A loss or gradient that is not a finite number, found before the weights were changed by it."""


def sft_config(config: TrainingConfig, **changes: Any) -> SFTConfig:
    """TRL's configuration: the fields of ours that it has, by name, and what the trainer of this package needs.

    Args:
        config: of the run.
        changes: fields that mean something else in TRL, or that are known only with the model.

    Raises:
        TrainingError: TRL or transformers refuses a value.
    """
    shared = {option.name for option in fields(SFTConfig)} & {option.name for option in fields(config)}
    needed = {
        "learning_rate": config.rate,
        "lr_scheduler_type": "linear",
        "num_train_epochs": 1,  # over the batches of the whole run; max_steps are in their number
        "max_steps": -1,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "average_tokens_across_devices": True,
        "ddp_find_unused_parameters": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,  # rows that are too long were left out
        "packing": False,  # `Method.collate` packs
    }
    try:
        return SFTConfig(**{**{name: getattr(config, name) for name in shared}, **needed, **changes})
    except (ValueError, ImportError, RuntimeError) as error:
        raise TrainingError(f"transformers refuses these settings: {str(error).partition(chr(10))[0]}") from error


class AlignmentTrainer(SFTTrainer):  # type: ignore[misc]
    """Trains a model with a method.

    Args:
        model: a causal language model.
        args: what TRL and transformers need to know (`sft_config`).
        tokenizer: the model's.
        method: brings the batches and the loss; its data are loaded.
        items: what each batch holds (`Method.batch_items`).
        peft_config: the adapter to train; the whole model without one.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: SFTConfig,
        tokenizer: PreTrainedTokenizerBase,
        method: Method,
        items: Sequence[BatchItem],
        *,
        peft_config: PeftConfig | None = None,
    ) -> None:
        self.method, self.items = method, items
        self._tag_names = ["lm_eval_ext", method.name()]
        super().__init__(
            model=model,
            args=args,
            processing_class=tokenizer,
            # TRL wants a data set; what a step sees comes from the items, through the method.
            train_dataset=Dataset.from_dict({"input_ids": [[0]]}),
            peft_config=peft_config,
        )
        self.processing_class = None  # or each checkpoint would hold a copy of the tokenizer
        self.train_dataset = _Items(items)
        self.data_collator = method.collate
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        self.latest: dict[str, float] = {}
        self._head = _ResponsePositions(self.causal_model)
        self._noted: dict[str, list[float]] = defaultdict(list)

    @property
    def causal_model(self) -> Any:
        """The model itself, without the adapter's wrapper."""
        return self.model.get_base_model() if self.has_adapter else self.model

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is trained, not the whole model."""
        return hasattr(self.model, "peft_config")

    # What TRL's trainer calls ---------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Sequence[BatchItem]:
        return self.items

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The loss of one batch."""
        return self.method.loss(self, model, inputs, num_items_in_batch)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward pass of one batch."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.method.after_backward(self, inputs)
        return loss

    def _send_telemetry(self) -> None:
        """Nothing: no run reports itself to anyone (TRL's trainers tell the hub of theirs)."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: the card of a finished run is written by `run`."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what was noted too, as means since the last log."""
        logs |= {name: sum(values) / len(values) for name, values in self._noted.items()}
        self._noted.clear()
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint whole or not at all; older ones go only once it is there.

        Raises:
            TrainingError: it cannot be written (a full disk, say).
        """
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        # What writes its parts fails each in its own way: OSError, SafetensorError, torch's RuntimeError.
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)
            kept = sorted(path.name for path in folder.parent.glob("checkpoint-*"))
            raise TrainingError(
                f"cannot write {folder}\n  because: {type(error).__name__}: {str(error).partition(chr(10))[0][:200]}\n"
                f"Kept: {', '.join(kept) or 'no checkpoint yet'}. Make room (is the disk full?), then add --resume"
            ) from error

    # What methods make their losses of --------------------------------------------------------------------------------

    def log_probs(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """[tokens] log-probabilities, in nats, of the labels of a batch, row by row."""
        where = (inputs["labels"][:, 1:] != -100).nonzero(as_tuple=True)
        targets = inputs["labels"][:, 1:][where]
        position = {key: inputs[key] for key in ("position_ids",) if key in inputs}
        with self._head.only(where):
            output = model(
                input_ids=inputs["input_ids"],
                shift_labels=targets[None],
                fused_lm_head=True,
                use_cache=False,
                **position,
                **text_only(self.causal_model, inputs["input_ids"]),
            )
        log_probs: Tensor = output.log_probs[0]
        return log_probs

    def response_loss(self, log_probs: Tensor, n_tokens: Tensor | int | None) -> Tensor:
        """`losses.response_loss` over all tokens of the step; processes average their gradients, so each counts for all."""
        loss = response_loss(log_probs, n_tokens)
        return loss if n_tokens is None else loss * self.accelerator.num_processes

    def note(self, **values: Tensor) -> None:
        """Remember scalars for the log and the progress bar, as means over processes.

        Raises:
            NotFiniteError: one of them is not a finite number.
        """
        for name, value in values.items():
            mean = self.accelerator.gather(value.detach().float().reshape(1)).mean().item()
            if not math.isfinite(mean):
                raise NotFiniteError(f"the {name.replace('_', ' ')} is {mean}")
            self.latest[name] = mean
            self._noted[name].append(mean)

    def gather_with_gradient(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in their order; gradients reach those of this process."""
        if self.accelerator.num_processes == 1:
            return rows
        parts = list(self.accelerator.gather(rows.detach()).chunk(self.accelerator.num_processes))
        parts[self.accelerator.process_index] = rows
        return torch.cat(parts)

    def average_gradients(self) -> None:
        """Average gradients over processes at the end of a step that did not go through the distributed wrapper."""
        if self.accelerator.distributed_type not in _DISTRIBUTED or not self.accelerator.sync_gradients:
            return
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")


class _Items(torch.utils.data.Dataset[Any]):
    """Hands items on as they are: the method's `collate` reads what they refer to."""

    def __init__(self, items: Sequence[BatchItem]) -> None:
        self._items = items

    def __getitem__(self, item: BatchItem) -> BatchItem:
        return item

    def __len__(self) -> int:
        return len(self._items)


class _ResponsePositions:
    """Lets the output head see only the positions whose next token is in a response.

    A hook gathers them from the decoder's output, [batch, length, hidden] to [1, positions, hidden]. On a GPU the fused head
    would choose them itself; elsewhere it would compute every position.
    """

    def __init__(self, causal_model: PreTrainedModel) -> None:
        self._where: tuple[Tensor, ...] | None = None
        if causal_model.base_model is causal_model:  # Gemma 3 in transformers 4
            raise TrainingError(
                f"this release of transformers does not say where {type(causal_model).__name__} has its decoder, which TRL "
                "needs: pip install 'transformers>=5'"
            )
        causal_model.base_model.register_forward_hook(self._gather)

    @contextmanager
    def only(self, where: tuple[Tensor, ...]) -> Iterator[None]:
        """Inside, one forward computes the head at these (rows, columns) only."""
        self._where = where
        try:
            yield
            if self._where is not None:
                raise TrainingError("this architecture keeps its decoder where the trainer does not look for it")
        finally:
            self._where = None

    def _gather(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if self._where is not None:
            rows, columns = self._where
            output.last_hidden_state = output.last_hidden_state[rows, columns][None]
            self._where = None
        return output
