"""Which row of the steering table each token of vLLM's batch takes.

vLLM runs the tokens of several requests in one flat batch, of each request those that are scheduled: a whole prompt, a chunk
of one, a tail whose beginning is in the KV cache, or one generated token. A request carries the row of its language and the
length of its prompt (`Steering`); with the index of its first scheduled token, that says all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from lm_eval_ext.steering.plan import n_last
from lm_eval_ext.steering.table import UNSTEERED_ROW
from lm_eval_ext.steering.tokens import mask_between

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from lm_eval_ext.steering.plan import Position


class Steering(NamedTuple):
    """How one request is steered.

    Attributes:
        row: of the steering table.
        prompt_length: how many of its tokens are the prompt; those after it are an option's, or generated.
        generates: whether what follows is generated; `last` then covers it, as in `steering.tokens.GeneratedTokens`.
    """

    row: int
    prompt_length: int
    generates: bool = False


class Scheduled(NamedTuple):
    """The tokens of one request in a batch: `n_tokens` from its token `first`, 0-based."""

    steering: Steering
    first: int
    n_tokens: int


def token_rows(batch: Sequence[Scheduled], positions: Iterable[Position]) -> dict[Position, Tensor]:
    """For each position the row of every token [tokens]; row 0, which changes nothing, where the position leaves it out.

    Args:
        batch: requests in the order of their tokens.
        positions: of the table's steps.
    """
    counts = torch.tensor([scheduled.n_tokens for scheduled in batch], dtype=torch.long)

    def by_token(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long).repeat_interleave(counts)

    starts = (counts.cumsum(0) - counts).tolist()
    offset = by_token([scheduled.first - start for scheduled, start in zip(batch, starts, strict=True)])
    index = offset + torch.arange(len(offset))
    rows = by_token([scheduled.steering.row for scheduled in batch])
    end = by_token([scheduled.steering.prompt_length for scheduled in batch])
    generates = by_token([int(scheduled.steering.generates) for scheduled in batch]).bool()
    unsteered = torch.full_like(rows, UNSTEERED_ROW)
    return {
        position: torch.where(is_covered(position, index, end, generates), rows, unsteered) for position in positions
    }


def is_covered(position: Position, index: Tensor, end: Tensor, generates: Tensor) -> Tensor:
    """Whether tokens are steered at a position; the tensors broadcast.

    Args:
        position: of a plan.
        index: of each token in its sequence.
        end: length of its prompt.
        generates: whether tokens after the prompt are generated.
    """
    if position == "all":
        return torch.ones_like(index, dtype=torch.bool)
    covered = mask_between(position, index, torch.zeros_like(end), end)
    return covered | (generates & (index >= end)) if n_last(position) else covered
