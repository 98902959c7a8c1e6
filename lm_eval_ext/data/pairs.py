"""Contrastive pairs: two texts that differ in what a steering vector should represent.

`en` pairs are an English sentence against the same sentence in another language, so v_en = mean h(English) - h(other)
(paper: one vector, English minus other; one per language is our default). `loc` pairs are a question with its country
named against the same question without, in one language. Built-in pairs are never evaluated questions; of pairs of tasks and
of JSON lines the vectors record which prompts they were made from (`PairSet.record`), and are refused on these.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext.data import sources
from lm_eval_ext.data.prompts import PROMPTS
from lm_eval_ext.data.task_pairs import PREFIX, task_pairs
from lm_eval_ext.data.task_questions import Rendering
from lm_eval_ext.errors import DataError, LanguageError, UserError
from lm_eval_ext.fingerprints import hash_json, hash_text
from lm_eval_ext.languages import FURTHER, KNOWN, LANGUAGES, normalise

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lm_eval_ext.data.task_pairs import Asked

#: Codes of FLORES-200, by language: its file names, and what NLLB calls the languages.
FLORES_CODES = {
    "en": "eng_Latn",
    "es": "spa_Latn",
    "id": "ind_Latn",
    "el": "ell_Grek",
    "ko": "kor_Hang",
    "zh": "zho_Hans",
    "ar": "arb_Arab",
}
TSV_HEADER = ("language", "positive", "negative")

#: A fourth column that a file may have: what should follow the negative text.
TSV_ANSWER = "answer"


@dataclass(frozen=True)
class Pair:
    """Two texts; a vector points from `negative` to `positive`.

    Attributes:
        positive, negative: the texts.
        language: code of the requests that the vector steers; `any` for all.
        answer: what the model should continue the negative text with, its leading space included; only estimators that are
            trained on answers, and the pooling `generated`, read it.
        more_positives, more_negatives: further texts of either side; its state is the mean over all of them. Estimators that
            run the model use the first only.
        asked: of pairs of tasks, how the positive and the negative text are asked.

    Example:
        >>> lx.Pair("How do you do, Professor?", "Hi, what's up?", language="en").language
        'en'
    """

    positive: str
    negative: str
    language: str = "any"
    answer: str = ""
    more_positives: tuple[str, ...] = ()
    more_negatives: tuple[str, ...] = ()
    asked: tuple[Asked, Asked] | None = field(default=None, compare=False, repr=False)

    @property
    def positives(self) -> tuple[str, ...]:
        """All positive texts."""
        return (self.positive, *self.more_positives)

    @property
    def negatives(self) -> tuple[str, ...]:
        """All negative texts."""
        return (self.negative, *self.more_negatives)


@dataclass(frozen=True)
class PairSet:
    """The pairs of one kind and language, and their source.

    Example:
        >>> pair_set = lx.PairSet("formal", "en", "by hand", (lx.Pair("Good evening.", "Hi!"),))
        >>> len(pair_set.sha256)  # of the texts; vector files record it
        64
    """

    kind: str
    language: str
    source: str
    pairs: tuple[Pair, ...]
    made_from: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def sha256(self) -> str:
        """Hash of the pairs' texts, kept in the vector file."""
        texts = [
            [
                *(pair.positive, pair.negative, *filter(None, [pair.answer])),
                *([pair.positives, pair.negatives] if pair.more_positives or pair.more_negatives else []),
            ]
            for pair in self.pairs
        ]
        return hash_json(texts, ascii_only=False)

    def record(self) -> dict[str, Any]:
        """What vectors made of the pairs record of their origin: `made_from`, and the hash of each text as `prompts`.

        Empty for pairs that have no `made_from`.
        """
        if not self.made_from:
            return {}
        texts = dict.fromkeys(text for pair in self.pairs for text in (*pair.positives, *pair.negatives))
        return {**self.made_from, "prompts": [prompt_hash(text) for text in texts]}


def prompt_hash(text: str) -> str:
    """A short hash of a prompt, without the white space at its end."""
    return hash_text(text.rstrip())[:16]


