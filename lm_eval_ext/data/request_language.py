"""The language of a request: from an axis file, else its document, else its task's metadata, else the user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_eval_ext import harness
from lm_eval_ext.data import axes
from lm_eval_ext.data.task_metadata import TaskMetadata
from lm_eval_ext.languages import normalise

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

#: Columns of a document, and the key of a task's metadata, that name its language; the first one present is used.
LANGUAGE_COLUMNS = ("language", "lang")
METADATA_KEY = "language"


def request_language(instance: Instance, default: str | None = None) -> str | None:
    """The language code of a request; `default` where nothing names one.

    Raises:
        DataError: an axis file is missing or damaged; the task's metadata has a language that is no text.
    """
    task = instance.task_name or ""
    metadata = harness.task_metadata(task) or {}
    if code := axes.document_language(task, metadata):
        return code
    document = instance.doc if isinstance(instance.doc, dict) else {}
    for column in LANGUAGE_COLUMNS:
        if isinstance(value := document.get(column), str) and value:
            return normalise(value)
    return TaskMetadata(task, metadata).language or default
