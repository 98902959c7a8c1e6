"""The splits for extracting vectors, choosing layers and testing: by question id, the same in every language.

- `dev1`: 100 ids whose two wordings (country named, not named) give the LOC vector; from questions that yield no item.
- `dev2`: a quarter of the ids that yield an item, for choosing layers.
- `test`: all others.

The parallel core are the questions that yield an item in all of the six non-English languages.

The table is frozen in `blend_tables/splits.tsv`, so that a question does not change its split when the rules of the items
change; `derive` is how it was computed.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from lm_eval_ext.data.blend.tables import rows
from lm_eval_ext.errors import DataError
from lm_eval_ext.languages import NON_ENGLISH

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DEV1, DEV2, TEST = "dev1", "dev2", "test"
#: Splits that hold items; `all` is both.
ITEM_SPLITS = (TEST, DEV2, "all")
DEV1_SIZE = 100
_DEV2_SHARE = 4
# A question of the core may have a one-vote gold in this many of the six languages.
_CORE_ONE_VOTE = 2


@cache
def table() -> dict[str, tuple[str, bool]]:
    """Question id -> (split, whether it is in the parallel core); ids that are not in the table are test."""
    return {question_id: (split, bool(core)) for question_id, split, core in rows("splits.tsv", 3)}


def of(question_id: str) -> str:
    """The split of a question."""
    return table().get(question_id, (TEST, False))[0]


@cache
def core() -> frozenset[str]:
    """The questions that yield an item in all of the six non-English languages."""
    return frozenset(question_id for question_id, (_, in_core) in table().items() if in_core)


def check_name(split: str) -> str:
    """The name of a split that holds items.

    Raises:
        DataError: unknown, or `dev1`, which is for extraction only.
    """
    if split not in ITEM_SPLITS:
        hint = "; dev1 holds pairs of wordings, not items: use pairs()" if split == DEV1 else ""
        raise DataError(f"unknown split {split!r} of blend; valid: {', '.join(ITEM_SPLITS)}{hint}")
    return split


def derive(
    votes: Mapping[str, Mapping[str, int]], worded: Iterable[str], order: Mapping[str, str]
) -> dict[str, tuple[str, bool]]:
    """The table: id -> (split, in the core).

    Args:
        votes: language -> id that yields an item in a draft -> votes for its gold.
        worded: ids with both wordings in every language.
        order: id -> a hash by which ids are drawn.
    """
    core_ids = {i for i in order if _in_core([votes[language].get(i, 0) for language in NON_ENGLISH])}
    min_votes = {i: 1 if i in core_ids else 2 for i in order}
    languages = {i: [code for code in sorted(votes) if votes[code].get(i, 0) >= min_votes[i]] for i in order}
    # First the questions without any item, then those with one in English only, which has the most items.
    candidates = sorted(worded, key=lambda i: (len(set(languages[i]) - {"en"}), len(languages[i]), order[i]))
    dev1 = set(candidates[:DEV1_SIZE])
    # Sorted by their languages, so that dev2 is a quarter of each language.
    remaining = sorted((i for i in order if languages[i] and i not in dev1), key=lambda i: (languages[i], order[i]))
    dev2 = set(remaining[::_DEV2_SHARE])
    return {i: (DEV1 if i in dev1 else DEV2 if i in dev2 else TEST, i in core_ids) for i in order}


def _in_core(votes: list[int]) -> bool:
    return min(votes) > 0 and votes.count(1) <= _CORE_ONE_VOTE