def load_pairs(
    kind: str,
    source: str,
    languages: Sequence[str] = tuple(LANGUAGES),
    limit: int | None = None,
    *,
    include_path: Path | None = None,
    **rendering: Any,
) -> list[PairSet]:
    """The contrastive pairs of a kind, one set per language that has pairs.

    Args:
        kind: `en`, `loc`, or any name when `source` is a file or names tasks.
        source: a built-in source (en: mini, flores, ntrex, gmmlu; loc: mini, blend, localization_gap); a TSV file with the
            columns language, positive, negative; a file of JSON lines (`data.pair_lines`); or `task:POSITIVE/NEGATIVE`, two
            tasks or groups of the harness, whose prompts are paired by the documents' ids (`data.task_pairs`).
        languages: codes; English has no pairs of kind `en`.
        limit: use the first so many pairs of each language.
        include_path: folder with task files of your own.
        rendering: of tasks, as the harness names them: `num_fewshot`, `apply_chat_template` (with the `tokenizer`),
            `fewshot_as_multiturn`, `system_instruction`.

    Raises:
        UserError: an option or a task that is unknown.
        DataError: unknown source, damaged file, or no pairs for a language.
        LanguageError: a built-in source lacks a language.

    Example:
        >>> [(pair_set.language, len(pair_set.pairs)) for pair_set in lx.load_pairs("loc", "mini", languages=["ko", "el"])]
        [('ko', 66), ('el', 66)]
    """
    languages = list(languages)
    if source.startswith(PREFIX):
        of_tasks, made_from = task_pairs(source, languages, _rendering(rendering), include_path)
        pair_sets = [PairSet(kind, code, source, tuple(pairs), made_from) for code, pairs in of_tasks.items()]
    elif given := [name for name, value in rendering.items() if value and name != "tokenizer"]:
        raise UserError(
            f"{', '.join(given)}: only pairs of tasks ({PREFIX}POSITIVE/NEGATIVE) are rendered, not {source!r}"
        )
    elif source.endswith((".jsonl", ".json")):
        from lm_eval_ext.data.pair_lines import read

        made_from = {"file": Path(source).name}
        selected = _selected(read(Path(source)), languages, Path(source))
        pair_sets = [PairSet(kind, code, Path(source).name, tuple(p), made_from) for code, p in selected.items()]
    elif source.endswith(".tsv"):
        pair_sets = _from_tsv(kind, Path(source), languages)
    else:
        reader = SOURCES.get(kind, {}).get(source)
        if reader is None:
            valid = ", ".join(SOURCES.get(kind, {})) or "none"
            raise DataError(
                f"no pairs {source!r} for kind {kind!r}; built in: {valid}; or give a .tsv file "
                f"with the columns {', '.join(TSV_HEADER)}, a .jsonl file, or two tasks ({PREFIX}POSITIVE/NEGATIVE)"
            )
        available = _AVAILABLE.get((kind, source), tuple(LANGUAGES))
        if unknown := [code for code in languages if code not in available]:
            raise LanguageError(
                f"languages {', '.join(languages)}: unknown {', '.join(unknown)}; valid: {', '.join(available)} "
                f"(pairs {kind}={source})"
            )
        codes = [code for code in languages if not (kind == "en" and code == "en")]
        if not codes:
            raise DataError(f"there are no pairs of kind {kind!r} for English alone: name another language")
        pair_sets = [PairSet(kind, code, source, tuple(reader(code))) for code in codes]
    return [replace(pair_set, pairs=pair_set.pairs[:limit]) for pair_set in pair_sets]


def _rendering(options: dict[str, Any]) -> Rendering:
    valid = [option.name for option in fields(Rendering)]
    if unknown := [name for name in options if name not in valid]:
        raise UserError(f"load_pairs does not take {', '.join(unknown)}; valid for pairs of tasks: {', '.join(valid)}")
    return Rendering(**options)


def _mini_en(language: str) -> list[Pair]:
    rows = sources.read_jsonl(sources.packaged("mini/pairs_en.jsonl"))
    return [Pair(row["text"]["en"], row["text"][language]) for row in rows]


