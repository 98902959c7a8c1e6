"""The splits for extracting vectors, choosing layers and testing: by question id, the same in every language.

- `dev1`: 100 ids whose two wordings (country named, not named) give the LOC vector; no item is made of them.
- `dev2`: about a quarter of the ids that yield an item, for choosing layers.
- `test`: all others.

Questions of one cluster (`duplicates`) are in one split. The core are the questions that yield an item in at least
four of the six non-English languages.

The table is frozen in `blend_tables/splits.tsv`, so that a question does not change its split when the rules of the items
change. It was drawn by hash for version 1 of the items, and changed once, for 3.0: clusters that crossed splits were
joined, and the ids that dev1 lost were replaced by questions without an item.
"""

from __future__ import annotations

from functools import cache

from lm_eval_ext.data.blend.tables import rows
from lm_eval_ext.errors import DataError

DEV1, DEV2, TEST = "dev1", "dev2", "test"
#: Splits that hold items; `all` is both.
ITEM_SPLITS = (TEST, DEV2, "all")
DEV1_SIZE = 100
#: A question is in the core if so many of the six non-English languages have an item of it.
CORE_LANGUAGES = 4


@cache
def table() -> dict[str, tuple[str, bool]]:
    """Question id -> (split, whether it is in the core); ids that are not in the table are test."""
    return {question_id: (split, bool(core)) for question_id, split, core in rows("splits.tsv", 3)}


def of(question_id: str) -> str:
    """The split of a question."""
    return table().get(question_id, (TEST, False))[0]


@cache
def core() -> frozenset[str]:
    """The questions that yield an item in at least four of the six non-English languages."""
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
