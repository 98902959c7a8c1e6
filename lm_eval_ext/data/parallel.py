"""Parallel sentences to train on and to test on, that never mix.

Whether a sentence is held out is drawn from a hash of its English side: the same in every language, corpus and run, also for
sentences that occur twice.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from lm_eval_ext.data import pairs
from lm_eval_ext.data.instruct import SPLITS, Report, normal_form
from lm_eval_ext.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_ext.data.pairs import PairSet

#: Tasks made of a corpus' sentences, by how their names begin; they must not be evaluated after training on the corpus.
MADE_OF: dict[str, tuple[str, ...]] = {
    "flores": ("flores", "sib200", "belebele"),
    "ntrex": ("ntrex",),
    "mini": (),
    "gmmlu": ("gmmlu", "global_mmlu", "mmlu", "openai_mmlu", "mmmlu"),
}
#: One sentence in so many is held out (our default).
_HELD_OUT = 6


def load(source: str, wanted: Sequence[str], split: str | None = "train") -> tuple[list[PairSet], Report]:
    """Sentences in English (`Pair.positive`) and another language (`Pair.negative`), a set for each language but English.

    Args:
        source: `flores` (FLORES-200 devtest), `ntrex` (NTREX-128), `mini`, `gmmlu`, or a TSV file with the columns language,
            positive (English), negative.
        wanted: languages.
        split: `train`, `held_out`, or None for all.

    Raises:
        DataError: as `pairs.load`, or nothing is left for a language.
    """
    if split is not None and split not in SPLITS:
        raise DataError(f"unknown split {split!r}; valid: {', '.join(SPLITS)}")
    report = Report()
    found = []
    for whole in pairs.load("en", source, list(wanted)):
        seen: set[tuple[str, str]] = set()
        kept = []
        for pair in whole.pairs:
            if split is not None and (_held_out(pair.positive) != (split == "held_out")):
                report.leave_out(f"not in the split {split}", whole.language)
            elif normal_form(pair.positive) == normal_form(pair.negative):
                report.leave_out("the same text in both languages", whole.language)
            elif (key := (pair.positive, pair.negative)) in seen:
                report.leave_out("repeated", whole.language)
            else:
                seen.add(key)
                kept.append(pair)
        report.kept[whole.language] = len(kept)
        found.append(replace(whole, pairs=tuple(kept)))
    missing = [code for code in wanted if code != "en" and not report.kept[code]]
    if missing:
        raise DataError(f"{source} has no parallel sentences in {', '.join(missing)} for {split}. It has:\n{report}")
    return found, report


def refuse_mixing(source: str, tasks: Sequence[str]) -> None:
    """Refuse to evaluate on tasks that are made of the corpus that was trained on (SIB-200 and Belebele are FLORES).

    Raises:
        DataError: a task is; the message names it.
    """
    made = MADE_OF.get(source, ())
    if mixed := [task for task in tasks if made and task.lower().replace("-", "").startswith(made)]:
        raise DataError(
            f"{', '.join(mixed)} has the sentences of {source}, which is trained on: leave it out, or train on another "
            f"corpus, such as {'ntrex' if source == 'flores' else 'flores'}"
        )


def _held_out(english: str) -> bool:
    return int(hashlib.sha256(normal_form(english).encode()).hexdigest(), 16) % _HELD_OUT == 0
