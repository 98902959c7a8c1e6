"""The row of the steering table for each prompt that the harness generates from.

The harness sorts and batches prompts itself and passes on their texts only, so that rows are looked up by text. A prompt
whose row cannot be looked up is an error; it is never generated from without steering.
"""

from __future__ import annotations

from collections import defaultdict
from importlib.metadata import version
from typing import TYPE_CHECKING

from transformers import LogitsProcessor

from lm_eval_ext.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class SteeredGeneration:
    """One call of the harness's `generate_until`, in which each text has one row.

    Args:
        row_of: the row of each text.
        indices: of the requests in this call.
    """

    def __init__(self, row_of: dict[str, int], indices: list[int]) -> None:
        self.indices = indices
        self._row_of = row_of
        self._batch: list[int] | None = None
        self._n_generated = 0

    @classmethod
    def divide(cls, texts: Sequence[str], rows: Sequence[int]) -> list[SteeredGeneration]:
        """The fewest calls in which each text has one row."""
        rows_of: dict[str, list[int]] = defaultdict(list)
        calls: list[SteeredGeneration] = []
        for index, (text, row) in enumerate(zip(texts, rows, strict=True)):
            if row not in rows_of[text]:
                rows_of[text].append(row)
            number = rows_of[text].index(row)
            if number == len(calls):
                calls.append(cls({}, []))
            calls[number]._row_of[text] = row
            calls[number].indices.append(index)
        return calls

    def begin(self, texts: Sequence[str]) -> None:
        """Look up the rows of a batch that the harness tokenises.

        Raises:
            ModelError: an unknown prompt, or a second batch before the first was generated from.
        """
        if self._batch is not None:
            raise _lost("tokenised two batches before it generated from the first")
        if unknown := [text for text in texts if text not in self._row_of]:
            raise _lost(f"changed a prompt on its way to the model: {unknown[0][:100]!r} was not requested")
        self._batch = [self._row_of[text] for text in texts]

    def take(self, n: int) -> list[int]:
        """The rows of the batch that the harness generates from.

        Raises:
            ModelError: no batch was tokenised, or one with another number of prompts.
        """
        rows, self._batch = self._batch, None
        if rows is None or len(rows) != n:
            raise _lost(f"generates from {n} prompts and tokenised {len(rows or [])}")
        self._n_generated += n
        return rows

    def check_complete(self) -> None:
        """Make sure that every prompt was generated from with its row.

        Raises:
            ModelError: some were not.
        """
        if self._n_generated < len(self.indices):
            raise _lost(f"generated from {len(self.indices) - self._n_generated} prompts without tokenising them")


class NotANumberWatch(LogitsProcessor):  # type: ignore[misc]
    """Notes the rows of a generation whose logits were NaN at some step, without waiting for the device."""

    def __init__(self) -> None:
        self._seen: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Called by transformers with the logits [rows, vocabulary] of each step; returns them unchanged."""
        seen = scores.isnan().any(-1)
        self._seen = seen if self._seen is None else self._seen | seen
        return scores

    def rows(self, n: int) -> list[int]:
        """The rows of a batch of `n` prompts; transformers interleaves their beams."""
        if self._seen is None:
            return []
        return self._seen.view(n, -1).any(-1).nonzero()[:, 0].tolist()


def _lost(what: str) -> ModelError:
    return ModelError(
        f"internal error: the language of a prompt was lost, because lm_eval {version('lm_eval')} {what}. Steered "
        "generation does not work with this release: use lm_eval 0.4.13, and report it to lm_eval_ext"
    )
