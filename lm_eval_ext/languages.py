"""The languages of the study: codes, names, the country whose culture each stands for, prompt words.

`LANGUAGES` are the seven of most tasks, `FURTHER` those that only some tasks have (`localization_gap`). Steering and result
files know any language by its code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_eval_ext.errors import LanguageError

if TYPE_CHECKING:
    from collections.abc import Mapping


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

#: Languages of `localization_gap` besides English.
FURTHER: dict[str, Language] = {
    language.code: language
    for language in (
        Language("tr", "Turkish", "Turkey", "Soru", "Cevap"),
        Language("bn", "Bengali", "Bangladesh", "প্রশ্ন", "উত্তর"),
        Language("fr", "French", "France", "Question", "Réponse", colon=" :"),
        Language("ru", "Russian", "Russia", "Вопрос", "Ответ"),
    )
}

#: Every language that has a name here, in the order of tables and figures.
KNOWN: dict[str, Language] = LANGUAGES | FURTHER

NON_ENGLISH: tuple[str, ...] = tuple(code for code in LANGUAGES if code != "en")

#: The macro average over all languages but English, among the codes of a column of languages.
AVERAGE = "average"

#: Countries whose answers count as English-biased in the six other languages.
ENGLISH_COUNTRIES: frozenset[str] = frozenset({"US", "UK"})

#: Three-letter codes (ISO 639-2 and 639-3) by the two-letter code of the same language.
_THREE_LETTERS = {
    "af": "afr", "am": "amh", "ar": "ara arb", "as": "asm", "az": "aze azj", "be": "bel", "bg": "bul", "bn": "ben",
    "bs": "bos", "ca": "cat", "cs": "ces", "da": "dan", "de": "deu", "el": "ell", "en": "eng", "es": "spa",
    "et": "est ekk", "eu": "eus", "fa": "fas pes", "fi": "fin", "fr": "fra", "ga": "gle", "gl": "glg", "ha": "hau",
    "he": "heb", "hi": "hin", "hr": "hrv", "hu": "hun", "hy": "hye", "id": "ind", "ig": "ibo", "is": "isl",
    "it": "ita", "ja": "jpn", "jv": "jav", "ka": "kat", "kk": "kaz", "km": "khm", "kn": "kan", "ko": "kor",
    "ky": "kir", "lo": "lao", "lt": "lit", "lv": "lav lvs", "mg": "mlg plt", "mk": "mkd", "ml": "mal", "mr": "mar",
    "ms": "msa zsm", "my": "mya", "ne": "nep npi", "nl": "nld", "no": "nor nob", "ny": "nya", "pa": "pan", "pl": "pol",
    "pt": "por", "ro": "ron", "ru": "rus", "sd": "snd", "si": "sin", "sk": "slk", "sl": "slv", "sn": "sna",
    "so": "som", "sq": "sqi als", "sr": "srp", "su": "sun", "sv": "swe", "sw": "swa swh", "ta": "tam", "te": "tel",
    "th": "tha", "tl": "tgl", "tr": "tur", "uk": "ukr", "ur": "urd", "uz": "uzb uzn", "vi": "vie", "wo": "wol",
    "xh": "xho", "yo": "yor", "zh": "zho cmn", "zu": "zul",
}  # fmt: skip
_ALIASES = {alias: code for code, aliases in _THREE_LETTERS.items() for alias in aliases.split()}


def normalise(code: str) -> str:
    """The short code of a language tag: `ko`, `KO`, `ko-KR` and `kor_Hang` are all `ko`.

    Languages that are not named here pass through (lower-cased, region dropped): vector files may hold any language.
    """
    base = code.strip().lower().replace("_", "-").split("-")[0]
    return _ALIASES.get(base, base)


def get(code: str, among: Mapping[str, Language] = LANGUAGES) -> Language:
    """The `Language` of a code.

    Args:
        code: such as ko or kor_Hang.
        among: the languages that are valid: the seven by default, or `KNOWN`.

    Raises:
        LanguageError: the language is not among them.
    """
    try:
        return among[normalise(code)]
    except KeyError:
        raise LanguageError(
            f"unknown language {code!r}; valid: {', '.join(among)} (codes such as kor_Hang or zh-CN are understood)"
        ) from None
