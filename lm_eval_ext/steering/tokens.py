"""Which tokens of a forward are steered, by position: `prompt`, `last`, `all`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_ext.steering.plan import Position


class Tokens(Protocol):
    """Which tokens of a forward are steered."""

    def mask(self, position: Position, offset: int, length: int) -> Tensor | bool:
        """For `length` tokens from absolute index `offset`: True for all, False for none, or a mask [batch, length]."""


@dataclass(frozen=True)
class ScoredTokens:
    """Tokens of a scoring forward: the prompt of row i is `start[i]` to `end[i]` (exclusive), the rest options or padding.

    `last` is the prompt's last token only: scoring generates nothing, and the tokens of an option are not steered.
    """

    start: Tensor
    end: Tensor

    def mask(self, position: Position, offset: int, length: int) -> Tensor | bool:
        """See `Tokens.mask`."""
        if position == "all":
            return True
        index = torch.arange(offset, offset + length, device=self.end.device)
        end = self.end[:, None]
        return index == end - 1 if position == "last" else (index >= self.start[:, None]) & (index < end)


@dataclass(frozen=True)
class OptionTokens:
    """Tokens of options whose prompt is in the KV cache: only `all` steers them."""

    def mask(self, position: Position, offset: int, length: int) -> Tensor | bool:
        """See `Tokens.mask`."""
        return position == "all"


@dataclass(frozen=True)
class GeneratedTokens:
    """Tokens of a generation, or of a forward, whose prompts have the attention mask `prompt` [batch, prompt length]."""

    prompt: Tensor

    @cached_property
    def _last(self) -> Tensor:
        """[batch, 1] index of the last token of each prompt: the last column where prompts are padded on the left."""
        index = torch.arange(self.prompt.shape[1], device=self.prompt.device)
        return (index * self.prompt.bool()).amax(1, keepdim=True)

    def mask(self, position: Position, offset: int, length: int) -> Tensor | bool:
        """See `Tokens.mask`. `last` covers the last prompt token and everything generated after it."""
        if position == "all":
            return True
        width = self.prompt.shape[1]
        if offset >= width:
            return position == "last"
        index = torch.arange(offset, offset + length, device=self.prompt.device)
        if position == "last":
            return (index == self._last) | (index >= width)
        padded = torch.nn.functional.pad(self.prompt, (0, max(0, offset + length - width)))
        return padded[:, offset : offset + length].bool()
