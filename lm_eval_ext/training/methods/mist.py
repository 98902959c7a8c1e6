"""MIST as a subclass of TRL's SFTTrainer: it brings its batches and its loss, nothing else; the other methods extend it.

The output head is computed at response positions only, by TRL's fused head, which never holds the logits of the whole
vocabulary. Batches are padded on the right, which needs no attention mask in a causal model.
"""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import SFTTrainer

from lm_eval_ext.errors import TrainingError
from lm_eval_ext.training.batches import packed, padded
from lm_eval_ext.training.losses import response_loss

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from peft import PeftConfig
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTConfig

    from lm_eval_ext.training.encoding import Example
    from lm_eval_ext.training.schedule import Place

#: Kinds of runs in several processes.
SPREAD = (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class NotFiniteError(ArithmeticError):
    """A loss or gradient that is not a finite number, met before the weights were changed by it."""


class MistTrainer(SFTTrainer):  # type: ignore[misc]
    """MIST (the paper): instruction tuning in many languages, `losses.response_loss` on the responses alone.

    On English alone it is the control `sft-en`, our addition: the same recipe without other languages.

    Args:
        model: a causal language model.
        args: what TRL and transformers need to know.
        tokenizer: the model's.
        rows: instructions (or tuples) as tokens.
        places: which of them each step sees (`schedule.order`).
        packed: put the rows of a batch into one, without padding; they do not see each other.
        peft_config: the adapter to train; the whole model without one.
    """

    _tag_names: ClassVar[list[str]] = ["lm_eval_ext", "mist"]

    def __init__(
        self,
        model: PreTrainedModel,
        args: SFTConfig,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Any],
        places: Sequence[Place],
        *,
        packed: bool = False,
        peft_config: PeftConfig | None = None,
    ) -> None:
        self._rows, self._places, self._packed = rows, places, packed
        super().__init__(
            model=model,
            args=args,
            processing_class=tokenizer,
            # TRL wants a data set; what a step sees comes from the places, through `_collate`.
            train_dataset=Dataset.from_dict({"input_ids": [[0]]}),
            peft_config=peft_config,
        )
        self.processing_class = None  # or each checkpoint would hold a copy of the tokenizer
        self.train_dataset = _Places(places)
        self.data_collator = self._collate
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

    # What the trainer asks for ---------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Sequence[Place]:
        return self._places

    def _collate(self, places: list[Place]) -> dict[str, Any]:
        return self._responses([self._rows[place.row] for place in places if place.row is not None])

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The loss of one batch."""
        log_probs = self.log_probs(model, inputs)
        self.note(response=response_loss(log_probs.detach()))
        return self._shared(log_probs, num_items_in_batch)

    def _send_telemetry(self) -> None:
        """Nothing: no run reports itself to anyone (TRL's trainers tell the hub of theirs)."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: the card of a finished run is written by `run`."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the losses' means since the last log, too."""
        for name, values in self._noted.items():
            logs[f"{name}_loss" if name in ("response", "contrastive", "preference") else name] = sum(values) / len(
                values
            )
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

    # Parts of the losses ---------------------------------------------------------------------------------------------

    def log_probs(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """[tokens] log-probabilities of the labels of a batch, row by row."""
        where = (inputs["labels"][:, 1:] != -100).nonzero(as_tuple=True)
        targets = inputs["labels"][:, 1:][where]
        position = {key: inputs[key] for key in ("position_ids",) if key in inputs}
        with self._head.at(where):
            output = model(
                input_ids=inputs["input_ids"],
                shift_labels=targets[None],
                fused_lm_head=True,
                use_cache=False,
                **position,
            )
        log_probs: Tensor = output.log_probs[0]
        return log_probs

    def note(self, **values: Tensor) -> None:
        """Remember scalars for the log and the progress bar, as means over processes.

        Raises:
            NotFiniteError: one of them is not a finite number.
        """
        for name, value in values.items():
            mean = self.accelerator.gather(value.detach().float().reshape(1)).mean().item()
            if not math.isfinite(mean):
                raise NotFiniteError(f"the {name} loss is {mean}")
            self.latest[name] = mean
            self._noted[name].append(mean)

    def _shared(self, log_probs: Tensor, count: Any) -> Tensor:
        """`response_loss` over all tokens of the step; processes average their gradients, so each counts for all."""
        loss = response_loss(log_probs, count)
        return loss if count is None else loss * self.accelerator.num_processes

    def _responses(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        return packed(examples) if self._packed else padded(examples)


class _Places(torch.utils.data.Dataset[Any]):
    """Hands places on as they are: the collator fetches what they mean."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places

    def __getitem__(self, place: Place) -> Place:
        return place

    def __len__(self) -> int:
        return len(self._places)


class _ResponsePositions:
    """Lets the output head see only the positions whose next token is in a response.

    A hook gathers them from what the decoder hands on, [batch, length, hidden] to [1, positions, hidden]. On a GPU the
    fused head would choose them itself; elsewhere it would compute every position.
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
    def at(self, where: tuple[Tensor, ...]) -> Iterator[None]:
        """Inside, one forward computes the head at these (rows, columns) only."""
        self._where = where
        try:
            yield
            if self._where is not None:
                raise TrainingError("this architecture keeps its decoder where the trainer does not find it")
        finally:
            self._where = None

    def _gather(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if self._where is not None:
            rows, columns = self._where
            output.last_hidden_state = output.last_hidden_state[rows, columns][None]
            self._where = None
        return output
