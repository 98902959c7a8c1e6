"""How much goes into one forward: rows of similar length up to a budget, which is halved whenever memory runs out."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

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
        text = getattr(model.config, "get_text_config", lambda: model.config)()
        weight = model.get_input_embeddings().weight
        width, bytes_ = text.hidden_size * weight.element_size(), weight.element_size()
        heads = getattr(text, "num_attention_heads", 1)
        share = min(1.0, (getattr(text, "num_key_value_heads", None) or heads) / heads)
        kept = 2 * text.num_hidden_layers * width * share
        on_cuda = weight.device.type == "cuda"
        free = torch.cuda.mem_get_info(weight.device)[0] if on_cuda else psutil.virtual_memory().available
        return cls(
            rows,
            CPU_TOKENS if weight.device.type == "cpu" else DEVICE_TOKENS,
            MEMORY_SHARE * free,
            token=_STREAMS * width + kept,
            past=2 * kept,  # gathered, and copied once more when the new ones are added
            scored=text.vocab_size * (bytes_ + 4),
        )

    def __call__(self, tokens: int, scored: int, past: int = 0, per_row: int = 1) -> float:
        """Of a row of so many tokens, scored positions and tokens of the past; `per_row` of them count as one row."""
        spent = tokens * self.token + past * self.past + scored * self.scored
        rows = 0.0 if self.rows is None else 1 / (self.rows * per_row)
        return max(rows, tokens / self.tokens, spent / self.free)


class Budget:
    """Forms batches of which each costs at most `limit`: the number of items times the cost of the dearest.

    Halved for good when a batch runs out of memory, so that what was learnt from one task serves the next.
    """

    def __init__(self, limit: float = 1.0) -> None:
        self.limit = limit

    def run(
        self, items: Iterable[T], cost: Callable[[T], float], work: Callable[[list[T]], R]
    ) -> Iterator[tuple[list[T], R]]:
        """Each batch and what `work` makes of it, the dearest items first: what runs out of memory does so at once.

        Raises:
            Exception: what `work` raises; being out of memory only where one item alone is too much.
        """
        pending = deque(sorted(items, key=cost, reverse=True))
        while pending:
            batch = self._take(pending, cost)
            try:
                done = work(batch)
            except Exception as error:
                if not out_of_memory(error) or len(batch) == 1:
                    raise
            else:
                yield batch, done
                continue
            pending.extendleft(reversed(batch))  # outside of `except`, whose traceback holds the tensors
            self._halve(len(batch) * cost(batch[0]), len(batch))

    def _take(self, pending: deque[T], cost: Callable[[T], float]) -> list[T]:
        n = max(1, int(self.limit / cost(pending[0]) + 1e-9))
        return [pending.popleft() for _ in range(min(n, len(pending)))]

    def _halve(self, tried: float, n: int) -> None:
        self.limit = min(self.limit, tried) / 2
        log.warning("Out of memory with %d rows in a forward: going on with half of that", n)
        clear_device_cache(garbage_collection=True)


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the CPU could not give the memory asked for."""
    return isinstance(error, MemoryError) or (isinstance(error, Exception) and should_reduce_batch_size(error))
