"""Scores by any column of the documents (subject, category, topic, language), from the samples that the harness saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lm_eval_ext.errors import ResultsError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_Z = 1.959964  # 95%


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


def shares(results: Path, task: str, by: Sequence[str], metric: str = "acc") -> list[Share]:
    """The mean of a 0/1 score for every combination of values of the documents' columns, per run.

    Args:
        results: a folder of result files.
        task: a task, or a group or family, whose documents are taken together.
        by: columns of the documents, such as `subject`.
        metric: the score.

    Raises:
        ResultsError: no results or samples of the task, or no such column or score.
    """
    from lm_eval_ext.data import sources
    from lm_eval_ext.results.axes import find_axis
    from lm_eval_ext.results.runs import read_tree

    runs = read_tree(results).runs
    tasks = find_axis(task, runs, metric).tasks
    found: dict[tuple[str, tuple[str, ...]], list[float]] = {}
    for run in runs:
        for record in (run.tasks[name] for name in tasks if name in run.tasks):
            if record.samples is None:
                raise ResultsError(f"{record.results} has no samples of {record.task}: run lm_eval with --log_samples")
            for sample in sources.read_jsonl(record.samples):
                document = sample.get("doc")
                document = document if isinstance(document, dict) else {}
                if missing := [column for column in by if column not in document]:
                    valid = ", ".join(document) or "none"
                    raise ResultsError(f"the documents of {record.task} have no {', '.join(missing)}; columns: {valid}")
                if not isinstance(score := sample.get(metric), (int, float)):
                    valid = ", ".join(sample.get("metrics") or ())
                    raise ResultsError(f"{record.task} was not scored by {metric!r}; its metrics: {valid}")
                values = tuple(str(document[column]) for column in by)
                found.setdefault((run.name, values), []).append(float(score))
    return [_share(run, values, scores) for (run, values), scores in sorted(found.items())]


def _share(run: str, values: tuple[str, ...], scores: list[float]) -> Share:
    n, mean = len(scores), sum(scores) / len(scores)
    centre = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * (mean * (1 - mean) / n + _Z**2 / (4 * n**2)) ** 0.5
    return Share(run, values, n, mean, max(0.0, centre - half), min(1.0, centre + half))
