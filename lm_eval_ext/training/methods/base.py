"""What a training method is: its data, their order, its batches and its loss, for the one trainer of `trainer`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from lm_eval_ext.data import instruct
from lm_eval_ext.training import schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from lm_eval_ext.training.config import TrainingConfig
    from lm_eval_ext.training.encoding import Encoder
    from lm_eval_ext.training.rows import TrainingData
    from lm_eval_ext.training.schedule import BatchItem
    from lm_eval_ext.training.trainer import AlignmentTrainer


class Method:
    """Instruction tuning with the loss on the responses alone; methods override what they do otherwise.

    One object serves one run. The trainer calls `collate` and `loss` for every batch; both may use what `load` read.

    Args:
        config: of the run.
        model_config: transformers' configuration of the model, which is not loaded yet.
        processes: in how many processes the run is.

    Attributes:
        config_class: its options.
        title: one line for the card of a model.
        adapts_mlp: whether the adapter sits on attention and MLP, or on attention alone.
        data: what is trained on, once `load` was called.
        details: what the record and the card say of the method beside its options, such as the layer.

    Raises:
        TrainingError: options that do not fit the model or the number of processes.
    """

    config_class: ClassVar[type[TrainingConfig]]
    title: ClassVar[str]
    adapts_mlp: ClassVar[bool] = True

    def __init__(self, config: TrainingConfig, model_config: Any, processes: int) -> None:
        self.config = config
        self.processes = processes
        self.data: TrainingData
        self.details: dict[str, Any] = {}

    @classmethod
    def name(cls) -> str:
        """The name of the method, which is that of its command too."""
        return cls.config_class.method

    # Before the run ---------------------------------------------------------------------------------------------------

    def load(self, encoder: Encoder, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> TrainingData:
        """Read, check and tokenise what is trained on, and keep it as `data`.

        Args:
            encoder, tokenizer: of the model.
            max_tokens: longer rows are left out and counted.

        Raises:
            DataError: data that is missing or damaged, or nothing of it is left for a language.
            LanguageError: an unknown language.
        """
        from lm_eval_ext.training.rows import tokenised

        rows, report = instruct.load(self.config.data, self.config.codes())
        self.data = tokenised(self.config, rows, report, encoder.instruction, lambda row: [row.prompt], max_tokens)
        return self.data

    def batch_items(self) -> list[BatchItem]:
        """What each batch of the run holds, in order.

        Raises:
            TrainingError: there is too little data for a step.
        """
        return schedule.order(self.steps_of_rows(), self.items_per_step, len(self.data.examples), seed=self.config.seed)

    @property
    def items_per_step(self) -> int:
        """Rows of an optimiser step, over all processes and accumulated batches."""
        config = self.config
        return config.per_device_train_batch_size * config.gradient_accumulation_steps * self.processes

    def steps_of_rows(self) -> int:
        """Optimiser steps: as many as asked for, or as the passes through the data take."""
        epochs = self.config.num_train_epochs
        return self.config.max_steps or math.ceil(epochs * len(self.data.examples) / self.items_per_step)

    def begin(self, trainer: AlignmentTrainer) -> None:
        """What is computed once with the model before the first step; the trainer is complete."""

    # In every step ----------------------------------------------------------------------------------------------------

    def collate(self, items: Sequence[BatchItem]) -> dict[str, Any]:
        """The batch of some items: tensors by name. The trainer counts the tokens whose `labels` are not -100."""
        from lm_eval_ext.training.batches import to_batch

        rows = [self.data.examples[item.row] for item in items if item.row is not None]
        return to_batch(rows, packing=self.config.packing)

    def loss(
        self, trainer: AlignmentTrainer, model: nn.Module, inputs: dict[str, Any], n_tokens: Tensor | int | None
    ) -> Tensor:
        """The loss of one batch.

        Args:
            trainer: has what losses are made of: `log_probs`, `response_loss`, `note`.
            model: as the trainer wraps it, for the forward.
            inputs: what `collate` made.
            n_tokens: labelled tokens of the whole optimiser step, over all processes and accumulated batches; None where a
                batch stands alone.

        Returns:
            A scalar. Over the batches of a step it is summed, over processes averaged.
        """
        from lm_eval_ext.training.losses import response_loss

        log_probs = trainer.log_probs(model, inputs)
        trainer.note(response_loss=response_loss(log_probs.detach()))
        return trainer.response_loss(log_probs, n_tokens)

    def after_backward(self, trainer: AlignmentTrainer, inputs: dict[str, Any]) -> None:
        """What is done with the gradients of one batch."""
