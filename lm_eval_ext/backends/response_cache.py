"""The harness's `--use_cache` file: its keys are request texts, which say neither what answered them nor what steered it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import hash_args

from lm_eval_ext import harness
from lm_eval_ext.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lm_eval.api.instance import Instance

_IDENTITY = "lm_eval_ext/steering"

#: Under this name, the row of the steering table of each stored response.
_ROWS = "lm_eval_ext/rows"

#: The row of a response whose text was asked under several rows: never reused.
_SEVERAL = -1


class ResponseCache:
    """Checks that the responses of a cache are those that this run would compute.

    Args:
        plan: the steering plan; empty for plain evaluation.
    """

    def __init__(self, plan: str) -> None:
        self._plan = plan
        self._store: Any = None

    @property
    def is_open(self) -> bool:
        """Whether there is a cache."""
        return self._store is not None

    def open(self, store: Any, identity: dict[str, Any]) -> None:
        """Accept a cache only if it was made by the same model under the same steering (None: there is no cache).

        Raises:
            UserError: it was made by another model or under another steering, or it does not say by which.
        """
        self._store = store
        if store is None:
            return
        stored = store.get(_IDENTITY)
        if stored is None and len(store):
            raise UserError(
                f"--use_cache: the cache {store.filename} does not say which model and which steering its responses are "
                "of: those of another model type (hf) depend on dtype, weights and tokenizer too. Give this run a cache "
                "of its own"
            )
        current = json.dumps(identity, sort_keys=True)
        if stored is not None and stored != current:
            raise UserError(
                f"--use_cache: the cache {store.filename} was made under another model or steering:\n"
                + "\n".join(_differences(json.loads(stored), json.loads(current)))
                + "\nGive each model and each steering a cache of its own"
            )
        store[_IDENTITY] = current
        if not harness.looks_up_by_row():  # then nothing forgets a response of another language
            for key in store.pop(_ROWS, {}):
                store.pop(key, None)

    def forget(self, kind: str, requests: Sequence[Instance], rows: Sequence[int]) -> None:
        """Remove what the harness would reuse for these requests though it was steered otherwise.

        Args:
            kind: name of the harness's method, such as `loglikelihood`.
            requests: about to be looked up.
            rows: of the steering table, of each request.
        """
        if self._store is None or not self._plan:
            return
        stored: dict[str, int] = self._store.get(_ROWS, {})
        for key, row in self._rows(kind, requests, rows).items():
            if stored.get(key, row) != row or row == _SEVERAL:
                self._store.pop(key, None)

    def note(self, kind: str, requests: Sequence[Instance], rows: Sequence[int]) -> None:
        """Record how the responses that are about to be computed are steered. Arguments as of `forget`."""
        if self._store is not None and self._plan:
            self._store[_ROWS] = self._store.get(_ROWS, {}) | self._rows(kind, requests, rows)

    @staticmethod
    def _rows(kind: str, requests: Sequence[Instance], rows: Sequence[int]) -> dict[str, int]:
        row_of: dict[str, int] = {}
        for request, row in zip(requests, rows, strict=True):
            key = hash_args(kind, request.args)
            row_of[key] = row if row_of.get(key, row) == row else _SEVERAL
        return row_of


def _differences(stored: dict[str, Any], current: dict[str, Any]) -> Iterator[str]:
    for name in sorted(stored.keys() | current.keys()):
        before, now = (of.get(name, "not recorded") for of in (stored, current))
        if before != now:
            yield f"  {name}: {before!r} in the cache, now {now!r}"
