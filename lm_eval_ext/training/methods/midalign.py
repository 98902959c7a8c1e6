"""MIDALIGN: MIST and a contrastive loss of parallel sentences at a middle layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lm_eval_ext.steering.extraction import Capture
from lm_eval_ext.training.losses import contrastive_loss
from lm_eval_ext.training.methods.mist import SPREAD, MistTrainer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lm_eval_ext.training.batches import PairBatcher
    from lm_eval_ext.training.losses import Direction
    from lm_eval_ext.training.schedule import Place


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
        spread = self.accelerator.distributed_type in SPREAD
        if spread and "labels" not in inputs and self.accelerator.sync_gradients:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        return loss
