"""Pairs of a user's own as JSON lines, for what no table can hold: prompts of several lines, and several texts of a side.

One JSON object per line:

    language    code, such as ko; `any` for vectors that steer every request
    positive    text, or a list of texts: what the vector points to
    negative    text, or a list of texts: what it points from
    id          optional: any value, for you
    answer      optional: what should follow the negative text, its leading space included

    {"language": "ko", "positive": ["Question: ...\\nAnswer:"], "negative": "Question: ...\\nAnswer:", "answer": " B"}

Texts are used as they are: a prompt should end as it does where it is asked, without a space at its end.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from lm_eval_ext.configs import Table, Text, messages
from lm_eval_ext.data.pairs import Pair
from lm_eval_ext.errors import DataError
from lm_eval_ext.languages import normalise

if TYPE_CHECKING:
    from pathlib import Path

_SHOWN = 10


def _texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError
    return texts


_Texts = Annotated[list[str], BeforeValidator(_texts)]
_NEEDED = "a text that is not empty, or a list of such texts"


class PairLine(Table):
    """One line; see the module."""

    language: Annotated[Text, AfterValidator(normalise)] = Field(description="a code such as ko, or any")
    positive: _Texts = Field(description=_NEEDED)
    negative: _Texts = Field(description=_NEEDED)
    id: Any = None
    answer: str = Field(default="", description="a text")


def read(file: Path) -> dict[str, list[Pair]]:
    """The pairs of a file, by language.

    Raises:
        DataError: no such file, or lines that are not as described; the message names the first of them by number.
    """
    try:
        content = file.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"no pair file at {file} ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{file} is not text in UTF-8") from None
    by_language: dict[str, list[Pair]] = {}
    problems: list[str] = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = PairLine.model_validate(json.loads(line))
        except json.JSONDecodeError as error:
            problems.append(f"line {number}: not JSON ({error.msg}): {line[:80]!r}")
        except ValidationError as error:
            problems += [f"line {number}: {message}" for message in messages(error, PairLine)]
        else:
            (positive, *more_positives), (negative, *more_negatives) = row.positive, row.negative
            pair = Pair(*(positive, negative, row.language, row.answer), tuple(more_positives), tuple(more_negatives))
            by_language.setdefault(row.language, []).append(pair)
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise DataError("\n  ".join([f"{file} has lines that are no pairs:", *problems[:_SHOWN], *more]))
    if not by_language:
        raise DataError(f"{file} has no pairs: one JSON object per line with language, positive and negative")
    return by_language
