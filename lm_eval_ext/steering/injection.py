"""Changing the residual stream in forward hooks, each row of a batch with the vectors of its language.

An `Injector` registers one forward hook per steered layer, once; before each forward the caller sets which row of the
steering table each example uses and which tokens are the prompt. Nothing is edited in place, no module is replaced, and no
hook synchronises with the device.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lm_eval_ext.steering.decoder import ResidualStream, decoder_layers
from lm_eval_ext.steering.table import UNSTEERED_ROW, Addition, Change, SteeringTable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from lm_eval_ext.steering.tokens import Tokens


@dataclass
class _Batch:
    rows: Tensor  # [batch], or [batch, length] where the tokens of an example differ
    tokens: Tokens
    first: int = 0  # absolute index of the first token
    seen: dict[int, int] = field(default_factory=dict)  # tokens that each layer has processed

    def offset(self, layer: int, length: int, width: int | None) -> int:
        """Absolute index of the first token of this call at `layer`; a model without cache sends all tokens again."""
        recomputed = width is not None and length > width
        start = 0 if recomputed else self.seen.get(layer, self.first)
        self.seen[layer] = start + length
        return start


class Injector:
    """The hooks of one model, and the state that they read.

    Registered once; does nothing outside `batch(...)`.
    """

    def __init__(self, model: PreTrainedModel, table: SteeringTable) -> None:
        """Register a hook after each steered decoder layer of `model`.

        Raises:
            ModelError: the decoder layers cannot be found.
        """
        self.table = table
        self._batch: _Batch | None = None
        self._on_device: dict[tuple[Any, ...], Any] = {}
        self._stream = ResidualStream.of(model)
        layers: Sequence[nn.Module] = list(decoder_layers(model)) if table.steps else []
        self._handles = [layers[layer].register_forward_hook(self._hook(layer)) for layer in table.steps]

    def remove(self) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def batch(self, rows: list[int] | Tensor, tokens: Tokens) -> Iterator[None]:
        """Steer the forwards inside: example i by row `rows[i]`, at the tokens that `tokens` names.

        `rows` may be a tensor [batch, length] instead: a row of the table for each token of each example.
        Hooks return immediately where all rows are unsteered.
        """
        self.begin(rows, tokens)
        try:
            yield
        finally:
            self.end()

    def begin(self, rows: list[int] | Tensor, tokens: Tokens, offset: int = 0) -> None:
        """Steer the forwards from here on, the first of which begins at the absolute index `offset`; see `batch`."""
        of_examples = torch.as_tensor(rows).cpu()  # so that the hooks read them without synchronising
        is_steered = self.table.steps and bool((of_examples != UNSTEERED_ROW).any())
        self._batch = _Batch(of_examples, tokens, offset) if is_steered else None

    def end(self) -> None:
        """Stop steering."""
        self._batch = None

    def _hook(self, layer: int) -> Any:
        steps = self.table.steps[layer]

        def steer(module: nn.Module, inputs: Any, output: Any) -> Any:
            batch = self._batch
            if batch is None:
                return None
            hidden = self._stream.read(output)
            n, length = hidden.shape[:2]
            prompt = getattr(batch.tokens, "prompt", None)
            offset = batch.offset(layer, length, None if prompt is None else prompt.shape[1])
            rows = _repeat(batch.rows, n)
            rows = rows if rows.dim() == 2 else rows[:, None]
            steered = hidden
            for number, step in enumerate(steps):
                mask = batch.tokens.mask(step.position, offset, length)
                if mask is not False:
                    token_mask = None if mask is True else _repeat(mask, n)
                    if isinstance(step, Addition):
                        steered = self._add((layer, number), step, steered, rows, token_mask)
                    else:
                        steered = self._change((layer, number), step, steered, rows, token_mask)
            return None if steered is hidden else self._stream.write(output, steered)

        return steer

    def _add(
        self, key: tuple[int, int], step: Addition, hidden: Tensor, rows: Tensor, token_mask: Tensor | None
    ) -> Tensor:
        matrix: Tensor = self._cached(
            (*key, hidden.device, hidden.dtype), lambda: step.matrix.to(hidden.device, hidden.dtype)
        )
        vectors: Tensor = matrix[rows.to(hidden.device, non_blocking=True)]
        if token_mask is not None:
            vectors = vectors * token_mask.to(hidden.device, hidden.dtype, non_blocking=True)[..., None]
        return hidden + vectors

    def _change(
        self, key: tuple[int, int], step: Change, hidden: Tensor, rows: Tensor, token_mask: Tensor | None
    ) -> Tensor:
        """Each row's transform on its own tokens, in float32."""
        shape = hidden.shape[:2]
        flat = hidden.flatten(0, 1)
        mask = None if token_mask is None else token_mask.expand(shape).bool()
        on_host = mask is None or mask.device.type == "cpu"
        for row, (artifact, strength) in step.artifacts.items():
            of_row = (rows == row).expand(shape)
            if mask is not None and on_host:
                of_row = of_row & mask
            index = of_row.flatten().nonzero()[:, 0]
            if not len(index):
                continue
            index = index.to(hidden.device, non_blocking=True)
            tensors = self._cached(
                (*key, row, hidden.device),
                lambda artifact=artifact: {name: tensor.to(hidden.device) for name, tensor in artifact.items()},
            )
            before = flat[index]
            after = step.transform.apply(before.float(), tensors, strength).to(hidden.dtype)
            if mask is not None and not on_host:
                after = torch.where(mask.to(hidden.device).flatten()[index][:, None], after, before)
            flat = flat.index_copy(0, index, after)
        return flat.view_as(hidden)

    def _cached(self, key: tuple[Any, ...], make: Any) -> Any:
        if key not in self._on_device:
            self._on_device[key] = make()
        return self._on_device[key]


def _repeat(tensor: Tensor, n: int) -> Tensor:
    """Rows repeated for beams or for several returned sequences, which transformers interleaves."""
    return tensor if tensor.shape[0] == n else tensor.repeat_interleave(n // tensor.shape[0], dim=0)
