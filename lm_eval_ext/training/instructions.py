"""Preparing instructions to train on: selected, filtered, split, and paired up or translated into tuples for CLO."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_ext.console import Progress
from lm_eval_ext.data import instruct, oasst, sources
from lm_eval_ext.data.instruct import MINI, Instruction, Report, Tuple
from lm_eval_ext.errors import DataError
from lm_eval_ext.languages import NON_ENGLISH

if TYPE_CHECKING:
    from collections.abc import Sequence

    Rows = Sequence[Instruction | Tuple]


def prepare(
    source: str,
    codes: Sequence[str] = (),
    *,
    language: str = "",
    multi_turn: bool = False,
    tree_state: str = oasst.READY,
    max_chars: int | None = None,
    limit: int | None = None,
    held_out: float | None = None,
    parallel: bool = False,
    translate: str = "",
    translations: Path | None = None,
    batch_size: int = 16,
    device: str = "",
) -> tuple[Rows, Report]:
    """Rows to train on from a source, and the counts of rows kept and left out.

    Args:
        source: `mini`, a name in `oasst.RELEASES`, or a file: `.jsonl`, `.jsonl.gz` or `.json`.
        codes: languages of the rows; all if empty.
        language: of a file whose rows name none.
        multi_turn: take every turn of a conversation, not only the first.
        tree_state: OpenAssistant trees to take; all if empty.
        max_chars: leave out rows with more characters.
        limit: keep the first so many rows of each language.
        held_out: share of the questions to mark as held out.
        parallel: pair rows in English and another language up into tuples.
        translate: name of a translation model that makes tuples of English rows; none if empty.
        translations: database of translations; in the package's cache if left out.
        batch_size: lines to translate at once.
        device: to translate on; a GPU if there is one if empty.

    Returns:
        instructions or tuples, and a report.

    Raises:
        DataError: the source is missing, damaged or of an unknown format, or no row is left.
        LanguageError: an unknown language.
        ModelError: the translation model cannot be loaded, or does not support a language.
    """
    rows, report = _read(source, language, multi_turn, tree_state)
    kept: Rows = instruct.select(rows, report, source, _languages_to_read(rows, codes, parallel, bool(translate)), None)
    if max_chars is not None:
        kept = instruct.within(kept, max_chars, _characters, "characters", report)
    if limit is not None:
        kept = _first_of_each_language(kept, limit, report)
    if held_out is not None:
        kept = instruct.hold_out(kept, held_out)
    if translate:
        kept = _translate(kept, codes, translate, translations, batch_size, device, report)
    elif parallel and (single := [row for row in kept if isinstance(row, Instruction)]):
        kept = instruct.pair_up(single, report)
    if not kept:
        raise DataError(f"{source}: no rows are left:\n{report}")
    if held_out is not None:
        kept = instruct.select(kept, report, source, [], None)  # a question must not be in both splits
        counts = Counter(row.language for row in kept if row.split == "held_out")
        report.notes.append("held out: " + (", ".join(f"{code} {n}" for code, n in counts.items()) or "none"))
    return kept, report


def _languages_to_read(rows: Rows, codes: Sequence[str], parallel: bool, translate: bool) -> Sequence[str]:
    """The languages of the rows that are needed: rows to translate or to pair up must include English."""
    if not codes:
        return []
    others = [code for code in codes if code != "en"]
    if any(isinstance(row, Tuple) for row in rows):
        return others
    if translate:
        return ["en"]
    return ["en", *others] if parallel else codes


def _read(source: str, language: str, multi_turn: bool, state: str) -> tuple[list[Instruction] | list[Tuple], Report]:
    """All rows of a source in any known format."""
    if source == MINI:
        return instruct.load(source, split=None)
    file = Path(source)
    if source not in oasst.RELEASES and not file.is_file():
        raise DataError(f"no file {source!r}; built in: {', '.join([MINI, *oasst.RELEASES])}")
    if source not in oasst.RELEASES and file.suffix != ".json":
        first = next(iter(sources.read_jsonl(file)))
        if "x_xx" in first:
            return instruct.read(Tuple, file)
        if isinstance(first.get("prompt"), str):
            return instruct.read(Instruction, file)
    return oasst.load(source, language, multi_turn, state)


def _translate(
    rows: Rows, codes: Sequence[str], model: str, cache: Path | None, batch_size: int, device: str, report: Report
) -> list[Tuple]:
    import torch

    from lm_eval_ext.models import translation
    from lm_eval_ext.paths import cache_dir

    single = [row for row in rows if isinstance(row, Instruction)]
    targets = [code for code in codes or NON_ENGLISH if code != "en"]
    settings = translation.Settings(
        model, device=device or ("cuda" if torch.cuda.is_available() else "cpu"), batch_size=batch_size
    )
    with Progress(len(targets) * len(translation.lines(single)), "Translating", "line") as bar:
        return translation.tuples(
            single, targets, cache or cache_dir() / "translations.sqlite", settings, report, bar.update
        )


def _first_of_each_language(rows: Rows, limit: int, report: Report) -> Rows:
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
    """Characters of an instruction with its history; of a tuple, of its longest prompt and response."""
    if isinstance(row, Instruction):
        return sum(len(text) for _, text in row.history) + len(row.prompt) + len(row.response)
    return max(len(row.x_en), len(row.x_xx)) + max(len(row.y_en), len(row.y_xx))
