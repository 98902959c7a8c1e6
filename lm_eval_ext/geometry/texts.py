"""Parallel texts whose hidden states are measured: questions of both axes, sentences of parallel corpora."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval_ext.data import pairs
from lm_eval_ext.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Fewer texts tell nothing (our default).
MIN_TEXTS = 5


@dataclass(frozen=True)
class Parallel:
    """The same texts in several languages.

    Attributes:
        name: what they are, such as `universal (gmmlu)`.
        ids: of the texts.
        texts: for each language, the texts in the order of `ids`.
    """

    name: str
    ids: tuple[str, ...]
    texts: dict[str, tuple[str, ...]]


def questions(source: str, languages: list[str], limit: int | None) -> list[Parallel]:
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
        _common(f"{axis} ({name})", {code: _first(reader(code)) for code in languages}, limit)
        for axis, name, reader in QUESTIONS[source]
    ]


def sentences(source: str, languages: list[str], limit: int | None) -> Parallel:
    """Sentences in English and all other languages.

    Args:
        source: `mini`, `flores`, `ntrex`, `gmmlu`, or a TSV file with the columns language, positive (English), negative.
        languages: at least one besides English.
        limit: at most so many sentences.

    Raises:
        DataError: as `pairs.load_pairs`, or too few sentences in common.
    """
    sets = pairs.load_pairs("en", source, [code for code in languages if code != "en"] or ["en"])
    by_english = {s.language: _first((pair.positive, pair.negative) for pair in s.pairs) for s in sets}
    english = {text: text for text in next(iter(by_english.values()))}
    found = _common(f"sentences ({sets[0].source})", {"en": english, **by_english}, limit)
    # The keys are sentences of the corpus: only their numbers are shown.
    place = {text: str(number) for number, text in enumerate(english, start=1)}
    return Parallel(found.name, tuple(place[text] for text in found.ids), found.texts)


def _first(texts: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Texts by their key, the first of each."""
    found: dict[str, str] = {}
    for key, text in texts:
        found.setdefault(key, text)
    return found


def _common(name: str, by_language: dict[str, dict[str, str]], limit: int | None) -> Parallel:
    ids = [key for key in next(iter(by_language.values())) if all(key in texts for texts in by_language.values())]
    if len(ids[:limit]) < MIN_TEXTS:
        raise DataError(
            f"{name}: {len(ids[:limit])} texts in {', '.join(by_language)}, at least {MIN_TEXTS} are needed. "
            "Raise the limit, leave a language out, or take another source"
        )
    chosen = tuple(ids[:limit])
    return Parallel(name, chosen, {code: tuple(texts[key] for key in chosen) for code, texts in by_language.items()})


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

    # No answer is looked at: evaluated questions too, or few would be left that all the languages have.
    return ((row["cluster"], row["question"]) for row in blend.documents(language, split="all"))


#: For each source: axis, name of the data, and what reads (id, question) of a language.
QUESTIONS: dict[str, tuple[tuple[str, str, Callable[[str], Iterable[tuple[str, str]]]], ...]] = {
    "mini": (
        ("universal", "transfer_mini", _mini("transfer")),
        ("cultural", "localization_mini", _mini("localization")),
    ),
    "gmmlu": (("universal", "gmmlu", _gmmlu),),
    "blend": (("cultural", "blend", _blend),),
}
