"""Which tokens of a forward are steered, by position: `prompt`, `last`, `all`, `last3`, `first2`, `generated`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch

from lm_eval_ext.steering.plan import n_first, n_last

if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_ext.steering.plan import Position


class Tokens(Protocol):
    """Which tokens of a forward are steered."""

    def mask(self, position: Position, offset: int, length: int) -> Tensor | bool:
        """For `length` tokens from absolute index `offset`: True for all, False for none, or a mask [batch, length]."""


def mask_between(position: Position, index: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Whether tokens are steered, by their index and where their prompt is; the three broadcast.

    Args:
        position: any but `all`.
        index: of the tokens.
        start, end: index of the prompt's first token, and of the first after it.
    """
    if position == "generated":
        return index >= end
    in_prompt = (index >= start) & (index < end)
    if count := n_last(position):
        return in_prompt & (index >= end - count)
    if count := n_first(position):
        return in_prompt & (index < start + count)
    return in_prompt


@dataclass(frozen=True)
class ScoredTokens:
    """Tokens of a scoring forward: the prompt of row i is `start[i]` to `end[i]` (exclusive), the rest options or padding.

    `last` is the prompt's last token only, `last3` its last three: scoring generates nothing, and the tokens of an option
    are steered by `all` and `generated` only. `start` is negative where the prompt began in an earlier forward, whose
    keys and values are in the KV cache.
    """

    start: Tensor
    end: Tensor

    def mask(self, position: Position, offset: int, length: int) -> Tensor | bool:
        """See `Tokens.mask`."""
        if position == "all":
            return True
        index = torch.arange(offset, offset + length, device=self.end.device)
        return mask_between(position, index, self.start[:, None], self.end[:, None])


@dataclass(frozen=True)
class OptionTokens:
    """Tokens of options whose prompt is in the KV cache: only `all` and `generated` steer them."""

    def mask(self, position: Position, offset: int, length: int) -> Tensor | bool:
        """See `Tokens.mask`."""
        return position in ("all", "generated")


@dataclass(frozen=True)
class GeneratedTokens:
    """Tokens of a generation, or of a forward, whose prompts have the attention mask `prompt` [batch, prompt length]."""

    prompt: Tensor

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        """[batch, 1] index of the first token of each prompt, and of the first after it, wherever the padding is."""
        width = self.prompt.shape[1]
        index = torch.arange(width, device=self.prompt.device)
        real = self.prompt.bool()
        first = torch.where(real, index, width).amin(1, keepdim=True)
        return first, torch.where(real, index, -1).amax(1, keepdim=True) + 1

    def mask(self, position: Position, offset: int, length: int) -> Tensor | bool:
        """See `Tokens.mask`. `last` covers the last prompt token and everything generated after it; so does `last3`."""
        if position == "all":
            return True
        width = self.prompt.shape[1]
        goes_on = position == "generated" or n_last(position) > 0
        if offset >= width:
            return goes_on
        index = torch.arange(offset, offset + length, device=self.prompt.device)
        if goes_on or n_first(position):
            is_generated = (index >= width)[None].expand(len(self.prompt), -1)
            if position == "generated":
                return is_generated
            start, end = self._ends
            steered = mask_between(position, index, start, end)
            return steered | is_generated if goes_on else steered
        padded = torch.nn.functional.pad(self.prompt, (0, max(0, offset + length - width)))
        return padded[:, offset : offset + length].bool()


@dataclass(frozen=True)
class DecodedTokens:
    """Tokens of a generation after its prompts: those before them are in the KV cache."""

    def mask(self, position: Position, offset: int, length: int) -> Tensor | bool:
        """See `Tokens.mask`. `last` and `last3` cover what is generated after the prompt's last token."""
        return position in ("all", "generated") or n_last(position) > 0
