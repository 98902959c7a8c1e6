"""Scores by any column of the documents (subject, category, topic, language), from the samples that the harness saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from lm_eval_ext.errors import ResultsError

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    from lm_eval_ext.plane.axes import find_axis
    from lm_eval_ext.plane.runs import read_tree

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


def breakdown(
    results: Annotated[Path, typer.Argument(help="Folder of result files, as lm_eval --log_samples wrote it.")],
    task: Annotated[str, typer.Option(help="Task, group or family; its documents are taken together.")],
    by: Annotated[list[str], typer.Option(help="Column of the documents; repeatable.")],
    metric: Annotated[str, typer.Option(help="A score of 0 or 1 per document.")] = "acc",
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
) -> None:
    """Break a score down by a column of the documents, with 95% intervals (Wilson).

    Examples:

      lm-eval-ext breakdown results/ --task gmmlu_ko --by subject

      lm-eval-ext breakdown results/ --task gmmlu --by language --by subject_category

      lm-eval-ext breakdown results/ --task blend_decon_cloze --by topic --metric english_bias
    """
    rows = [
        [share.run, *share.values, str(share.n), *(f"{100 * x:.1f}" for x in (share.score, share.low, share.high))]
        for share in shares(results, task, by, metric)
    ]
    titles = ["run", *by, "n", f"{metric} %", "low", "high"]
    if csv:
        _print_csv([titles, *rows])
    else:
        _print_table(titles, rows)


def _share(run: str, values: tuple[str, ...], scores: list[float]) -> Share:
    n, mean = len(scores), sum(scores) / len(scores)
    centre = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * (mean * (1 - mean) / n + _Z**2 / (4 * n**2)) ** 0.5
    return Share(run, values, n, mean, max(0.0, centre - half), min(1.0, centre + half))


def _print_csv(rows: list[list[str]]) -> None:
    import csv
    import sys

    csv.writer(sys.stdout, lineterminator="\n").writerows(rows)


def _print_table(titles: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE)
    for number, title in enumerate(titles):
        table.add_column(Text(title), justify="left" if number < len(titles) - 4 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 120)  # a log should not fold the table
    console.print(table)
