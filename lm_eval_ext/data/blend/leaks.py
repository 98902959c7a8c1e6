"""Detection of names of a country, nationality, currency or national institution of any of the seven languages.

The words are in `blend_tables/leaks.tsv` (language or `*`, category, pattern), allowed texts with their reasons in
`blend_tables/leaks_allowed.tsv`. Both are matched without case, accents or Arabic letter variants.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache

from lm_eval_ext.data.blend import forms
from lm_eval_ext.data.blend.tables import rows

_ARABIC_VARIANTS = str.maketrans("ىة", "يه", "ـ")


@dataclass(frozen=True)
class Leak:
    """A match: its category (country, currency, institution) and the text that matched."""

    category: str
    text: str


@dataclass(frozen=True)
class Allowed:
    """A text that is allowed in one language (`*`: all) and one question (`*`: all), and the reason.

    Attributes:
        text: whole words; after `=` the whole question or option.
    """

    language: str
    id: str
    text: str
    reason: str


@lru_cache(maxsize=65536)
def find(text: str, language: str, question_id: str = "*") -> tuple[Leak, ...]:
    """The leaks in a text of one language. English words are searched in every language."""
    plain = _plain(text)
    for allowed in allow_list():
        if allowed.language in ("*", language) and allowed.id in ("*", question_id):
            plain = _pattern_of(allowed.text).sub(" ", plain)
    return tuple(
        Leak(category, match.group())
        for category, pattern in _patterns(language).items()
        for match in pattern.finditer(plain)
    )


@cache
def allow_list() -> tuple[Allowed, ...]:
    """The allowed texts, longest first."""
    allowed = (Allowed(*fields) for fields in rows("leaks_allowed.tsv", 4))
    return tuple(sorted(allowed, key=lambda entry: -len(entry.text)))


@cache
def _patterns(language: str) -> dict[str, re.Pattern[str]]:
    words: dict[str, list[str]] = {}
    for code, category, pattern in rows("leaks.tsv", 3):
        if code in ("*", language):
            words.setdefault(category, []).append(f"(?:{_plain(pattern)})")
    return {category: re.compile("|".join(patterns)) for category, patterns in words.items()}


@cache
def _pattern_of(allowed: str) -> re.Pattern[str]:
    if allowed.startswith("="):
        return re.compile(rf"\A{re.escape(_plain(allowed[1:]))}\Z")
    # Chinese has no spaces between words, and Korean words take endings.
    edge = "" if forms.script(allowed) in ("CJK", "HANGUL") else r"\b"
    return re.compile(edge + re.escape(_plain(allowed)) + edge)


@lru_cache(maxsize=65536)
def _plain(text: str) -> str:
    # US and UK are names in capitals only; lower case would lose that.
    marked = re.sub(r"\bU\.?S\.?A?\b\.?", "united states", re.sub(r"\bU\.?K\b\.?", "united kingdom", text))
    letters = (c for c in unicodedata.normalize("NFD", marked.lower()) if not unicodedata.combining(c))
    return unicodedata.normalize("NFC", "".join(letters)).translate(_ARABIC_VARIANTS)
