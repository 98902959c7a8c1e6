"""What a run is trained on: instructions, tuples and parallel sentences, with their counts, hashes and digests."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_ext.data import instruct
from lm_eval_ext.data import pairs as parallel
from lm_eval_ext.errors import DataError
from lm_eval_ext.fingerprints import hash_text
from lm_eval_ext.training.batches import PairBatcher
from lm_eval_ext.training.settings import Clo, Midalign

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedTokenizerBase

    from lm_eval_ext.data.pairs import Pair
    from lm_eval_ext.training.encoding import Encoder, Example, TupleExample
    from lm_eval_ext.training.settings import Settings


@dataclass(frozen=True)
class Trained:
    """What a run is trained on.

    Attributes:
        examples: instructions or tuples as tokens.
        pairs: makes batches of parallel sentences; None where the method has none.
        record: sources, counts and hashes, for the model card.
        report: what was kept and left out, to print.
        digests: of every prompt and sentence, so that none of them is evaluated.
    """

    examples: list[Example] | list[TupleExample]
    pairs: PairBatcher | None
    record: dict[str, Any]
    report: str
    digests: frozenset[str] = field(repr=False)


def digest(text: str) -> str:
    """Tells texts apart whatever their case and punctuation."""
    return hash_text(instruct.normal_form(text))[:16]


def short_name(source: str) -> str:
    """A source without its folder: where a file lies is nobody's business."""
    return source.replace("\\", "/").rpartition("/")[2]


def prepare(settings: Settings, encoder: Encoder, tokenizer: PreTrainedTokenizerBase, limit: int) -> Trained:
    """Read, check and tokenise what a run is trained on.

    Args:
        settings: of the run.
        encoder, tokenizer: of the model.
        limit: most tokens of a row; longer ones are left out and counted.

    Raises:
        DataError: data that is missing or damaged, or nothing of it is left for a language.
        LanguageError: an unknown language.
    """
    name, codes = settings.data, settings.codes()
    if isinstance(settings, Clo):
        rows, report = instruct.load_tuples(name, codes)
        encoded: dict[Any, Any] = {row: encoder.parallel(row) for row in rows}
        texts = [text for row in rows for text in (row.x_en, row.x_xx)]
    else:
        rows, report = instruct.load(name, codes)  # type: ignore[assignment]
        encoded = {row: encoder.instruction(row) for row in rows}  # type: ignore[arg-type]
        texts = [row.prompt for row in rows]  # type: ignore[attr-defined]
    kept = instruct.within(rows, limit, lambda row: len(encoded[row]), "tokens", report)
    _none_empty(name, codes, Counter(row.language for row in kept), str(report))
    record: dict[str, Any] = {"data": _described(name, report.kept, instruct.sha256(kept), report.left_out)}
    said = [f"{name}: {report}"]
    batcher = None
    if isinstance(settings, Midalign):
        batcher, told, sentences = _pairs(settings, tokenizer, limit)
        record["pairs"] = told
        said.append(f"{settings.pairs}: kept: {told['rows']}, left out: {told['left_out'] or 'none'}")
        texts += sentences
    return Trained([encoded[row] for row in kept], batcher, record, "\n".join(said), _digests(texts))


def _pairs(
    settings: Midalign, tokenizer: PreTrainedTokenizerBase, limit: int
) -> tuple[PairBatcher, dict[str, Any], list[str]]:
    sets = parallel.load("en", settings.pairs, settings.codes(), settings.max_pairs or None)
    found = [(one.language, pair) for one in sets for pair in one.pairs]
    fits = [max(map(len, tokenizer([pair.positive, pair.negative])["input_ids"])) <= limit for _, pair in found]
    kept = [row for row, fit in zip(found, fits, strict=True) if fit]
    left_out = Counter(language for (language, _), fit in zip(found, fits, strict=True) if not fit)
    counts = Counter(language for language, _ in kept)
    _none_empty(settings.pairs, [one.language for one in sets], counts, f"longer than {limit} tokens: {dict(left_out)}")
    mixed = np.random.default_rng((settings.seed, 2)).permutation(len(kept)).tolist()
    ordered = [kept[place][1] for place in mixed]
    batcher = PairBatcher(tokenizer, ordered, settings.group, special_tokens=settings.pool_special)
    reasons = {f"longer than {limit} tokens": left_out} if left_out else {}
    record = _described(settings.pairs, counts, _hash_of(pair for _, pair in kept), reasons)
    return batcher, record, [text for pair in ordered for text in (pair.positive, pair.negative)]


def _described(name: str, kept: Counter[str], sha256: str, left_out: dict[str, Counter[str]]) -> dict[str, Any]:
    return {
        "source": short_name(name),
        "rows": dict(kept),
        "left_out": {reason: dict(counts) for reason, counts in left_out.items()},
        "sha256": sha256,
    }


def _hash_of(pairs: Iterable[Pair]) -> str:
    return parallel.PairSet("en", "", "", tuple(pairs)).sha256


def _none_empty(name: str, codes: list[str], counts: Counter[str], report: str) -> None:
    if empty := [code for code in codes if not counts[code]]:
        raise DataError(f"{name}: nothing is left for {', '.join(empty)} (see --max-length)\n{report}")


def _digests(texts: Iterable[str]) -> frozenset[str]:
    return frozenset(map(digest, texts))
