"""Cache salts: which requests may share what vLLM's prefix cache holds of them.

A cached block holds keys and values of tokens; it is found again by the tokens up to its end and the request's
`cache_salt`. Under steering they also depend on what was added at those tokens: on the plan's vectors for the language, and,
where the positions count from the prompt's end, on the length of the prompt. Two requests may have the same salt only if,
wherever their tokens agree up to the end of a block, they are steered at the same ones. Salts are chosen so, and prompts
with the same beginning (few-shot examples) share it even where their lengths differ.
"""

from __future__ import annotations

import hashlib
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import torch

from lm_eval_ext.backends.vllm.rows import is_covered
from lm_eval_ext.steering.table import UNSTEERED_ROW

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from lm_eval_ext.backends.vllm.rows import Steering
    from lm_eval_ext.steering.plan import Position

#: Positions that do not depend on where the prompt ends.
_FIXED = ("all",)

UNSTEERED = "lm_eval_ext/unsteered"


class Salts:
    """The salts of one plan's requests.

    Args:
        identity: hash of the steering table.
        positions: of its steps.
        block: tokens of a block, or a number that divides it.
    """

    def __init__(self, identity: str, positions: Collection[Position], block: int) -> None:
        self._identity = identity
        self._positions = sorted(positions)
        self._block = block
        self._depends_on_length = any(position not in _FIXED for position in positions)
        self._steered: dict[tuple[str, bytes], bytes] = {}

    def of(self, tokens: Sequence[int], steering: Steering) -> str:
        """The salt of a request, given its tokens."""
        if steering.row == UNSTEERED_ROW:
            return UNSTEERED
        salt = f"lm_eval_ext/{self._identity}/{steering.row}"
        if not self._depends_on_length:
            return salt
        if steering.generates:  # blocks of generated tokens are cached too, and those are not known yet
            return f"{salt}/generate/{steering.prompt_length}"
        blocks = self._blocks(tokens, steering)
        return next(name for number in count() if self._admits(name := f"{salt}/{number}", blocks))

    def _blocks(self, tokens: Sequence[int], steering: Steering) -> list[tuple[bytes, bytes]]:
        """Of each full block a hash of the tokens up to its end, and one of which of them are steered."""
        ids = np.asarray(tokens, dtype=np.int64)
        index = torch.arange(len(ids))
        end = torch.full_like(index, steering.prompt_length)
        never = torch.zeros_like(index, dtype=torch.bool)
        marks = np.stack([is_covered(position, index, end, never).numpy() for position in self._positions], axis=1)
        of_tokens, of_marks = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=8)
        blocks = []
        for start in range(0, len(ids) - self._block + 1, self._block):
            of_tokens.update(ids[start : start + self._block].tobytes())
            of_marks.update(marks[start : start + self._block].tobytes())
            blocks.append((of_tokens.digest(), of_marks.digest()))
        return blocks

    def _admits(self, salt: str, blocks: list[tuple[bytes, bytes]]) -> bool:
        """Whether nothing cached under `salt` contradicts the blocks; they are then cached under it."""
        if any(self._steered.get((salt, tokens), marks) != marks for tokens, marks in blocks):
            return False
        self._steered.update({(salt, tokens): marks for tokens, marks in blocks})
        return True
