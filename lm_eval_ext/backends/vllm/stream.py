"""Adding to the residual stream of vLLM's decoder layers.

Most of vLLM's layers leave the last sum of the residual stream to the next layer's norm (a fused kernel): they return
`(hidden, residual)`, and the stream is their sum. What is added goes to `residual`, once. Other layers return the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lm_eval_ext.errors import ModelError
from lm_eval_ext.steering.table import UNSTEERED_ROW, Addition, Change, SteeringTable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lm_eval_ext.steering.plan import Position

#: What a decoder layer returns: the stream, or the two parts of its sum.
Output = Any


def is_stream(output: Output, hidden_size: int) -> bool:
    """Whether a layer's output is the residual stream [tokens, hidden] in floating point, or the two parts of its sum."""
    hidden, *rest = output if isinstance(output, tuple) else (output,)
    return (
        len(rest) <= 1
        and hidden is not None
        and all(_is_part(part, hidden_size) for part in (hidden, *rest) if part is not None)
    )


def _is_part(part: Any, hidden_size: int) -> bool:
    return (
        isinstance(part, torch.Tensor)
        and part.is_floating_point()
        and part.element_size() >= 2
        and part.dim() == 2
        and part.shape[1] == hidden_size
    )


def split(output: Output, hidden_size: int) -> tuple[Tensor, Tensor | None]:
    """The two parts of the residual stream [tokens, hidden] in a layer's output, or the stream and None.

    Raises:
        ModelError: the layer returns something else: other streams, or quantised ones.
    """
    if not is_stream(output, hidden_size):
        raise hidden_stream(_described(output), hidden_size)
    parts = output if isinstance(output, tuple) else (output,)
    return parts[0], parts[1] if len(parts) > 1 else None


def hidden_stream(returned: str, hidden_size: int) -> ModelError:
    """Why layers that return something else than the residual stream are not steered."""
    return ModelError(
        f"the decoder layers of this model return {returned}, not a residual stream [tokens, {hidden_size}] in floating "
        "point, possibly in two parts: it can be evaluated, but not steered. If it is quantised, try another "
        "quantization= (fp8, awq and gptq keep the stream), or --model steered-hf"
    )


class Stream:
    """What hooks on the layers do to the current batch.

    Args:
        hidden_size: width of the residual stream.
        table: the steps.
    """

    def __init__(self, hidden_size: int, table: SteeringTable) -> None:
        self._hidden_size = hidden_size
        self._table = table
        self._rows: Mapping[Position, Tensor] = {}
        self._is_steered = False
        self._on_device: dict[tuple[Any, ...], Any] = {}

    @property
    def positions(self) -> set[Position]:
        """The positions of the table's steps."""
        return {step.position for steps in self._table.steps.values() for step in steps}

    def begin(self, rows: Mapping[Position, Tensor], device: torch.device | str) -> None:
        """Steer the forward that follows: `rows` [tokens] by position, as `rows.token_rows` makes them, on the CPU."""
        self._is_steered = any(bool((of_position != UNSTEERED_ROW).any()) for of_position in rows.values())
        self._rows = (
            {key: value.to(device, non_blocking=True) for key, value in rows.items()} if self._is_steered else {}
        )

    def end(self) -> None:
        """Stop steering."""
        self._is_steered = False
        self._rows = {}

    def after_layer(self, layer: int, output: Output) -> Output | None:
        """The output of decoder layer `layer` steered; None where it is not changed."""
        if not self._is_steered:
            return None
        hidden, residual = split(output, self._hidden_size)
        for number, step in enumerate(self._table.steps[layer]):
            if isinstance(step, Addition):
                if residual is None:
                    hidden = self._add((layer, number), step, hidden)
                else:
                    residual = self._add((layer, number), step, residual)
            else:
                hidden, residual = self._change((layer, number), step, hidden, residual)
        return (hidden, residual) if isinstance(output, tuple) else hidden

    def _add(self, key: tuple[int, int], step: Addition, stream: Tensor) -> Tensor:
        matrix = self._cached((*key, stream.device, stream.dtype), lambda: step.matrix.to(stream.device, stream.dtype))
        vectors = matrix[self._rows[step.position]]
        missing = len(stream) - len(vectors)  # a batch that vLLM padded
        return stream + (torch.nn.functional.pad(vectors, (0, 0, 0, missing)) if missing else vectors)

    def _change(
        self, key: tuple[int, int], step: Change, hidden: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Each row's transform on its own tokens, in float32."""
        rows = self._rows[step.position]
        for row, (artifact, strength) in step.artifacts.items():
            index = (rows == row).nonzero()[:, 0]
            if not len(index):
                continue
            device = hidden.device
            tensors = self._cached(
                (*key, row, device),
                lambda artifact=artifact, device=device: {name: each.to(device) for name, each in artifact.items()},
            )
            before = hidden[index] if residual is None else hidden[index] + residual[index]
            after = step.transform.apply(before.float(), tensors, strength).to(hidden.dtype)
            if residual is None:
                hidden = hidden.index_copy(0, index, after)
            else:  # the next layer adds the parts up: all of the stream is in one of them
                hidden = hidden.index_fill(0, index, 0)
                residual = residual.index_copy(0, index, after)
        return hidden, residual

    def _cached(self, key: tuple[Any, ...], make: Any) -> Any:
        if key not in self._on_device:
            self._on_device[key] = make()
        return self._on_device[key]


def _described(output: Output) -> str:
    if isinstance(output, torch.Tensor):
        return f"a tensor {list(output.shape)} of {str(output.dtype).removeprefix('torch.')}"
    if isinstance(output, tuple):
        return "(" + ", ".join(map(_described, output)) + ")"
    return type(output).__name__
