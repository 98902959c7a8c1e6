"""Questions of both axes, whose hidden states are measured like those of parallel sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval_ext.data.parallel import ParallelTexts, by_key, in_common
from lm_eval_ext.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


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
        in_common(f"{axis} ({name})", {code: by_key(read(code)) for code in languages}, limit, axis)
        for axis, name, read in QUESTIONS[source]
    ]


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
