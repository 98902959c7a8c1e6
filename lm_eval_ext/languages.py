"""The seven languages of the study: codes, names, the country whose culture each stands for, prompt words."""

from __future__ import annotations

from dataclasses import dataclass

from lm_eval_ext.errors import LanguageError


@dataclass(frozen=True)
class Language:
    """One language and what the tasks need to know of it.

    Attributes:
        code: two-letter code used in task names, vector files and documents.
        name: English name.
        country: the country whose culture is the local one (our default; the paper names none), as BLEnD spells it.
        question, answer: the words before the colon in the `*_cloze` prompts.
        colon: the colon as the script writes it.
        delimiter: what stands between the prompt and an option's text (Chinese writes none).
    """

    code: str
    name: str
    country: str
    question: str
    answer: str
    colon: str = ":"
    delimiter: str = " "


LANGUAGES: dict[str, Language] = {
    language.code: language
    for language in (
        Language("en", "English", "US", "Question", "Answer"),
        Language("es", "Spanish", "Spain", "Pregunta", "Respuesta"),
        Language("id", "Indonesian", "Indonesia", "Pertanyaan", "Jawaban"),
        Language("el", "Greek", "Greece", "Ερώτηση", "Απάντηση"),
        Language("ko", "Korean", "South_Korea", "질문", "답"),
        Language("zh", "Chinese", "China", "问题", "答案", colon="：", delimiter=""),
        Language("ar", "Arabic", "Algeria", "السؤال", "الإجابة"),
    )
}

NON_ENGLISH: tuple[str, ...] = tuple(code for code in LANGUAGES if code != "en")

#: The macro average over all languages but English, among the codes of a column of languages.
AVERAGE = "average"

#: Countries whose answers count as English-biased in the six other languages.
ENGLISH_COUNTRIES: frozenset[str] = frozenset({"US", "UK"})

_ALIASES = {
    "eng": "en",
    "spa": "es",
    "ind": "id",
    "ell": "el",
    "kor": "ko",
    "zho": "zh",
    "cmn": "zh",
    "ara": "ar",
    "arb": "ar",
}


def normalise(code: str) -> str:
    """The short code of a language tag: `ko`, `KO`, `ko-KR` and `kor_Hang` are all `ko`.

    Languages outside the seven pass through (lower-cased, region dropped): vector files may hold any language.
    """
    base = code.strip().lower().replace("_", "-").split("-")[0]
    return _ALIASES.get(base, base)


def get(code: str) -> Language:
    """The `Language` of a code.

    Raises:
        LanguageError: the language is not one of the seven.
    """
    try:
        return LANGUAGES[normalise(code)]
    except KeyError:
        raise LanguageError(
            f"unknown language {code!r}; valid: {', '.join(LANGUAGES)} (codes such as kor_Hang or zh-CN are understood)"
        ) from None
