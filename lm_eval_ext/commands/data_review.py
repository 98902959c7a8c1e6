"""`lm-eval-ext data review`: a human reads the items one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def review(
    language: Annotated[str, typer.Option("--lang", help="Language to read, such as el.")],
    reader: Annotated[str, typer.Option(help="Who reads; stands in the table beside each verdict.")] = "human",
    file: Annotated[
        Path | None, typer.Option(help="The table to write; by default the one that the items are built with.")
    ] = None,
) -> None:
    """Read the items of blend_decon in a language, one by one, and write verdicts that the builder applies.

    Shows each item with its answers, votes and earlier verdicts, and takes a verdict: keep, exclude an option, show it in
    other words, edit the question, drop the item. Every verdict is written at once; a later start goes on with the first
    item that has none.

    Examples:

      lm-eval-ext data review --lang el --reader maria

      lm-eval-ext data review --lang ko --file my_review.tsv
    """
    from lm_eval_ext import languages
    from lm_eval_ext.data import sources
    from lm_eval_ext.data.blend import reading
    from lm_eval_ext.data.blend.review import FINAL, TABLE
    from lm_eval_ext.errors import DataError

    code = languages.get(language).code
    table = file or sources.packaged(f"blend_tables/{TABLE}")
    items = reading.unread(code, reader, table)
    if not items:
        typer.echo(f"{reader} has read every item in {code}; the verdicts are in {table}")
        return
    typer.echo(reading.HELP)
    for number, item in enumerate(items, start=1):
        typer.echo(f"\n{number} of {len(items)}: {item.text()}")
        while True:
            try:
                answer = typer.prompt("verdict", prompt_suffix="> ").strip()
            except typer.Abort:  # end of input, or Ctrl-C
                answer = "q"
            if answer == "q":
                typer.echo(f"\nthe verdicts are in {table}; start again to go on with {item.item.id}")
                return
            if answer == "s":
                break
            try:
                row = item.verdict(answer, reader)
            except DataError as error:
                typer.echo(str(error))
                continue
            reading.append(table, row)
            if row.verdict in FINAL:
                break
    typer.echo(f"the verdicts are in {table}")
