"""The output of commands, and how they end on a user error."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lm_eval_ext.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console, RenderableType

#: What an SVG of rich fetches from elsewhere.
_FETCHED = re.compile(r"@font-face \{.*?\}\s*|<!--.*?-->\s*", re.DOTALL)
#: What XML 1.0 cannot hold, escaped or not.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@contextmanager
def user_errors() -> Iterator[None]:
    """Print a `UserError` as one message on standard error and exit with status 2; no traceback."""
    try:
        yield
    except UserError as error:
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True).print(Text(f"error: {error}", style="red"), soft_wrap=True)
        raise SystemExit(2) from None


def output(min_width: int = 0, *, stderr: bool = False) -> Console:
    """A console that prints text as it is.

    Args:
        min_width: columns of the output where it is not a terminal, so that a log does not fold tables.
        stderr: print to standard error.
    """
    from rich.console import Console

    console = Console(stderr=stderr, markup=False, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, min_width)
    return console


def picture(shown: Iterable[RenderableType], title: str, width: int = 150) -> str:
    """What a terminal would show as an SVG, without fonts from elsewhere.

    Args:
        shown: tables and lines.
        title: of the picture.
        width: in columns.
    """
    import io

    from rich.console import Console

    console = Console(record=True, width=width, file=io.StringIO(), markup=False, highlight=False)
    for part in shown:
        console.print(part)
    return xml_text(_FETCHED.sub("", console.export_svg(title=title)))


def xml_text(text: str) -> str:
    """The text with a question mark for each character that XML cannot hold."""
    return _NOT_XML.sub("?", text)
