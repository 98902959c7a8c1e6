"""CSV that a spreadsheet shows as it is: a cell of text never becomes a formula.

Names of runs, models and tasks come from files that others wrote, and a spreadsheet computes a cell that begins with `=`,
`+`, `-` or `@` (OWASP, *CSV Injection*). Such a cell begins with an apostrophe here, which marks text; numbers stay.
"""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

#: Also in full width, and white space in front, which a spreadsheet drops.
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?inf|nan")


def cell(value: Any) -> Any:
    """A value as a cell: text that would be a formula as text, everything else as it is."""
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def rows_to_csv(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([cell(value) for value in row] for row in rows)
    return out.getvalue()


def frame_to_csv(frame: pd.DataFrame, float_format: str) -> str:
    """A frame as CSV, without its index."""
    numbers = set(frame.select_dtypes(["number", "bool"]).columns)
    safe = frame.copy(deep=False)
    for name in safe.columns:
        if name not in numbers:
            safe[name] = safe[name].astype(object).map(cell, na_action="ignore")
    text: str = safe.rename(columns=cell).to_csv(index=False, float_format=float_format)
    return text
