"""What generated texts are like: their language, and how much they repeat themselves."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from lm_eval_ext.errors import LanguageError, UserError
from lm_eval_ext.languages import KNOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Letters that a line needs, so that its language can be told (our default).
MIN_LETTERS = 6
#: Tokens of the pieces whose repetition is counted.
N_GRAM = 4


@lru_cache
def identifier(codes: tuple[str, ...]) -> Callable[[str], str]:
    """What tells the language of a text among some languages and those of the study (py3langid, which needs no network).

    Args:
        codes: of the languages, besides `KNOWN`; the fewer there are, the surer is the answer.

    Raises:
        UserError: py3langid is not installed.
        LanguageError: a language that it does not know.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UserError(
            "the language of generations is told by py3langid, which is not installed: "
            "pip install 'lm_eval_ext[side-effects]', or generate nothing (--new-tokens 0)"
        ) from None
    known = LanguageIdentifier.from_model_file(MODEL_FILE)
    if missing := [code for code in codes if code not in known.labels]:
        raise LanguageError(f"py3langid does not know the language {', '.join(missing)}: leave it out")
    known.set_languages([code for code in dict.fromkeys((*codes, *KNOWN)) if code in known.labels])
    return lambda text: str(known.classify(text)[0])


def languages(text: str, identify: Callable[[str], str]) -> list[str]:
    """The language of each line that has enough letters to tell.

    Lines, as one in another language is a confusion of its own (Marchisio et al. 2024, "Understanding and Mitigating
    Language Confusion in LLMs").
    """
    lines = [line.strip() for line in text.splitlines()]
    return [identify(line) for line in lines if sum(map(str.isalpha, line)) >= MIN_LETTERS]


def repetition(tokens: Sequence[int]) -> float:
    """Share of the 4-grams that stand in the text before (`seq-rep-4` of Welleck et al. 2020); 0 for fewer tokens."""
    grams = list(zip(*(tokens[start:] for start in range(N_GRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
