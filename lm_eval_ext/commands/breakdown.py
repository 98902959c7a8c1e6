"""The command `lm-eval-ext breakdown`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lm_eval_ext.commands import options


def breakdown(
    results: Annotated[Path, typer.Argument(help="Folder of result files, as lm_eval --log_samples wrote it.")],
    task: Annotated[str, typer.Option(help="Task, group or family; its documents are taken together.")],
    by: Annotated[list[str], typer.Option(help="Column of the documents; repeatable.")],
    metric: Annotated[str, typer.Option(help="A score of 0 or 1 per document.")] = "acc",
    axes: options.AxisFile = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Break a score down by a column of the documents, with 95% intervals (Wilson).

    Examples:

      lm-eval-ext breakdown results/ --task gmmlu_ko --by subject

      lm-eval-ext breakdown results/ --task gmmlu --by language --by subject_category

      lm-eval-ext breakdown results/ --task blend_decon_cloze --by topic --metric english_bias
    """
    from lm_eval_ext.console import notes as console_of_notes
    from lm_eval_ext.console import print_json
    from lm_eval_ext.results.breakdown import shares
    from lm_eval_ext.spreadsheets import rows_to_csv

    notes: list[str] = []
    scores = shares(results, task, by, metric, notes)
    for note in notes:
        console_of_notes().print(f"note: {note}", soft_wrap=True)
    if as_json:
        print_json([share._asdict() | {"values": dict(zip(by, share.values, strict=True))} for share in scores])
        return
    rows = [
        [share.run, *share.values, str(share.n), *(f"{100 * x:.1f}" for x in (share.score, share.low, share.high))]
        for share in scores
    ]
    titles = ["run", *by, "n", f"{metric} %", "low", "high"]
    if csv:
        typer.echo(rows_to_csv([titles, *rows]), nl=False)
    else:
        _print_table(titles, rows)


def _print_table(titles: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from lm_eval_ext.console import output

    table = Table(box=box.SIMPLE)
    for number, title in enumerate(titles):
        table.add_column(Text(title), justify="left" if number < len(titles) - 4 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = output(120)
    console.print(table)
