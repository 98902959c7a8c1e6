"""The harness's `--use_cache` file under steering: its keys are request texts, which do not say what steered them."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import hash_args

from lm_eval_ext.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval.api.instance import Instance

_IDENTITY = "lm_eval_ext/steering"
_AMBIGUOUS = "lm_eval_ext/ambiguous"


class ResponseCache:
    """Checks that a response cache fits the steering of a run.

    Args:
        plan: the steering plan; empty for plain evaluation.
    """

    def __init__(self, plan: str) -> None:
        self._plan = plan
        self._store: Any = None

    def open(self, store: Any, identity: dict[str, Any]) -> None:
        """Accept a cache only if it was made under the same steering (None: there is no cache).

        Texts that several languages share (an option without its prompt) are not reused, since each language has its own
        vector.

        Raises:
            UserError: the cache was made by another model type while this one is steered, or under another steering.
        """
        self._store = store
        if store is None:
            return
        current = json.dumps(identity, sort_keys=True)
        stored = store.get(_IDENTITY)
        if stored is None and len(store) and self._plan:
            raise UserError(
                f"--use_cache: the cache {store.filename} holds unsteered responses of another run, and this run is "
                f"steered by {self._plan}. Give each steering a cache of its own"
            )
        if stored is not None and stored != current:
            raise UserError(
                f"--use_cache: the cache {store.filename} was made under another model or steering.\n"
                f"  cache: {stored}\n  now:   {current}\nGive each steering a cache of its own"
            )
        store[_IDENTITY] = current
        for key in store.pop(_AMBIGUOUS, []):
            store.pop(key, None)

    def note_ambiguous(self, kind: str, requests: Sequence[Instance], rows: Sequence[int]) -> None:
        """Record which responses must not be reused by later runs: their text does not determine the vector."""
        if self._store is None or not self._plan:
            return
        rows_of: dict[str, set[int]] = defaultdict(set)
        ambiguous: set[str] = set(self._store.get(_AMBIGUOUS, []))
        for request, row in zip(requests, rows, strict=True):
            key = hash_args(kind, request.args)
            rows_of[key].add(row)
            if request.args[0] == "" or len(rows_of[key]) > 1:
                ambiguous.add(key)
        self._store[_AMBIGUOUS] = sorted(ambiguous)
