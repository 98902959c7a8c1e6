"""A choice of documents by their columns: `universal=false`, `topic=Food,Sport`.

A condition applies to the tasks whose documents have its column; documents of other tasks (those of the other axis) are
all kept. Values are compared as text, without case.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lm_eval_ext.errors import ResultsError
from lm_eval_ext.results.samples import document_columns

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

    from lm_eval_ext.results.run import Run


@dataclass(frozen=True)
class Condition:
    """A column of the documents and the values to keep, in lower case."""

    column: str
    values: frozenset[str]

    def __str__(self) -> str:
        return f"{self.column}={','.join(sorted(self.values))}"

    def keeps(self, document: dict[str, Any]) -> bool:
        """Whether a document without the column, or with one of the values, is kept."""
        return self.column not in document or str(document[self.column]).lower() in self.values


def parse(conditions: Iterable[str]) -> tuple[Condition, ...]:
    """Conditions of the form `column=value` or `column=value,value`; all must hold.

    Raises:
        ResultsError: not of this form.
    """
    parsed = []
    for text in conditions:
        column, equals, values = text.partition("=")
        named = frozenset(value.strip().lower() for value in values.split(",") if value.strip())
        if not column.strip() or not equals or not named:
            raise ResultsError(
                f"invalid condition {text!r}: it must be COLUMN=VALUE or COLUMN=VALUE,VALUE, such as universal=false"
            )
        parsed.append(Condition(column.strip(), named))
    return tuple(parsed)


def check(conditions: Sequence[Condition], run: Run, tasks: Collection[str]) -> None:
    """Every condition must apply to some documents.

    Raises:
        ResultsError: no document of these tasks has the column, or none has one of the values.
    """
    documents = [document for task in tasks if task in run.tasks for document in _documents(run, task).values()]
    for condition in conditions:
        values = {str(document[condition.column]) for document in documents if condition.column in document}
        if not values:
            columns = sorted({column for document in documents for column in document})
            raise ResultsError(
                f"no document of run {run.name!r} has the column {condition.column!r}; "
                f"columns: {', '.join(columns) or 'none'}"
            )
        if not condition.values & {value.lower() for value in values}:
            valid = ", ".join(sorted(values)[:20])
            raise ResultsError(
                f"no document of run {run.name!r} has {condition}; values of {condition.column}: {valid}"
            )


def kept(conditions: Sequence[Condition], run: Run, task: str) -> set[str]:
    """Hashes of the documents of a task for which all conditions hold."""
    documents = _documents(run, task)
    return {key for key, document in documents.items() if all(condition.keeps(document) for condition in conditions)}


def _documents(run: Run, task: str) -> dict[str, dict[str, Any]]:
    samples = run.tasks[task].samples
    return _read(samples, samples.stat().st_mtime_ns) if samples else {}


@lru_cache(maxsize=256)
def _read(samples: Path, _changed: int) -> dict[str, dict[str, Any]]:
    return dict(document_columns(samples))
