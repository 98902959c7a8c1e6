"""CLO: preferences between languages, with the same model without its adapter as the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lm_eval_ext.data import instruct
from lm_eval_ext.errors import TrainingError
from lm_eval_ext.languages import NON_ENGLISH
from lm_eval_ext.training.config import TrainingConfig, codes_of
from lm_eval_ext.training.methods.base import Method
from lm_eval_ext.training.schedule import BatchItem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from lm_eval_ext.training.encoding import Encoder
    from lm_eval_ext.training.losses import Likelihoods
    from lm_eval_ext.training.rows import TrainingData
    from lm_eval_ext.training.trainer import AlignmentTrainer


@dataclass(frozen=True, kw_only=True)
class CloConfig(TrainingConfig):
    """A preference, both ways, for answering in the language of the prompt, and the response loss beside it.

    Examples:

      lm-eval-ext train clo --out runs/clo

      lm-eval-ext train clo --data tuples.jsonl --beta 0.1 --lambda 0.5 --out runs/clo
    """

    method = "clo"
    language_choices = tuple(NON_ENGLISH)
    passes_per_row = 5  # four texts of a tuple, and again without the adapter

    languages: Annotated[str, typer.Option(help="Language codes besides English, joined by commas.")] = ",".join(
        NON_ENGLISH
    )
    beta: Annotated[float, typer.Option(help="Strength of the preference.")] = 0.1
    response_weight: Annotated[float, typer.Option("--lambda", help="Weight of the response loss, 0 to 1.")] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.beta >= 0 and math.isfinite(self.beta)):
            raise TrainingError(f"--beta {self.beta}: must be 0 or above, such as 0.1")
        if not 0 <= self.response_weight <= 1:
            raise TrainingError(f"--lambda {self.response_weight}: must lie between 0 and 1")

    def codes(self) -> list[str]:
        """The languages besides English."""
        if not (codes := [code for code in codes_of(self.languages) if code != "en"]):
            raise TrainingError("--languages en: a tuple sets another language beside English; name that one")
        return codes


class Clo(Method):
    """CLO: `losses.clo_loss` on parallel tuples (the paper, L_CL; Lee 2025 for the whole objective).

    The reference is the model without its adapter: no second copy in memory. Where the whole model is trained there is no
    adapter, and the reference's log-likelihoods are computed before the first step.
    """

    config_class = CloConfig
    title = "CLO: a two-way preference for the language of the prompt, and the response loss in the other language"
    adapts_mlp = False
    config: CloConfig
    #: [rows, 4] log-likelihoods of the reference, where they were computed before the first step.
    _reference: Tensor | None = None

    def load(self, encoder: Encoder, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> TrainingData:
        """Read the parallel tuples."""
        from lm_eval_ext.training.rows import tokenised

        rows, report = instruct.load_tuples(self.config.data, self.config.codes())
        self.data = tokenised(self.config, rows, report, encoder.parallel, lambda row: [row.x_en, row.x_xx], max_tokens)
        return self.data

    def begin(self, trainer: AlignmentTrainer) -> None:
        """Compute the reference's log-likelihoods of all tuples, for a run that trains the whole model."""
        if trainer.has_adapter:
            return
        import torch

        batch_size, n_rows = self.config.per_device_train_batch_size, len(self.data.examples)
        likelihoods = []
        trainer.model.eval()
        for first in range(0, n_rows, batch_size):
            inputs = self.collate([BatchItem(row) for row in range(first, min(first + batch_size, n_rows))])
            inputs = {key: value.to(trainer.args.device) for key, value in inputs.items()}
            likelihoods.append(torch.stack(self._without_gradient(trainer, inputs), dim=1))
        self._reference = torch.cat(likelihoods)

    def collate(self, items: Sequence[BatchItem]) -> dict[str, Any]:
        """The four responses of each tuple, all of one kind before those of the next."""
        import torch

        from lm_eval_ext.training.batches import IGNORED, to_batch

        numbers = [item.row for item in items if item.row is not None]
        tuples: list[Any] = [self.data.examples[number] for number in numbers]
        responses = [one for kind in zip(*(row.all for row in tuples), strict=True) for one in kind]
        batch = to_batch(responses, packing=self.config.packing)
        lengths = torch.tensor([len(one.response) for one in responses])
        return {
            **batch,
            "all_labels": batch["labels"],
            # The trainer counts these: the tokens of the response loss, of the target language alone.
            "labels": torch.tensor([[IGNORED] + [0] * sum(len(row.xx_xx.response) for row in tuples)]),
            # [tokens] the response that each labelled token belongs to.
            "response_of_token": torch.repeat_interleave(torch.arange(len(lengths)), lengths),
            "row_numbers": torch.tensor(numbers),
        }

    def loss(
        self, trainer: AlignmentTrainer, model: nn.Module, inputs: dict[str, Any], n_tokens: Tensor | int | None
    ) -> Tensor:
        """The loss of one batch of tuples."""
        from lm_eval_ext.training.losses import clo_loss, preference_loss, preference_margins, response_loss

        n = len(inputs["row_numbers"])
        reference = self._reference_likelihoods(trainer, inputs)
        log_probs = trainer.log_probs(model, _with_all_labels(inputs))
        response_of_token = inputs["response_of_token"]
        policy = _summed(log_probs, response_of_token, n)
        xx_xx = log_probs[(response_of_token >= 2 * n) & (response_of_token < 3 * n)]
        margins = preference_margins(policy, reference, self.config.beta)
        preference = preference_loss(margins)
        trainer.note(response_loss=response_loss(xx_xx.detach()), preference_loss=preference)
        trainer.note(margin_en=margins.en.mean(), margin_xx=margins.xx.mean())
        if n_tokens is not None:
            preference = preference / trainer.current_gradient_accumulation_steps
        return clo_loss(trainer.response_loss(xx_xx, n_tokens), preference, self.config.response_weight)

    def _reference_likelihoods(self, trainer: AlignmentTrainer, inputs: dict[str, Any]) -> Likelihoods:
        from lm_eval_ext.training.losses import Likelihoods

        if self._reference is not None:
            return Likelihoods(*self._reference[inputs["row_numbers"]].unbind(1))
        with trainer.model.disable_adapter():
            return self._without_gradient(trainer, inputs)

    def _without_gradient(self, trainer: AlignmentTrainer, inputs: dict[str, Any]) -> Likelihoods:
        import torch

        with torch.no_grad():
            log_probs = trainer.log_probs(trainer.model, _with_all_labels(inputs))
        return _summed(log_probs, inputs["response_of_token"], len(inputs["row_numbers"]))


def _with_all_labels(inputs: dict[str, Any]) -> dict[str, Any]:
    return {**inputs, "labels": inputs["all_labels"]}


def _summed(log_probs: Tensor, response_of_token: Tensor, n: int) -> Likelihoods:
    """Sums over the tokens of each of the 4 n responses."""
    from lm_eval_ext.training.losses import Likelihoods

    return Likelihoods(*log_probs.new_zeros(4 * n).index_add(0, response_of_token, log_probs).chunk(4))
