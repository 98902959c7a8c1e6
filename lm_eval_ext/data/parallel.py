"""Corpora of parallel sentences, and the tasks that must not be evaluated after training on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_eval_ext.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Tasks made from a corpus, by the prefix of their names; they must not be evaluated after training on the corpus.
MADE_OF: dict[str, tuple[str, ...]] = {
    "flores": ("flores", "sib200", "belebele"),
    "ntrex": ("ntrex",),
    "mini": (),
    "gmmlu": ("gmmlu", "global_mmlu", "mmlu", "openai_mmlu", "mmmlu"),
}


def refuse_mixing(source: str, tasks: Sequence[str]) -> None:
    """Refuse tasks that are made from the training corpus (SIB-200 and Belebele are made from FLORES).

    Raises:
        DataError: one of the tasks is; the message names it.
    """
    names = MADE_OF.get(source, ())
    if mixed := [task for task in tasks if names and task.lower().replace("-", "").startswith(names)]:
        raise DataError(
            f"{', '.join(mixed)} has the sentences of {source}, which is trained on: leave it out, or train on another "
            f"corpus, such as {'ntrex' if source == 'flores' else 'flores'}"
        )
