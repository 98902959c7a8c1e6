"""The command `lm-eval-ext data instruct`: instructions to train on, by language, as JSON lines."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lm_eval_ext.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_ext.data.instruct import Instruction, Report, Tuple


def instruct(
    source: Annotated[
        str, typer.Argument(help="mini, oasst1, oasst2, or a file: .jsonl, .jsonl.gz or .json.")
    ] = "mini",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSONL file to write; only count where left out.")
    ] = None,
    wanted: Annotated[
        str, typer.Option("--languages", help="Codes, joined by commas; all there are where left out.")
    ] = "",
    language: Annotated[str, typer.Option("--lang", help="Language of a file whose rows name none.")] = "",
    multi_turn: Annotated[bool, typer.Option(help="Take every turn of a conversation, not only the first.")] = False,
    tree_state: Annotated[str, typer.Option(help="OpenAssistant trees to take; '' for all.")] = "ready_for_export",
    max_chars: Annotated[int | None, typer.Option(min=1, help="Leave out rows with more characters.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Keep the first so many rows of each language.")] = None,
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
        Path | None, typer.Option(help="File that keeps what is translated; the package's cache.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Lines to translate at once.")] = 16,
    device: Annotated[str, typer.Option(help="Device to translate on; a GPU if there is one where left out.")] = "",
) -> None:
    """Prepare instructions to train on: rows of id, language, prompt, response; or tuples for CLO.

    Says how many rows are kept in each language, and why others are not. The
    tuples have the question x and its answer y in English and in the language:
    id, language, x_en, y_en, x_xx, y_xx.

    Examples:

      lm-eval-ext data instruct oasst2 --languages en,es,ko --held-out 0.05 --out oasst2.jsonl

      lm-eval-ext data instruct mini --parallel --out tuples.jsonl

      lm-eval-ext data instruct oasst2 --limit 2000 --translate facebook/nllb-200-distilled-600M --out tuples.jsonl
    """
    from rich.console import Console

    from lm_eval_ext import languages
    from lm_eval_ext.data import instruct as rows_of

    codes = [languages.get(code).code for code in wanted.split(",") if code.strip()]
    found, report = _read(source, language, multi_turn, tree_state)
    # What is translated or paired up needs the English rows, whatever languages are wanted of the tuples.
    tuples = any(isinstance(row, rows_of.Tuple) for row in found)
    others = [code for code in codes if code != "en"]
    of_rows = codes and (others if tuples else ["en"] if translate else ["en", *others] if parallel else codes)
    kept: Sequence[Instruction | Tuple] = rows_of.select(found, report, source, of_rows, None)
    if max_chars is not None:
        kept = rows_of.within(kept, max_chars, _characters, "characters", report)
    if limit is not None:
        kept = _first(kept, limit, report)
    if held_out is not None:
        kept = rows_of.hold_out(kept, held_out)
    if translate:
        kept = _translated(kept, codes, translate, translations, batch_size, device, report)
    elif parallel and (single := [row for row in kept if isinstance(row, rows_of.Instruction)]):
        kept = rows_of.pair_up(single, report)
    if not kept:
        raise DataError(f"{source}: nothing is left:\n{report}")
    if held_out is not None:
        kept = rows_of.select(kept, report, source, [], None)  # a question must not be in both splits
        counts = Counter(row.language for row in kept if row.split == "held_out")
        report.notes.append("held out: " + (", ".join(f"{code} {n}" for code, n in counts.items()) or "none"))
    console = Console(markup=False, highlight=False, soft_wrap=True)
    _print(console, report)
    if out is not None:
        rows_of.write(out, kept)
        console.print(f"{out}: {len(kept)} rows, SHA-256 {rows_of.sha256(kept)}")


def _read(source: str, language: str, multi_turn: bool, state: str) -> tuple[list[Instruction] | list[Tuple], Report]:
    """All rows of a source, in whatever of the known forms."""
    from lm_eval_ext.data import instruct as rows_of
    from lm_eval_ext.data import oasst, sources

    if source == rows_of.MINI:
        return rows_of.load(source, split=None)
    file = Path(source)
    if source not in oasst.RELEASES and not file.is_file():
        raise DataError(f"no file {source!r}; built in: {', '.join([rows_of.MINI, *oasst.RELEASES])}")
    if source not in oasst.RELEASES and file.suffix != ".json":
        first = next(iter(sources.read_jsonl(file)))
        if "x_xx" in first:
            return rows_of.read(rows_of.Tuple, file)
        if isinstance(first.get("prompt"), str):
            return rows_of.read(rows_of.Instruction, file)
    return oasst.load(source, language, multi_turn, state)


def _translated(
    rows: Sequence[Instruction | Tuple],
    codes: list[str],
    model: str,
    cache: Path | None,
    batch_size: int,
    device: str,
    report: Report,
) -> list[Tuple]:
    import torch
    from tqdm import tqdm

    from lm_eval_ext.data.instruct import Instruction
    from lm_eval_ext.languages import NON_ENGLISH
    from lm_eval_ext.models import translation
    from lm_eval_ext.paths import cache_dir

    single = [row for row in rows if isinstance(row, Instruction)]
    into = [code for code in codes or NON_ENGLISH if code != "en"]
    settings = translation.Settings(
        model, device=device or ("cuda" if torch.cuda.is_available() else "cpu"), batch_size=batch_size
    )
    with tqdm(total=len(into) * len(translation.lines(single)), desc="Translating", unit="line") as bar:
        return translation.tuples(
            single, into, cache or cache_dir() / "translations.sqlite", settings, report, bar.update
        )


def _first(rows: Sequence[Instruction | Tuple], limit: int, report: Report) -> list[Instruction | Tuple]:
    n: Counter[str] = Counter()
    kept = []
    for row in rows:
        n[row.language] += 1
        if n[row.language] <= limit:
            kept.append(row)
        else:
            report.leave_out(f"beyond the first {limit}", row.language)
    report.counted(kept)
    return kept


def _characters(row: Instruction | Tuple) -> int:
    from lm_eval_ext.data.instruct import Instruction

    if isinstance(row, Instruction):
        return sum(len(text) for _, text in row.history) + len(row.prompt) + len(row.response)
    return max(len(row.x_en), len(row.x_xx)) + max(len(row.y_en), len(row.y_xx))


def _print(console: object, report: Report) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    assert isinstance(console, Console)
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
