"""Text of others in Markdown: names of models, questions and answers that must stay text."""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"([\\`*_\[\]|~@])")
#: Marks that turn the direction of the text around them.
_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")
#: GitHub looks for people and issues after the escapes are gone; an empty HTML comment keeps it from seeing them.
_REFERENCE = re.compile(r"(\\@|#(?=\d)|\bGH-(?=\d))")


def escape(text: str) -> str:
    """A text as one line of Markdown, in a table or not, that shows what it is."""
    plain = " ".join(_DIRECTION.sub("", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())
    return _SPECIAL.sub(r"\\\1", plain)


def escape_references(text: str) -> str:
    """The same, and nobody and no issue is mentioned by it."""
    return _REFERENCE.sub(r"\1<!-- -->", escape(text))