def _mini_loc(language: str) -> list[Pair]:
    rows = sources.read_jsonl(sources.packaged("mini/pairs_loc.jsonl"))
    return [Pair(row["named"][language], row["plain"][language]) for row in rows]


def _blend_loc(language: str) -> list[Pair]:
    from lm_eval_ext.data import blend

    return [Pair(named, plain) for _, named, plain in blend.pairs(language)]


def _gap_loc(language: str) -> list[Pair]:
    from lm_eval_ext.data import localization_gap

    return [Pair(named, plain) for named, plain in localization_gap.pairs(language)]


def _flores_en(language: str) -> list[Pair]:
    return _parallel(*(f"parallel/flores200/{FLORES_CODES[code]}.devtest" for code in ("en", language)))


def _ntrex_en(language: str) -> list[Pair]:
    return _parallel(*(f"parallel/ntrex128/{code}.txt" for code in ("en", language)))


def _gmmlu_en(language: str) -> list[Pair]:
    from lm_eval_ext.data import gmmlu

    return [Pair(english, translated) for english, translated in gmmlu.pairs(language)]


def _parallel(english: str, other: str) -> list[Pair]:
    texts = [sources.read_text(sources.path(name)).rstrip("\n").split("\n") for name in (english, other)]
    if len(texts[0]) != len(texts[1]):
        raise DataError(f"{english} has {len(texts[0])} lines, {other} has {len(texts[1])}: they must be parallel")
    # Some FLORES files double their quotes and end lines in a space.
    cleaned = [[line.replace('""', '"').strip() for line in lines] for lines in texts]
    return [Pair(*pair) for pair in zip(*cleaned, strict=True)]


SOURCES: dict[str, dict[str, Callable[[str], list[Pair]]]] = {
    "en": {"mini": _mini_en, "flores": _flores_en, "ntrex": _ntrex_en, "gmmlu": _gmmlu_en},
    "loc": {"mini": _mini_loc, "blend": _blend_loc, "localization_gap": _gap_loc},
}

#: The languages of sources that have others than the seven.
_AVAILABLE = {
    ("en", "gmmlu"): tuple(sorted(PROMPTS)),
    ("en", "ntrex"): tuple(KNOWN),
    ("loc", "localization_gap"): ("en", *FURTHER),
}


def _from_tsv(kind: str, file: Path, languages: list[str]) -> list[PairSet]:
    if not file.is_file():
        raise DataError(f"no pair file at {file}")
    header, *lines = sources.read_text(file).rstrip("\n").split("\n")
    columns = tuple(header.rstrip("\r").split("\t"))
    if columns not in (TSV_HEADER, (*TSV_HEADER, TSV_ANSWER)):
        raise DataError(
            f"{file}: the first line must name the columns {', '.join(TSV_HEADER)} (tab-separated), got {header[:80]!r}"
        )
    by_language: dict[str, list[Pair]] = {}
    for number, line in enumerate(lines, start=2):
        cells = line.rstrip("\r").split("\t")
        if len(cells) != len(columns) or not all(cell.strip() for cell in cells):
            raise DataError(
                f"{file}, line {number}: expected {len(columns)} filled cells, got {len(cells)}: {line[:80]!r}"
            )
        by_language.setdefault(normalise(cells[0]), []).append(Pair(cells[1], cells[2], answer="".join(cells[3:])))
    selected = _selected(by_language, languages, file)
    return [PairSet(kind, code, file.name, tuple(pairs)) for code, pairs in selected.items()]


def _selected(by_language: dict[str, list[Pair]], languages: list[str], file: Path) -> dict[str, list[Pair]]:
    """The pairs of the wanted languages, and of those that are none of our seven."""
    selected = {code: pairs for code, pairs in by_language.items() if code in languages or code not in LANGUAGES}
    if not selected:
        raise DataError(
            f"{file} has pairs for {', '.join(by_language) or 'no language'}, none for {', '.join(languages)}"
        )
    return selected
