"""Parallel texts whose hidden states are measured: questions of both axes, sentences of parallel corpora."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval_ext.data import pairs
from lm_eval_ext.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: The fewest texts of which a statistic is worth computing (our default).
MIN_TEXTS = 5


@dataclass(frozen=True)
class ParallelTexts:
    """The same texts in several languages.

    Attributes:
        name: what they are, such as `universal (gmmlu)`.
        ids: of the texts.
        texts: for each language, the texts in the order of `ids`.
        axis: of questions, `universal` or `cultural`; None of sentences.
    """

    name: str
    ids: tuple[str, ...]
    texts: dict[str, tuple[str, ...]]
    axis: str | None = None


def questions(source: str, languages: list[str], limit: int | None) -> list[ParallelTexts]:
    """The question sets of a source, each with the questions that all the languages have.

    Args:
        source: `mini` (both axes, in the package), `gmmlu` (dev questions) or `blend` (country not named).
        languages: at least two.
        limit: at most so many questions of each set.

    Raises:
        DataError: unknown source, unreachable data, one language only, or too few questions in common.
        LanguageError: the source lacks a language.
    """
    if source not in QUESTIONS:
        raise DataError(f"no questions {source!r}; valid: {', '.join(QUESTIONS)}, joined by commas")
    if len(languages) < 2:
        raise DataError(
            f"questions are compared between languages: name another beside {', '.join(languages) or 'none'}"
        )
    return [
        _in_common(f"{axis} ({name})", {code: _by_key(read(code)) for code in languages}, limit, axis)
        for axis, name, read in QUESTIONS[source]
    ]


def sentences(source: str, languages: list[str], limit: int | None) -> ParallelTexts:
    """Sentences in English and all other languages.

    Args:
        source: `mini`, `flores`, `ntrex`, `gmmlu`, or a TSV file with the columns language, positive (English), negative.
        languages: at least one besides English.
        limit: at most so many sentences.

    Raises:
        DataError: as `pairs.load_pairs`, or too few sentences in common.
    """
    pair_sets = pairs.load_pairs("en", source, [code for code in languages if code != "en"] or ["en"])
    translations = {
        pair_set.language: _by_key((pair.positive, pair.negative) for pair in pair_set.pairs) for pair_set in pair_sets
    }
    english = {text: text for text in next(iter(translations.values()))}
    parallel = _in_common(f"sentences ({pair_sets[0].source})", {"en": english, **translations}, limit)
    # The keys are sentences of the corpus; numbers are shown in their place.
    numbers = {text: str(number) for number, text in enumerate(english, start=1)}
    return ParallelTexts(parallel.name, tuple(numbers[text] for text in parallel.ids), parallel.texts)


def _by_key(texts: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Texts by their key, the first of each."""
    by_key: dict[str, str] = {}
    for key, text in texts:
        by_key.setdefault(key, text)
    return by_key


def _in_common(
    name: str, by_language: dict[str, dict[str, str]], limit: int | None, axis: str | None = None
) -> ParallelTexts:
    """The texts whose keys all languages have, the first `limit` of them."""
    ids = [key for key in next(iter(by_language.values())) if all(key in texts for texts in by_language.values())]
    chosen = tuple(ids[:limit])
    if len(chosen) < MIN_TEXTS:
        raise DataError(
            f"{name}: {len(chosen)} texts in {', '.join(by_language)}, at least {MIN_TEXTS} are needed. "
            "Raise the limit, leave a language out, or take another source"
        )
    texts_by_language = {code: tuple(texts[key] for key in chosen) for code, texts in by_language.items()}
    return ParallelTexts(name, chosen, texts_by_language, axis)


def _mini(axis: str) -> Callable[[str], Iterable[tuple[str, str]]]:
    def read(language: str) -> Iterable[tuple[str, str]]:
        from lm_eval_ext.data import mini

        rows: Any = (mini.transfer if axis == "transfer" else mini.localization)(language)["test"]
        return ((row["id"], row["question"]) for row in rows)

    return read


def _gmmlu(language: str) -> Iterable[tuple[str, str]]:
    from lm_eval_ext.data import gmmlu

    return ((row["sample_id"], row["question"].strip()) for row in gmmlu.documents(language, "dev"))


def _blend(language: str) -> Iterable[tuple[str, str]]:
    from lm_eval_ext.data import blend

    # No answer is used, so questions that are evaluated or yield no item are taken too: more are common to all languages.
    return iter(blend.questions(language))


#: For each source: axis, name of the data, and what reads (id, question) of a language.
QUESTIONS: dict[str, tuple[tuple[str, str, Callable[[str], Iterable[tuple[str, str]]]], ...]] = {
    "mini": (
        ("universal", "transfer_mini", _mini("transfer")),
        ("cultural", "localization_mini", _mini("localization")),
    ),
    "gmmlu": (("universal", "gmmlu", _gmmlu),),
    "blend": (("cultural", "blend", _blend),),
}
