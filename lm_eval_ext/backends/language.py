"""The language of a request: what its document says, else its task, else the user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_eval_ext import harness
from lm_eval_ext.languages import normalise

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

#: Columns of a document, and the key of a task's metadata, that name its language; the first that is there counts.
LANGUAGE_COLUMNS = ("language", "lang")
METADATA_KEY = "language"


def request_language(instance: Instance, default: str | None = None) -> str | None:
    """Its document's column, its task's metadata, or `default`."""
    document = instance.doc if isinstance(instance.doc, dict) else {}
    for column in LANGUAGE_COLUMNS:
        if isinstance(value := document.get(column), str) and value:
            return normalise(value)
    named = (harness.task_metadata(instance.task_name or "") or {}).get(METADATA_KEY)
    return normalise(str(named)) if named else default
