"""The schema of a user's own questions, which `own` reads: one JSON object per line."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lm_eval_ext import languages
from lm_eval_ext.configs import Table, Text
from lm_eval_ext.data.prompts import PROMPTS

ALPHABET = "ABCDEFGHIJ"
#: Soft hyphen, zero-width space and no-break space, word joiner, marks of direction.
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
#: Other names of the two countries of `english_bias`, which would not be counted.
_ENGLISH = {"usa": "US", "u.s.": "US", "united states": "US", "united kingdom": "UK", "u.k.": "UK", "gb": "UK"}
_ENGLISH |= {"america": "US", "united states of america": "US", "great britain": "UK", "britain": "UK", "england": "UK"}


def _code(value: str) -> str:
    code = languages.normalise(value)
    if code not in PROMPTS:
        raise ValueError(f"unknown language {code!r}; valid: {', '.join(sorted(PROMPTS))}")
    return code


def _country(name: str) -> str:
    if (proper := _ENGLISH.get(name.lower())) and name != proper:
        raise ValueError(f"{name!r}: write {proper}")
    return name


def _different(options: list[str]) -> list[str]:
    if len(set(options)) < len(options):
        raise ValueError
    looks: dict[str, int] = {}
    for number, option in enumerate(options):
        if not look(option):
            raise ValueError(f"option {number} shows nothing: {option!a}")
        if (first := looks.setdefault(look(option), number)) != number:
            raise ValueError(
                f"options {first} and {number} look the same, {option!r}, and differ only in their Unicode form "
                f"({options[first]!a} and {option!a})"
            )
    return options


def look(text: str) -> str:
    """What a reader sees of a text: composed (NFC), without characters that show nothing, white space folded.

    Joiners (U+200C, U+200D) stay: they change how words of some scripts are written.
    """
    return " ".join(unicodedata.normalize("NFC", _INVISIBLE.sub("", text)).split())


_Country = Annotated[Text, AfterValidator(_country)]
_Countries = Annotated[list[_Country], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class Question(Table):
    """One line.

    Attributes:
        question: text.
        options: 2 to 10 different texts.
        answer: the right option: its number from 0, its letter, or its text.
        language: code.
        countries: of each option one or more.
        id: the same in every language for the same question.
        topic: text.
    """

    question: Text = Field(description="a text that is not empty")
    options: Annotated[list[Text], AfterValidator(_different)] = Field(
        min_length=2, max_length=len(ALPHABET), description=f"a list of 2 to {len(ALPHABET)} different texts"
    )
    answer: Any = Field(description="the number of an option from 0, its letter, or its text")
    language: Annotated[Text, AfterValidator(_code)] = Field(description="a code such as ko")
    countries: list[_Countries] | None = Field(
        default=None, description="a list: of each option its country, or a list of them"
    )
    id: Any = None
    topic: Text | None = Field(default=None, description="a text that is not empty")

    @property
    def letters(self) -> list[str]:
        """The letters of the options."""
        return list(ALPHABET[: len(self.options)])

    @property
    def gold(self) -> int:
        """The number of the right option.

        Raises:
            ValueError: the answer means no option, or two.
        """
        answer, matches = self.answer, set[int]()
        if isinstance(answer, int) and not isinstance(answer, bool):
            matches = {answer} & set(range(len(self.options)))
        elif isinstance(answer, str):
            matches = {n for n, option in enumerate(self.options) if look(option) == look(answer)}
            matches |= {n for n, letter in enumerate(self.letters) if letter == answer}
        if len(matches) != 1:
            what = "may mean two options" if matches else "is none of the options"
            valid = f"a number from 0 to {len(self.options) - 1}, a letter, or an option's text"
            raise ValueError(f"answer {answer!r} {what}: give {valid}")
        return matches.pop()

    @model_validator(mode="after")
    def _fits_together(self) -> Question:
        _ = self.gold  # raises
        if self.countries is not None and (len(self.countries) != len(self.options) or not all(self.countries)):
            raise ValueError(
                f"countries must name one or more for each of the {len(self.options)} options, got {self.countries!r}"
            )
        return self
