"""The command `lm-eval-ext data instruct`: instructions to train on, by language, as JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from lm_eval_ext.data.instruct import Report


def instruct(
    source: Annotated[
        str, typer.Argument(help="mini, oasst1, oasst2, or a file: .jsonl, .jsonl.gz or .json.")
    ] = "mini",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSONL file to write; only count without it.")] = None,
    wanted: Annotated[str, typer.Option("--languages", help="Codes, joined by commas; all by default.")] = "",
    language: Annotated[str, typer.Option("--lang", help="Language of a file whose rows name none.")] = "",
    multi_turn: Annotated[bool, typer.Option(help="Take every turn of a conversation, not only the first.")] = False,
    tree_state: Annotated[str, typer.Option(help="OpenAssistant trees to take; '' for all.")] = "ready_for_export",
    max_chars: Annotated[int | None, typer.Option(min=1, help="Leave out rows with more characters.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of rows of each language.")] = None,
    held_out: Annotated[float | None, typer.Option(help="Share of the questions to mark as held out.")] = None,
    parallel: Annotated[
        bool, typer.Option(help="Make tuples for CLO of rows that are in English and another language.")
    ] = False,
    translate: Annotated[
        str,
        typer.Option(
            help="Make tuples by translating English rows with this model (facebook/nllb-200-distilled-600M)."
        ),
    ] = "",
    translations: Annotated[
        Path | None, typer.Option(help="Database of translations; in the package's cache by default.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Lines to translate at once.")] = 16,
    device: Annotated[str, typer.Option(help="Device to translate on; a GPU if there is one by default.")] = "",
) -> None:
    """Prepare instructions to train on: rows of id, language, prompt, response; or tuples for CLO.

    Prints how many rows are kept in each language, and why others are not. The
    tuples have the question x and its answer y in English and in the language:
    id, language, x_en, y_en, x_xx, y_xx.

    Examples:

      lm-eval-ext data instruct oasst2 --languages en,es,ko --held-out 0.05 --out oasst2.jsonl

      lm-eval-ext data instruct mini --parallel --out tuples.jsonl

      lm-eval-ext data instruct oasst2 --limit 2000 --translate facebook/nllb-200-distilled-600M --out tuples.jsonl
    """
    from rich.console import Console

    from lm_eval_ext import languages
    from lm_eval_ext.data import instruct as row_files
    from lm_eval_ext.training.instructions import prepare

    rows, report = prepare(
        source,
        [languages.get(code).code for code in wanted.split(",") if code.strip()],
        language=language,
        multi_turn=multi_turn,
        tree_state=tree_state,
        max_chars=max_chars,
        limit=limit,
        held_out=held_out,
        parallel=parallel,
        translate=translate,
        translations=translations,
        batch_size=batch_size,
        device=device,
    )
    console = Console(markup=False, highlight=False, soft_wrap=True)
    _print(console, report)
    if out is not None:
        row_files.write(out, rows)
        console.print(f"{out}: {len(rows)} rows, SHA-256 {row_files.sha256(rows)}")


def _print(console: Console, report: Report) -> None:
    from rich import box
    from rich.table import Table

    codes = list(dict.fromkeys(code for _, counts in report.lines() for code in counts))
    table = Table(title="Rows by language, and why others are left out", box=box.SIMPLE, title_justify="left")
    table.add_column("", overflow="fold")
    for code in codes:
        table.add_column(code, justify="right")
    for what, counts in report.lines():
        table.add_row(what, *(str(counts[code]) for code in codes), end_section=what == "kept")
    console.print(table)
    for note in report.notes:
        console.print(note)
