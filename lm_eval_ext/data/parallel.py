"""Texts that are the same in several languages, and the tasks that must not be evaluated after training on a corpus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_eval_ext.data import pairs
from lm_eval_ext.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: The fewest texts of which a statistic is worth computing (our default).
MIN_TEXTS = 5

#: Tasks made from a corpus, by the prefix of their names; they must not be evaluated after training on the corpus.
MADE_OF: dict[str, tuple[str, ...]] = {
    "flores": ("flores", "sib200", "belebele"),
    "ntrex": ("ntrex",),
    "mini": (),
    "gmmlu": ("gmmlu", "global_mmlu", "mmlu", "openai_mmlu", "mmmlu"),
}


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

    def by_id(self) -> dict[str, dict[str, str]]:
        """For each language, the texts by their ids."""
        return {code: dict(zip(self.ids, of_code, strict=True)) for code, of_code in self.texts.items()}


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
        pair_set.language: by_key((pair.positive, pair.negative) for pair in pair_set.pairs) for pair_set in pair_sets
    }
    english = {text: text for text in next(iter(translations.values()))}
    parallel = in_common(f"sentences ({pair_sets[0].source})", {"en": english, **translations}, limit)
    # The keys are sentences of the corpus; numbers are shown in their place.
    numbers = {text: str(number) for number, text in enumerate(english, start=1)}
    return ParallelTexts(parallel.name, tuple(numbers[text] for text in parallel.ids), parallel.texts)


def by_key(texts: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Texts by their key, the first of each."""
    by_key: dict[str, str] = {}
    for key, text in texts:
        by_key.setdefault(key, text)
    return by_key


def in_common(
    name: str, by_language: dict[str, dict[str, str]], limit: int | None, axis: str | None = None
) -> ParallelTexts:
    """The texts whose keys all languages have, the first `limit` of them.

    Raises:
        DataError: fewer than `MIN_TEXTS`.
    """
    ids = [key for key in next(iter(by_language.values())) if all(key in texts for texts in by_language.values())]
    chosen = tuple(ids[:limit])
    if len(chosen) < MIN_TEXTS:
        raise DataError(
            f"{name}: {len(chosen)} texts in {', '.join(by_language)}, at least {MIN_TEXTS} are needed. "
            "Raise the limit, leave a language out, or take another source"
        )
    texts_by_language = {code: tuple(texts[key] for key in chosen) for code, texts in by_language.items()}
    return ParallelTexts(name, chosen, texts_by_language, axis)


def refuse_mixing(source: str, tasks: Sequence[str]) -> None:
    """Refuse tasks that are made from the training corpus (SIB-200 and Belebele are made from FLORES).

    Raises:
        DataError: one of the tasks is; the message names it.
    """
    names = MADE_OF.get(source, ())
    if mixed := [task for task in tasks if names and task.lower().replace("-", "").startswith(names)]:
        raise DataError(
            f"{', '.join(mixed)} has the sentences of {source}, which is trained on: leave it out, or train on another "
            f"corpus, such as {'ntrex' if source == 'flores' else 'flores'}"
        )
