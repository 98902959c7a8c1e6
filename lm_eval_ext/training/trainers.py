"""MIST, MIDALIGN and CLO as subclasses of TRL's SFTTrainer: each brings its batches and its loss, nothing else.

The output head is computed at response positions only, by TRL's fused head, which never holds the logits of the whole
vocabulary. The reference of CLO is the same model with its adapter disabled. Batches are padded on the right, which needs
no attention mask in a causal model.
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
from lm_eval_ext.steering.extraction import Capture
from lm_eval_ext.training.batches import IGNORED, packed, padded
from lm_eval_ext.training.losses import (
    Likelihoods,
    clo_loss,
    contrastive_loss,
    preference_loss,
    preference_margins,
    response_loss,
)
from lm_eval_ext.training.schedule import Place

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from peft import PeftConfig
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTConfig

    from lm_eval_ext.training.batches import PairBatcher
    from lm_eval_ext.training.encoding import Example, TupleExample
    from lm_eval_ext.training.losses import Direction

_SPREAD = (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


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


class MidalignTrainer(MistTrainer):
    """MIDALIGN: MIST's loss, and `losses.contrastive_loss` of parallel sentences at a middle layer.

    The paper adds the contrastive term to instruction tuning; the ancestor (mid-align) alternates optimiser steps, our
    default. Sentences are pooled as the mean of the raw residual stream after decoder layer `layer` over all positions that
    are neither padding nor (our default, as in extraction) special tokens; gradients reach both sides, and the forward ends
    at that layer. Negatives come from all processes of a batch.

    Args:
        pairs: makes the batches of pairs.
        layer: 0-based decoder layer, output of the block.
        temperature, direction: of the loss.
        weight: factor of the contrastive loss; 1 is our default.
        others: as for `MistTrainer`; places say whether a step alternates or sums.
    """

    _tag_names: ClassVar[list[str]] = ["lm_eval_ext", "midalign"]

    def __init__(
        self,
        *args: Any,
        pairs: PairBatcher,
        layer: int,
        temperature: float,
        direction: Direction,
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self._pairs, self._layer, self._weight = pairs, layer, weight
        self._temperature, self._direction = temperature, direction
        super().__init__(*args, **kwargs)

    def _collate(self, places: list[Place]) -> dict[str, Any]:
        rows = [self._rows[place.row] for place in places if place.row is not None]
        groups = [place.pairs for place in places if place.pairs is not None]
        return {**(self._responses(rows) if rows else {}), **(self._pairs.batch(groups) if groups else {})}

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The loss of one batch: of its responses, of its pairs, or of both."""
        if "pairs" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        contrastive = self.contrastive(inputs)
        self.note(contrastive=contrastive)
        if "labels" not in inputs:
            return self._weight * contrastive
        # The response loss counts the tokens of the whole step; the other is a mean over its batches.
        batches: int = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        response: Tensor = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return response + self._weight * contrastive / batches

    def contrastive(self, inputs: dict[str, Any]) -> Tensor:
        """The contrastive loss of a batch's pairs against each other and those of the other processes."""
        with Capture(self.model, [self._layer]) as capture:
            # Pooled outside of the forward: inside, transformers 4 would have it in a checkpoint that ends early.
            (states,) = capture.run(self.model, inputs["pairs"], lambda states: states)
        pooled = (states.float() * inputs["pair_weights"][..., None]).sum(1)
        source, target = (self._of_all(side) for side in pooled.chunk(2))
        with torch.autocast(pooled.device.type, enabled=False):
            loss = contrastive_loss(source, target, self._temperature, self._direction)
        # Only this process's pairs carry gradients here, which the processes then average.
        n: int = self.accelerator.num_processes
        return loss + (n - 1) * (loss - loss.detach())

    def _of_all(self, own: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return own
        parts = list(self.accelerator.gather(own.detach()).chunk(self.accelerator.num_processes))
        parts[self.accelerator.process_index] = own
        return torch.cat(parts)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One batch forth and back."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        # A forward that ends early never went through the distributed wrapper, which therefore waits for no gradient.
        spread = self.accelerator.distributed_type in _SPREAD
        if spread and "labels" not in inputs and self.accelerator.sync_gradients:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        return loss


class CloTrainer(MistTrainer):
    """CLO: `losses.clo_loss` on parallel tuples (the paper, L_CL; Lee 2025 for the whole objective).

    The reference is the model without its adapter: no second copy in memory. Where the whole model is trained there is no
    adapter, and the reference's log-likelihoods are computed before the first step.

    Args:
        beta: strength of the preference.
        response_weight: lambda.
        others: as for `MistTrainer`; rows are tuples.
    """

    _tag_names: ClassVar[list[str]] = ["lm_eval_ext", "clo"]

    def __init__(self, *args: Any, beta: float, response_weight: float, **kwargs: Any) -> None:
        self._beta, self._lambda = beta, response_weight
        self._reference: Tensor | None = None
        super().__init__(*args, **kwargs)

    def _collate(self, places: list[Place]) -> dict[str, Any]:
        numbers = [place.row for place in places if place.row is not None]
        tuples: list[TupleExample] = [self._rows[number] for number in numbers]
        batch = self._responses([one for kind in zip(*(row.all for row in tuples), strict=True) for one in kind])
        # The trainer counts these: the tokens of the response loss, of the target language alone.
        counted = [len(row.xx_xx.response) for row in tuples]
        lengths = [len(one.response) for kind in zip(*(row.all for row in tuples), strict=True) for one in kind]
        owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        return {
            "input_ids": batch["input_ids"],
            "all_labels": batch["labels"],
            "labels": torch.tensor([[IGNORED] + [0] * sum(counted)]),
            "owner": owner,
            "numbers": torch.tensor(numbers),
            **{key: batch[key] for key in ("position_ids",) if key in batch},
        }

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The loss of one batch of tuples."""
        given = {**inputs, "labels": inputs["all_labels"]}
        n = len(inputs["numbers"])
        reference = self._referred(given)
        log_probs = self.log_probs(model, given)
        owner = inputs["owner"]
        policy = _per_response(log_probs, owner, n)
        own = log_probs[(owner >= 2 * n) & (owner < 3 * n)]  # xx_xx
        margins = preference_margins(policy, reference, self._beta)
        preference = preference_loss(margins)
        self.note(response=response_loss(own.detach()), preference=preference)
        self.note(margin_en=margins.en.mean(), margin_xx=margins.xx.mean())
        if num_items_in_batch is None:
            return clo_loss(response_loss(own), preference, self._lambda)
        scaled = preference / self.current_gradient_accumulation_steps
        return clo_loss(self._shared(own, num_items_in_batch), scaled, self._lambda)

    def refer(self, batch_size: int) -> None:
        """Compute the reference's log-likelihoods of all tuples, for a run that trains the whole model."""
        found = []
        self.model.eval()
        for at in range(0, len(self._rows), batch_size):
            inputs = self._collate([Place(row) for row in range(at, min(at + batch_size, len(self._rows)))])
            inputs = {key: value.to(self.args.device) for key, value in inputs.items()}
            found.append(torch.stack(self._without_adapter({**inputs, "labels": inputs["all_labels"]}), dim=1))
        self._reference = torch.cat(found)

    def _referred(self, inputs: dict[str, Any]) -> Likelihoods:
        if self._reference is not None:
            return Likelihoods(*self._reference[inputs["numbers"]].unbind(1))
        with self.model.disable_adapter():
            return self._without_adapter(inputs)

    def _without_adapter(self, inputs: dict[str, Any]) -> Likelihoods:
        with torch.no_grad():
            return _per_response(self.log_probs(self.model, inputs), inputs["owner"], len(inputs["numbers"]))


def _per_response(log_probs: Tensor, owner: Tensor, n: int) -> Likelihoods:
    """Sums over the tokens of each of the 4 n responses; `owner` [tokens] says whose each token is."""
    return Likelihoods(*log_probs.new_zeros(4 * n).index_add(0, owner, log_probs).chunk(4))


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
