"""The surface of an option: its form (number, time, date, text), its script, and the spelling that is shown."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import snowballstemmer

from lm_eval_ext.data.blend.source import fold
from lm_eval_ext.data.blend.tables import rows, translations

if TYPE_CHECKING:
    from collections.abc import Iterable

NUMBER, TIME, DATE, TEXT, NUMBERED, MONEY = "number", "time", "date", "text", "numbered text", "money"
AMBIGUOUS = "ambiguous date"
COUNTED = frozenset({NUMBER, TIME, DATE})

_FORMS = (
    (NUMBER, re.compile(r"\d+(\.\d+)?")),
    (TIME, re.compile(r"\d{1,2}:\d{2}")),
    (DATE, re.compile(r"\d{1,2}/\d{1,2}")),
)
_MONEY = re.compile(
    r"[$€£¥₩]|\b(dollars?|pounds?|euros?|pesos?|rupiah|won|yuan|dinars?|d[oó]lar(es)?|libras?)\b"
    r"|δολάρι|ευρώ|λίρες|\d\s*(만\s*)?원|달러|유로|元|美元|欧元|دينار|دولار|يورو|دج"
)
# Options that are more than one answer, or an answer with a gloss.
_UNCLEAN = re.compile(r"[,،、;；/\\()（）\[\]\"“”«»:：?？!|]|\.\.")
_LATIN_ARTICLES = {"en": ("the", "a", "an"), "es": ("el", "la", "los", "las", "un", "una")}
_ARABIC_ARTICLE = "ال"
_LETTER_VARIANTS = str.maketrans("ىةς", "يهσ", "ـ")
_SCRIPTS = ("LATIN", "GREEK", "HANGUL", "CJK", "ARABIC")
_STEMMERS = {"en": "english", "es": "spanish", "id": "indonesian", "el": "greek", "ar": "arabic"}
_HOUR, _DAY = 60, 24 * 60
_SPACE_BETWEEN_HAN = re.compile(r"(?<=[\u4e00-\u9fff])\s+(?=[\u4e00-\u9fff])")
_LOOKALIKES = str.maketrans("ABEZHIKMNOPTYXo", "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧο")
_SMALL_WORDS = re.compile(r"an?|and|at|by|de|for|from|in|la|of|on|or|the|to|vs|with")
_ACRONYMS = re.compile(
    r"bbc|bbq|bts|cba|cctv|dj|dvd|fa|fc|fcb|fifa|gpa|kaist|kbo|kfc|ktv|lg|lol|mc|mca|mit|mlb|mma|nba|ncaa|nfl|nh|nhl|nyc"
    r"|osfp|pao|pe|snu|suv|tv|tx|ucam|uefa|ufc|usm|wps"
)


@cache
def form(text: str) -> str:
    """The form of an answer; all options of an item have the same form."""
    for name, pattern in _FORMS:
        if pattern.fullmatch(text):
            return AMBIGUOUS if name == DATE and not _is_month_and_day(text) else name
    if _MONEY.search(text.lower()):
        return MONEY
    return NUMBERED if any(character.isdigit() for character in text) else TEXT


def is_clean(text: str) -> bool:
    """Whether a text is one answer with no gloss: no list, bracket, slash or quotation (numbers, times and dates aside)."""
    return form(text) in COUNTED or not _UNCLEAN.search(text)


@cache
def script(text: str) -> str:
    """The script of a text; Latin letters are ignored beside another script. Empty for digits alone."""
    scripts = {name for character in text if character.isalpha() for name in [_script_of(character)]}
    return "+".join(sorted(scripts - {"LATIN"} or scripts))


def display(text: str, language: str) -> str:
    """The spelling shown: capitals and final stops are normalised, so that they do not reveal the origin of an option.

    So are the forms of numbers and times (`8:00` becomes `08:00`).
    """
    kind = form(text)
    if kind == NUMBER:
        return text.lstrip("0") if not text.startswith("0.") and text.strip("0") else text
    if kind in (TIME, DATE):
        return re.sub(r"\b(\d)\b", r"0\1", text)
    text = _spellings(language).get(fold(text), text).strip(" .·'’")
    if language == "en":
        return " ".join(_english_word(word, first=not index) for index, word in enumerate(text.split()))
    if language == "zh":
        return _SPACE_BETWEEN_HAN.sub("", text)
    if language == "ar":
        return _bare(text)
    if language == "el":
        text = " ".join(_in_greek(word) for word in text.split())
    return text[:1].upper() + text[1:]


def oddness(text: str, language: str) -> tuple[int, int, int]:
    """A sort key of variants of one answer: the bare form first, then the one with accents."""
    accents = sum(unicodedata.combining(character) > 0 for character in unicodedata.normalize("NFD", text))
    return len(text.split()), text.startswith(_ARABIC_ARTICLE) and language == "ar", -accents


@cache
def key(text: str) -> str:
    """Text for comparing options, without case, accents, Arabic letter variants, articles and punctuation."""
    plain = "".join(c for c in unicodedata.normalize("NFD", fold(text)) if not unicodedata.combining(c))
    plain = unicodedata.normalize("NFC", plain).translate(_LETTER_VARIANTS)
    return " ".join(_without_article(word) for word in re.findall(r"\w+(?:[.:/]\w+)*", plain) if word not in _ARTICLES)


def overlap(a: str, b: str, language: str) -> bool:
    """Whether one text is part of the other: in stems of whole words, or as a substring in scripts without spaces.

    Args:
        a, b: keys of answers (`key`).
    """
    if script(a) in ("CJK", "HANGUL"):
        return a.replace(" ", "") in b.replace(" ", "") or b.replace(" ", "") in a.replace(" ", "")
    first, second = stems(a, language), stems(b, language)
    return bool(first and second) and (first <= second or second <= first)


@cache
def stems(text: str, language: str) -> frozenset[str]:
    """The stems of the words of a text, by the Snowball stemmer of its language."""
    stemmer = _stemmer(language)
    return frozenset(stemmer.stemWord(word) if stemmer else word for word in text.split())


def is_near(text: str, answers: Iterable[str]) -> bool:
    """Whether a number or time is close to one of the answers of the same form.

    Numbers: not below the smallest answer or above the largest one by more than their step, which is the smallest
    difference between two of them, at least 1. Times: within an hour of an answer.
    """
    kind = form(text)
    values = sorted({_value(answer) for answer in answers if form(answer) == kind}) if kind in COUNTED else []
    if not values:
        return False
    value = _value(text)
    if kind == NUMBER:
        step = max(1.0, min((b - a for a, b in pairwise(values)), default=1.0))
        return values[0] - step <= value <= values[-1] + step
    if kind == TIME:
        return any(min((value - other) % _DAY, (other - value) % _DAY) <= _HOUR for other in values)
    return value in values


_ARTICLES = frozenset(word for words in _LATIN_ARTICLES.values() for word in words) | {
    "ο",
    "η",
    "το",
    "τα",
    "οι",
    "τις",
}


def _is_month_and_day(text: str) -> bool:
    """Whether a date is unambiguous: annotators mixed MM/DD and DD/MM."""
    month, day = map(int, text.split("/"))
    return 1 <= month <= 12 and (12 < day <= 31 or day == month)


def _without_article(word: str) -> str:
    return word[2:] if word.startswith(_ARABIC_ARTICLE) and len(word) > 4 else word


def _script_of(character: str) -> str:
    name = unicodedata.name(character, "")
    return next((known for known in _SCRIPTS if name.startswith(known)), "OTHER")


def _in_greek(word: str) -> str:
    """A Greek word with Latin look-alike letters replaced by Greek ones."""
    return word.translate(_LOOKALIKES) if "GREEK" in script(word) else word


def _english_word(word: str, first: bool) -> str:
    lower = word.lower()
    if _ACRONYMS.fullmatch(lower):
        return word.upper()
    if _SMALL_WORDS.fullmatch(lower) and not first:
        return lower
    return word[:1].upper() + (word[1:] if not word.isupper() or len(word) <= 4 else lower[1:])


def _bare(text: str) -> str:
    """An Arabic word without its article, where the translations have that word without one."""
    bare = text.removeprefix(_ARABIC_ARTICLE)
    return bare if bare in _words("ar") else text


def _value(text: str) -> float:
    """A number; the minutes of a time; month times 100 plus day of a date."""
    if form(text) == NUMBER:
        return float(text)
    first, second = map(int, re.split("[:/]", text))
    return float(first * _HOUR + second if form(text) == TIME else first * 100 + second)


@cache
def _stemmer(language: str) -> Any:
    return snowballstemmer.stemmer(_STEMMERS[language]) if language in _STEMMERS else None


@cache
def _words(language: str) -> frozenset[str]:
    return frozenset(translations(language).values())


@cache
def _spellings(language: str) -> dict[str, str]:
    """Folded text -> spelling with capitals: from `spellings.tsv`, and the translations in the same alphabet."""
    tables = ("es", "id") if language in ("es", "id") else (language,)
    capitalised = (spelling for table in tables for spelling in translations(table).values() if spelling[:1].isupper())
    listed = {written: shown for code, written, shown in rows("spellings.tsv", 3) if code == language}
    return {fold(spelling): spelling for spelling in capitalised} | listed
