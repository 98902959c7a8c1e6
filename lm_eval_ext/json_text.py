"""JSON of files that others wrote: whatever is wrong with it is a `ValueError` that says so in words."""

from __future__ import annotations

import json
import math
from typing import Any

_SURROGATE = ("\\ud", "\\uD", "\\Ud")


def parse(text: str | bytes) -> Any:
    """The content of a JSON text; halves of a surrogate pair, which cannot be written, become U+FFFD.

    Raises:
        ValueError: not JSON (`json.JSONDecodeError`), not text, nested too deeply, or a number of too many digits.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text))
    try:
        content = json.loads(text)
        return _without_surrogates(content) if any(mark in text for mark in _SURROGATE) else content
    except RecursionError:
        raise ValueError("nested too deeply") from None


def why(error: ValueError, line: int | None = None) -> str:
    """What is wrong with a JSON text and where, to follow a file's name in a message."""
    where = f", line {line}" if line else ""
    if isinstance(error, json.JSONDecodeError):
        return f", line {line or error.lineno}, column {error.colno}: not valid JSON ({error.msg})"
    if isinstance(error, UnicodeError):
        return f"{where}: not text in UTF-8"
    if "digits" in str(error):
        return f"{where}: a number of too many digits"
    return f"{where}: {error}"


def is_finite(value: float) -> bool:
    """Whether a number is one that a score can be: `NaN`, `1e999` and integers beyond a float are not."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_without_surrogates(entry) for entry in value]
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(entry) for key, entry in value.items()}
    return value
