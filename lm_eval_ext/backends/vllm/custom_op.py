"""Steering in compiled models: a custom operator that reads persistent buffers.

torch.compile traces the decoder layers once, before there is a plan, and CUDA graphs replay kernels on the addresses that
they were captured with. So every layer calls `lm_eval_ext::steer_` whatever the plan. The operator is opaque to compilers,
and adds rows of one buffer (`vectors`) that another (`rows`) names for each layer and token; both keep their addresses, and
row 0 adds nothing. Transforms that depend on the state cannot be written so: engines that run them are eager (see `stream`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lm_eval_ext.backends.vllm.stream import hidden_stream, is_stream, split
from lm_eval_ext.errors import ModelError
from lm_eval_ext.steering.table import UNSTEERED_ROW, Addition, SteeringTable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from torch import Tensor, nn

    from lm_eval_ext.steering.plan import Position

#: Key of the buffers in vLLM's forward context, where the operator finds those of the engine that is running.
NAME = "lm_eval_ext.steering"

#: Vectors of all layers and languages that fit the buffer (our default: 42 MB in bfloat16 for a hidden size of 5120).
CAPACITY = 4096


class Buffers:
    """What the operator adds in the current batch.

    Args:
        n_layers: of the model.
        hidden_size: width of the residual stream.
        max_tokens: most tokens of a batch, padding included.
        dtype, device: of the model.
    """

    def __init__(
        self, n_layers: int, hidden_size: int, max_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._vectors = torch.zeros(CAPACITY, hidden_size, dtype=dtype, device=device)
        self._rows = torch.zeros(n_layers, max_tokens, dtype=torch.long, device=device)
        self._may_skip = device.type == "cpu"  # no graph that would remember it
        self._layers: dict[int, tuple[int, Sequence[Position]]] = {}
        self._here: set[int] = set()
        self._called: set[int] = set()
        self._is_steered = False

    @property
    def positions(self) -> set[Position]:
        """The positions of the table's steps."""
        return {position for _, positions in self._layers.values() for position in positions}

    def put(self, table: SteeringTable, here: set[int]) -> None:
        """Put a table in place of the one before.

        A layer with k steps has a vector for each row and each set of steps that cover a token: (height - 1) (2^k - 1).

        Args:
            table: the steps.
            here: the steered layers that this rank holds.

        Raises:
            ModelError: a transform that depends on the state, more vectors than fit, or a steered layer that does not call
                the operator, since it returns something else than the residual stream.
        """
        if self._called and not here <= self._called:
            raise hidden_stream("something else", self._vectors.shape[1])
        vectors = [self._vectors.new_zeros(1, self._vectors.shape[1])]
        layers: dict[int, tuple[int, Sequence[Position]]] = {}
        start = 1
        for layer, steps in table.steps.items():
            matrices = [step.matrix[1:] for step in steps if isinstance(step, Addition)]
            if len(matrices) < len(steps):
                raise ModelError("a transform that depends on the state is in the plan: give enforce_eager=True")
            sets = range(1, 2 ** len(steps))
            sums = [
                torch.stack([matrix for k, matrix in enumerate(matrices) if covered >> k & 1]).sum(0)
                for covered in sets
            ]
            of_layer = torch.stack(sums, 1).flatten(0, 1)  # [(rows, sets), hidden]
            layers[layer] = start, [step.position for step in steps]
            start += len(of_layer)
            vectors.append(of_layer.to(self._vectors))
            if start > CAPACITY:
                raise ModelError(
                    f"the plan has more than {CAPACITY} vectors (layers times languages), which compiled engines have no "
                    "room for: give enforce_eager=True"
                )
        self.end()
        self._vectors[:start].copy_(torch.cat(vectors))
        self._layers, self._here = layers, here

    def begin(self, rows: Mapping[Position, Tensor], device: torch.device | str) -> None:
        """Steer the forward that follows: `rows` [tokens] by position, as `rows.token_rows` makes them, on the CPU."""
        self.end()
        if not any(bool((of_position != UNSTEERED_ROW).any()) for of_position in rows.values()):
            return
        n_tokens = len(next(iter(rows.values())))
        found = torch.zeros(len(self._layers), n_tokens, dtype=torch.long)
        for number, (start, positions) in enumerate(self._layers.values()):
            of_steps = torch.stack([rows[position] for position in positions])
            covered = ((of_steps != UNSTEERED_ROW) << torch.arange(len(positions))[:, None]).sum(0)
            n_sets = 2 ** len(positions) - 1
            index = start + (of_steps.amax(0) - 1) * n_sets + covered - 1
            found[number] = torch.where(covered > 0, index, 0)
        self._rows[list(self._layers), :n_tokens] = found.to(device, non_blocking=True)
        self._is_steered = True

    def check(self) -> None:
        """After a forward that was steered: every steered layer has called the operator, now or when it was captured.

        Raises:
            ModelError: one did not.
        """
        if self._is_steered and not self._here <= self._called:
            raise hidden_stream("something else", self._vectors.shape[1])

    def end(self) -> None:
        """Stop steering."""
        if self._is_steered:
            self._rows.zero_()
        self._is_steered = False

    def add_to(self, stream: Tensor, layer: int) -> None:
        """Steer the residual stream [tokens, hidden] after a layer, in place."""
        self._called.add(layer)
        if self._may_skip and not (self._is_steered and layer in self._layers):
            return
        stream.add_(self._vectors.index_select(0, self._rows[layer, : len(stream)]))


def install(layers: Mapping[int, nn.Module], hidden_size: int) -> None:
    """Let layers call the operator; before they are compiled.

    Args:
        layers: of the decoder, by number.
        hidden_size: width of the residual stream.
    """
    for number, layer in layers.items():
        layer.forward = _steered(layer.forward, number, hidden_size)


def _steered(forward: Any, layer: int, hidden_size: int) -> Any:
    def steered(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if is_stream(output, hidden_size):
            hidden, residual = split(output, hidden_size)
            torch.ops.lm_eval_ext.steer_(hidden if residual is None else residual, layer)
        return output

    return steered


def _steer(stream: Tensor, layer: int) -> None:
    from vllm.forward_context import get_forward_context

    buffers = get_forward_context().no_compile_layers.get(NAME)
    if buffers is not None:
        buffers.add_to(stream, layer)


_LIBRARY = torch.library.Library("lm_eval_ext", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("steer_(Tensor(a!) stream, int layer) -> ()")  # type: ignore[no-untyped-call]
_LIBRARY.impl("steer_", _steer, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_LIBRARY._register_fake("steer_", lambda stream, layer: None)  # type: ignore[no-untyped-call]
