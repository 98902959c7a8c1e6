"""What a run is trained on: rows as tokens, with their counts, hashes and digests."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from lm_eval_ext.data import instruct
from lm_eval_ext.errors import DataError
from lm_eval_ext.fingerprints import hash_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from lm_eval_ext.data.rows import Report
    from lm_eval_ext.training.config import TrainingConfig

    Row = TypeVar("Row", instruct.Instruction, instruct.Tuple)


@dataclass(frozen=True)
class TrainingData:
    """What a run is trained on.

    Attributes:
        examples: rows as tokens: `Example`, `ParallelExample`, or what the `collate` of a method takes; all have a length.
        record: sources, counts and hashes by kind (`data`, `pairs`), for the record and the card of the run.
        report: what was kept and left out, to print.
        digests: of every prompt and sentence, so that none of them is evaluated.
    """

    examples: Sequence[Any]
    record: dict[str, Any]
    report: str
    digests: frozenset[str] = field(repr=False)

    def with_more(self, kind: str, record: dict[str, Any], report: str, texts: Iterable[str]) -> TrainingData:
        """The same with data of another kind noted: its record and report, and its texts as trained on."""
        return replace(
            self,
            record={**self.record, kind: record},
            report=f"{self.report}\n{report}",
            digests=self.digests | set(map(digest, texts)),
        )


def digest(text: str) -> str:
    """Tells texts apart whatever their case and punctuation."""
    return hash_text(instruct.normal_form(text))[:16]


def short_name(source: str) -> str:
    """A source without its folder: records do not say where a file was."""
    return source.replace("\\", "/").rpartition("/")[2]


def tokenised(
    config: TrainingConfig,
    rows: Sequence[Row],
    report: Report,
    encode: Callable[[Row], Any],
    texts: Callable[[Row], Sequence[str]],
    max_tokens: int,
) -> TrainingData:
    """Rows as tokens, without those that are too long.

    Args:
        config: of the run; says where the rows are from and which languages are needed.
        rows, report: as `data.instruct` reads them.
        encode: a row as an example.
        texts: what of a row must not be evaluated.
        max_tokens: longer rows are left out and counted.

    Raises:
        DataError: nothing is left for a language.
    """
    examples = {row: encode(row) for row in rows}
    kept = instruct.within(rows, max_tokens, lambda row: len(examples[row]), "tokens", report)
    none_empty(config.data, config.codes(), Counter(row.language for row in kept), str(report))
    return TrainingData(
        examples=[examples[row] for row in kept],
        record={"data": described(config.data, report.kept, instruct.sha256(kept), report.left_out)},
        report=f"{config.data}: {report}",
        digests=frozenset(digest(text) for row in rows for text in texts(row)),
    )


def described(
    source: str, kept: Mapping[str, int], sha256: str, left_out: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """A source with its counts by language, for the record of a run."""
    return {
        "source": short_name(source),
        "rows": dict(kept),
        "left_out": {reason: dict(counts) for reason, counts in left_out.items()},
        "sha256": sha256,
    }


def none_empty(source: str, codes: Sequence[str], counts: Mapping[str, int], report: str) -> None:
    """Make sure that every language has rows.

    Raises:
        DataError: one has none.
    """
    if empty := [code for code in codes if not counts.get(code)]:
        raise DataError(f"{source}: nothing is left for {', '.join(empty)} (see --max-length)\n{report}")
