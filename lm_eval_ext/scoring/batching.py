"""Batches of rows of similar length within a budget that is halved whenever memory runs out."""

from __future__ import annotations

import heapq
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from lm_eval_ext.scoring.kv_cache import kv_bytes_per_token
from lm_eval_ext.steering.decoder import text_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from transformers import PreTrainedModel

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)

#: Tokens of a forward beyond which throughput no longer grows, on a CPU and on other devices (our defaults; on the CPU
#: measured with Gemma 3 270M: twice as many lose more to padding than the matrix products gain).
CPU_TOKENS, DEVICE_TOKENS = 1024, 16384

#: Share of the free memory that a forward may use.
MEMORY_SHARE = 0.4

#: Live activations of a token, in multiples of the residual stream: attention, the MLP, copies in float32.
_STREAMS = 32


@dataclass(frozen=True)
class RowCost:
    """The share of a forward's budget that one row uses.

    Attributes:
        rows: most rows; None for as many as the other limits allow.
        tokens: most tokens.
        free: bytes that may be used.
        token: bytes of a token's activations, keys and values.
        past: bytes of the keys and values of a token in the KV cache.
        scored: bytes of the logits of a scored position.
    """

    rows: int | None = None
    tokens: float = float("inf")
    free: float = 1.0
    token: float = 0.0
    past: float = 0.0
    scored: float = 0.0

    @classmethod
    def from_memory(cls, model: PreTrainedModel, rows: int | None = None) -> RowCost:
        """Limits from the memory that is free now."""
        text = text_config(model.config)
        weight = model.get_input_embeddings().weight
        itemsize = weight.element_size()
        kv_bytes = kv_bytes_per_token(model.config, itemsize)
        on_cuda = weight.device.type == "cuda"
        free = torch.cuda.mem_get_info(weight.device)[0] if on_cuda else psutil.virtual_memory().available
        return cls(
            rows,
            CPU_TOKENS if weight.device.type == "cpu" else DEVICE_TOKENS,
            MEMORY_SHARE * free,
            token=_STREAMS * text.hidden_size * itemsize + kv_bytes,
            past=2 * kv_bytes,  # gathered, and copied once more when the new ones are added
            scored=text.vocab_size * (itemsize + 4),
        )

    def __call__(self, tokens: int, scored: int, past: int = 0, per_row: int = 1) -> float:
        """Of a row of so many tokens, scored positions and tokens in the KV cache; `per_row` such rows count as one."""
        used = tokens * self.token + past * self.past + scored * self.scored
        rows = 0.0 if self.rows is None else 1 / (self.rows * per_row)
        return max(rows, tokens / self.tokens, used / self.free)


class Budget:
    """What one forward may use. It stays halved after memory ran out, so that later tasks do not run out again.

    Args:
        tokens: of one forward, with padding; None where batches are formed by `RowCost`, which counts more than tokens.
        memory: bytes kept from one forward for later ones; None where nothing is kept.

    Attributes:
        share: of the original budget that is left: 1, 1/2, 1/4, ...
    """

    def __init__(self, tokens: int | None = None, memory: int | None = None) -> None:
        self.share = 1.0
        self._tokens = tokens
        self._memory = memory

    @property
    def tokens(self) -> int:
        """Tokens of one forward, at least 1."""
        return max(1, int((self._tokens or 0) * self.share))

    @property
    def memory(self) -> int:
        """Bytes kept from one forward for later ones."""
        return int((self._memory or 0) * self.share)

    def run(
        self,
        items: Iterable[T],
        divide: Callable[[list[T], Budget], list[list[T]]],
        work: Callable[[list[T]], R],
    ) -> Iterator[tuple[list[T], R]]:
        """Each batch and the result of `work` on it. A batch that runs out of memory is divided again under half the budget.

        Args:
            items: all items.
            divide: forms batches within the budget, or of one item; the largest first, so that memory runs out early if at
                all. See `by_cost`.
            work: processes one batch.

        Raises:
            Exception: what `work` raises; out of memory only where a single item does not fit.
        """
        share, pending = self.share, deque(divide(list(items), self))
        while pending:
            if share != self.share:  # halved here, or by another run inside `work`
                share, pending = self.share, deque(divide([item for batch in pending for item in batch], self))
            batch = pending.popleft()
            try:
                result = work(batch)
            except Exception as error:
                # A single item can be tried with fewer tokens at a time only where tokens are limited.
                if not out_of_memory(error) or (len(batch) == 1 and self.tokens == 1):
                    raise
            else:
                yield batch, result
                continue
            pending.appendleft(batch)  # outside the `except` block, whose traceback keeps the tensors alive
            self._halve(batch, divide)

    def _halve(self, batch: list[T], divide: Callable[[list[T], Budget], list[list[T]]]) -> None:
        """Halve the budget until it allows no more than half of the batch."""
        self.share /= 2
        while len(batch) > 1 and max(map(len, divide(batch, self))) > (len(batch) + 1) // 2:
            self.share /= 2
        log.warning("Out of memory with %d rows in a forward: continuing with at most half of that", len(batch))
        clear_device_cache(garbage_collection=True)


def by_cost(cost: Callable[[T], float]) -> Callable[[list[T], Budget], list[list[T]]]:
    """Batches, for `Budget.run`, whose number of items times the highest cost is at most the budget's share."""

    def divide(items: list[T], budget: Budget) -> list[list[T]]:
        items = sorted(items, key=cost, reverse=True)
        batches: list[list[T]] = []
        start = 0
        while start < len(items):
            n = max(1, int(budget.share / cost(items[start]) + 1e-9))
            batches.append(items[start : start + n])
            start += n
        return batches

    return divide


def divide_by_cost(costs: Sequence[float], n: int) -> list[list[int]]:
    """The indices of items in `n` shares of nearly equal cost: the dearest first, each to the cheapest share so far."""
    shares: list[list[int]] = [[] for _ in range(n)]
    totals = [(0.0, share) for share in range(n)]  # a heap
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        total, share = heapq.heappop(totals)
        shares[share].append(index)
        heapq.heappush(totals, (total + costs[index], share))
    return shares


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the CPU ran out of memory."""
    return isinstance(error, MemoryError) or (isinstance(error, Exception) and should_reduce_batch_size(error))
