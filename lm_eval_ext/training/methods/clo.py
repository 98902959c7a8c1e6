"""CLO: preferences between languages, with the same model without its adapter as the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lm_eval_ext.training.batches import IGNORED
from lm_eval_ext.training.losses import (
    Likelihoods,
    clo_loss,
    preference_loss,
    preference_margins,
    response_loss,
)
from lm_eval_ext.training.methods.mist import MistTrainer
from lm_eval_ext.training.schedule import Place

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lm_eval_ext.training.encoding import TupleExample


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
