"""How much goes into one forward: rows of similar length up to a budget, which is halved whenever memory runs out."""

from __future__ import annotations

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
    from collections.abc import Callable, Iterable, Iterator

    from transformers import PreTrainedModel

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)

#: Tokens of a forward beyond which more of them are no quicker, on a CPU and on anything else (our defaults; on the CPU
#: measured with Gemma 3 270M: twice as many cost more in padding than the matrix products gain).
CPU_TOKENS, DEVICE_TOKENS = 1024, 16384

#: Share of the free memory that a forward may take.
MEMORY_SHARE = 0.4

#: Live activations of a token, in residual streams: attention, the wide layer of an MLP, copies in float32.
_STREAMS = 32


@dataclass(frozen=True)
class RowCost:
    """The share of a forward's budget that one row takes.

    Attributes:
        rows: most rows; None for as many as the others allow.
        tokens: most tokens.
        free: bytes to spend.
        token: bytes of a token's activations, keys and values.
        past: bytes of the keys and values of a token computed before.
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
        """What the memory that is free now allows."""
        text = text_config(model.config)
        weight = model.get_input_embeddings().weight
        itemsize = weight.element_size()
        kept = kv_bytes_per_token(model.config, itemsize)
        on_cuda = weight.device.type == "cuda"
        free = torch.cuda.mem_get_info(weight.device)[0] if on_cuda else psutil.virtual_memory().available
        return cls(
            rows,
            CPU_TOKENS if weight.device.type == "cpu" else DEVICE_TOKENS,
            MEMORY_SHARE * free,
            token=_STREAMS * text.hidden_size * itemsize + kept,
            past=2 * kept,  # gathered, and copied once more when the new ones are added
            scored=text.vocab_size * (itemsize + 4),
        )

    def __call__(self, tokens: int, scored: int, past: int = 0, per_row: int = 1) -> float:
        """Of a row of so many tokens, scored positions and tokens of the past; `per_row` of them count as one row."""
        spent = tokens * self.token + past * self.past + scored * self.scored
        rows = 0.0 if self.rows is None else 1 / (self.rows * per_row)
        return max(rows, tokens / self.tokens, spent / self.free)


class Budget:
    """What one forward may use; halved for good when memory runs out, so that what was learnt from one task serves the next.

    Args:
        tokens: of one forward, with padding. None where batches are formed by `RowCost`, which counts more than tokens.
        memory: bytes kept from one forward for later ones; None where nothing is.

    Attributes:
        share: of what was given that is left: 1, 1/2, 1/4, ...
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
        """Each batch and what `work` makes of it. A batch that runs out of memory is divided again under half the budget.

        Args:
            items: to be worked on.
            divide: forms batches of at most the budget, or of one item; the largest first, so that what runs out of memory
                does so at once. See `by_cost`.
            work: done with each batch.

        Raises:
            Exception: what `work` raises; being out of memory only where one item alone is too much.
        """
        share, pending = self.share, deque(divide(list(items), self))
        while pending:
            if share != self.share:  # halved here, or by another run inside `work`
                share, pending = self.share, deque(divide([item for batch in pending for item in batch], self))
            batch = pending.popleft()
            try:
                done = work(batch)
            except Exception as error:
                # One item can be worked on with fewer tokens at a time only where they are limited.
                if not out_of_memory(error) or (len(batch) == 1 and self.tokens == 1):
                    raise
            else:
                yield batch, done
                continue
            pending.appendleft(batch)  # outside of `except`, whose traceback holds the tensors
            self._halve(batch, divide)

    def _halve(self, batch: list[T], divide: Callable[[list[T], Budget], list[list[T]]]) -> None:
        """Halve the budget until it allows no more than half of the batch."""
        self.share /= 2
        while len(batch) > 1 and max(map(len, divide(batch, self))) > (len(batch) + 1) // 2:
            self.share /= 2
        log.warning("Out of memory with %d rows in a forward: going on with half of that", len(batch))
        clear_device_cache(garbage_collection=True)


def by_cost(cost: Callable[[T], float]) -> Callable[[list[T], Budget], list[list[T]]]:
    """Batches, for `Budget.run`, whose number of items times the cost of the dearest is at most the budget's share."""

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


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the CPU could not give the memory asked for."""
    return isinstance(error, MemoryError) or (isinstance(error, Exception) and should_reduce_batch_size(error))
