"""The line by which the comment of a gate is found again, and the comment of one that has no verdict.

Imports little: posting a comment needs no more.
"""

from __future__ import annotations

import re

from lm_eval_ext.errors import GateError
from lm_eval_ext.gate.markdown import escape_references
from lm_eval_ext.redaction import redact_text

#: GitHub's limit of a comment's body, in characters; what is posted adds a line to what is written.
MAX_COMMENT = 65_536
MAX_WRITTEN = MAX_COMMENT - 1_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,49}")


def marker(name: str) -> str:
    """The first line of a comment, by which it is found again.

    Args:
        name: of the gate: several gates of one pull request have a comment each.

    Raises:
        GateError: a name that could end the line.
    """
    if not _NAME.fullmatch(name):
        raise GateError(f"a comment cannot be called {name!r}; valid: up to 50 letters, digits, '.', '_' and '-'")
    return f"<!-- lm-eval-ext gate: {name} -->"


def is_comment(text: str) -> bool:
    """Whether a text begins with a marker."""
    return re.fullmatch(rf"<!-- lm-eval-ext gate: {_NAME.pattern} -->", text.split("\n", 1)[0]) is not None


def misuse_comment(message: str, *, name: str = "gate") -> str:
    """The comment of a gate that could not be judged, so that no earlier verdict stays."""
    said = escape_references(redact_text(message[:20_000]))
    return "\n".join([marker(name), "## ✗ Gate: not judged", "", said, ""])
