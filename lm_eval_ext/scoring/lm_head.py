"""The LM head only where a token is scored, and log-probabilities without a log-softmax over the vocabulary."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn
    from transformers import PreTrainedModel

#: Most logits in the dtype of the softmax at a time: on a CPU 4 MiB in float32, which fit its cache; on a GPU enough to keep
#: it busy.
CPU_LOGITS, DEVICE_LOGITS = 2**20, 2**26

#: Log-probability of a token (natural logarithm), and whether it is the most likely one.
Token = tuple[float, bool]


def log_probabilities(logits: Tensor, places: list[int], tokens: list[int], dtype: torch.dtype) -> list[Token]:
    """Log-probability of each token at its place in `logits` [positions, vocabulary]; synchronises with the device once."""
    if not tokens:
        return []
    place, token = torch.tensor([places, tokens]).to(logits.device, non_blocking=True)
    return as_tokens([scores(logits, place, token, dtype)])


def scores(logits: Tensor, place: Tensor, token: Tensor, dtype: torch.dtype, *, greedy: bool = True) -> Tensor:
    """[2, tokens] in `dtype`: the log-probability of each token at its place, and 1 where it is the most likely one.

    Without `greedy` the second row is 0. Of equal logits the first is the most likely, as for the harness's argmax; `max`
    chooses the same and is several times faster than argmax in half precision.
    """
    values = logits[place, token].to(dtype) - logsumexp(logits, dtype)[place]
    hits = (logits.max(-1).indices[place] == token).to(dtype) if greedy else torch.zeros_like(values)
    return torch.stack([values, hits])


def as_tokens(parts: list[Tensor]) -> list[Token]:
    """The results of `scores`, concatenated; synchronises with the device."""
    values, hits = torch.cat(parts, dim=1).tolist()
    return list(zip(values, map(bool, hits), strict=True))


def logsumexp(logits: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """[positions] logarithm of the summed exponentials of `logits` [positions, vocabulary], computed in `dtype`.

    Slices of the positions go through one buffer, so that there is never a copy of all logits in `dtype`, and memory is
    allocated once: on a CPU allocating takes ten times as long as the sums.
    """
    positions, vocabulary = logits.shape
    max_logits = CPU_LOGITS if logits.device.type == "cpu" else DEVICE_LOGITS
    buffer = torch.empty(
        min(positions, max(1, max_logits // vocabulary)), vocabulary, dtype=dtype, device=logits.device
    )
    result = torch.empty(positions, dtype=dtype, device=logits.device)
    for start in range(0, positions, len(buffer)):
        part = buffer[: min(len(buffer), positions - start)].copy_(logits[start : start + len(buffer)])
        highest = part.amax(-1, keepdim=True)
        result[start : start + len(part)] = part.sub_(highest).exp_().sum(-1).log_() + highest[:, 0]
    return result


class ScoredPositions:
    """Restricts the LM head to the positions that score a token.

    Inside `only`, a pre-hook on the head gathers them from [batch, length, hidden] into [1, positions, hidden], so that
    whatever the model does to its logits afterwards (soft-capping, scaling) still happens. Where the head is not a module,
    or is not called, all logits are computed and the same positions are gathered afterwards.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._index: Tensor | None = None
        self._head = model.get_output_embeddings()

    @contextmanager
    def only(self, positions: list[tuple[int, int, int]], width: int) -> Iterator[None]:
        """Inside, the head computes the last `n` positions before `end` of row `i`, for each (i, end, n)."""
        index = [i * width + end - n + k for i, end, n in positions for k in range(n)]
        self._index = torch.tensor(index, dtype=torch.long)
        hook = None if self._head is None else self._head.register_forward_pre_hook(self._gather)
        try:
            yield
        finally:
            self._index = None
            if hook is not None:
                hook.remove()

    def _gather(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._index is None:
            return None
        return (self._take(inputs[0])[None], *inputs[1:])

    def scored(self, logits: Tensor) -> Tensor:
        """The logits [positions, vocabulary] of a forward that ran inside `only`; to be called inside `only`."""
        return logits[0] if self._index is None else self._take(logits)

    def _take(self, states: Tensor) -> Tensor:
        index, self._index = self._index, None
        assert index is not None
        return states.flatten(0, 1)[index.to(states.device, non_blocking=True)]
