"""For mkdocstrings: `a, b: text` in a docstring's list of arguments is an entry of each, and an `Example:` is code."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import griffe

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECTIONS = re.compile(r"^( *)(Args|Attributes|Returns|Raises):\n((?:\1 +.*\n|\n)*)", re.MULTILINE)
_EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)
_ENTRY = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", re.MULTILINE)


class SplitNames(griffe.Extension):
    """Splits entries of several names before a docstring is parsed."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(r"\1Examples:", split_names(obj.docstring.value))


def split_names(text: str) -> str:
    """The text with an entry for each name."""
    return _SECTIONS.sub(lambda section: "".join(_split(section)), text + "\n").rstrip("\n")


def _split(section: re.Match[str]) -> Iterator[str]:
    yield f"{section[1]}{section[2]}:\n"
    yield _ENTRY.sub(
        lambda entry: "\n".join(f"{entry[1]}{name}: {entry[3]}" for name in entry[2].split(", ")), section[3]
    )
