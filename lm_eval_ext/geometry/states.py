"""Hidden states of parallel texts at every layer, from one forward per distinct text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lm_eval_ext.errors import ModelError
from lm_eval_ext.steering.extraction import pooled_states

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lm_eval_ext.data.parallel import ParallelTexts
    from lm_eval_ext.steering.pooling import Pooling


def distinct(parallel: ParallelTexts) -> list[str]:
    """The distinct texts of all languages, each of which needs one forward."""
    return list(dict.fromkeys(text for texts in parallel.texts.values() for text in texts))


def hidden_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    parallel: ParallelTexts,
    layers: Sequence[int],
    pooling: Pooling,
    *,
    batch_size: int = 16,
    progress: Callable[[int], object] = lambda done: None,
) -> NDArray[np.float32]:
    """Pooled hidden states of all texts; a forward ends at the deepest layer.

    Args:
        model, tokenizer, layers, pooling, batch_size, progress: as for `extraction.extract`.
        parallel: the texts.

    Returns:
        [layers, languages, texts, hidden] in float32.

    Raises:
        DataError: a text without tokens, or longer than the model's context.
        ModelError: the hidden states are not finite.
        PlanError: a layer that the model does not have.
    """
    texts = distinct(parallel)
    by_text: NDArray[np.float32] | None = None
    for batch in pooled_states(
        model, tokenizer, texts, layers, pooling, where=parallel.name, batch_size=batch_size, progress=progress
    ):
        states = batch.states.numpy()
        if not np.isfinite(states).all():
            raise ModelError(f"the hidden states of {parallel.name} are not finite; use dtype bfloat16 or float32")
        if by_text is None:
            by_text = np.empty((len(layers), len(texts), states.shape[-1]), dtype=np.float32)
        by_text[:, batch.texts] = states
    assert by_text is not None  # there are texts
    index = {text: number for number, text in enumerate(texts)}
    rows = [[index[text] for text in of_language] for of_language in parallel.texts.values()]
    return by_text[:, rows]
