"""Scores by any column of the documents (subject, category, topic, language), from the samples that the harness saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lm_eval_ext.errors import ResultsError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Share(NamedTuple):
    """The score of one run on one group of documents, with its 95% Wilson interval.

    Attributes:
        values: of the columns asked for.
        n: documents.
    """

    run: str
    values: tuple[str, ...]
    n: int
    score: float
    low: float
    high: float


def shares(
    results: Path, task: str, by: Sequence[str], metric: str = "acc", notes: list[str] | None = None
) -> list[Share]:
    """The mean of a 0/1 score for every combination of values of the documents' columns, per run.

    Args:
        results: a folder of result files.
        task: a task, or a group or family, whose documents are taken together.
        by: columns of the documents, such as `subject`.
        metric: the score, `metric` or `metric,filter`.
        notes: filled with what a reader should know, such as documents that stand in the samples twice.

    Raises:
        ResultsError: no results or samples of the task, no such column, or no such score of 0 or 1.
    """
    from lm_eval_ext.data import sources
    from lm_eval_ext.results.axes import find_axis
    from lm_eval_ext.results.runs import load

    runs = load(results).runs
    axis = find_axis(task, runs, metric)
    tasks, metric = axis.tasks, axis.metric
    scores: dict[tuple[str, tuple[str, ...]], list[float]] = {}
    scored_by: set[str] = set()
    for run in runs:
        documents, n_doubled, filters = set[tuple[str, str]](), 0, set[str]()
        for record in (run.tasks[name] for name in tasks if name in run.tasks):
            if record.samples is None:
                raise ResultsError(f"{record.results} has no samples of {record.task}: run lm_eval with --log_samples")
            seen: set[tuple[str, str]] = set()
            for sample in sources.read_jsonl(record.samples):
                document = sample.get("doc")
                document = document if isinstance(document, dict) else {}
                if missing := [column for column in by if column not in document]:
                    valid = ", ".join(document) or "none"
                    raise ResultsError(f"the documents of {record.task} have no {', '.join(missing)}; columns: {valid}")
                scored_by.update(sample.get("metrics") or ())
                if not isinstance(score := sample.get(metric), (int, float)):
                    continue  # a metric may leave documents out
                if score not in (0, 1):
                    raise ResultsError(
                        f"{record.task}: {metric} is {score} in a document; a share and its interval need scores of 0 or 1"
                    )
                used = str(sample.get("filter"))
                if axis.filter is not None and used != axis.filter:
                    continue
                filters.add(used)
                if len(filters) > 1:
                    raise ResultsError(
                        f"{task} has {metric!r} under several filters, which would count its documents more than once; "
                        f"name one: {', '.join(f'{metric},{name}' for name in sorted(filters))}"
                    )
                number, text = str(sample.get("doc_id")), str(sample.get("doc_hash"))
                if (number, text) in seen:
                    raise ResultsError(f"{record.samples}: document {number} stands here twice; evaluate again")
                seen.add((number, text))
                n_doubled += (record.task, text) in documents
                documents.add((record.task, text))
                values = tuple(str(document[column]) for column in by)
                scores.setdefault((run.name, values), []).append(float(score))
        if n_doubled and notes is not None:
            notes.append(f"run {run.name!r}: {n_doubled} documents stand in a task more than once, and count each time")
    if not scores:
        raise ResultsError(
            f"{task} was not scored by {metric!r}; its metrics: {', '.join(sorted(scored_by)) or 'none'}"
        )
    return [_share(run, values, of_group) for (run, values), of_group in sorted(scores.items())]


def _share(run: str, values: tuple[str, ...], scores: list[float]) -> Share:
    from scipy.stats import binomtest

    n, right = len(scores), int(sum(scores))
    interval = binomtest(right, n).proportion_ci(confidence_level=0.95, method="wilson")
    return Share(run, values, n, right / n, float(interval.low), float(interval.high))
