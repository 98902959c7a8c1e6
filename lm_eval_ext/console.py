"""The output of commands, how they end on a user error, and how talkative they are.

Results go to standard output; notes, progress and errors go to standard error, which `--quiet` leaves to errors. Colours
are off where the output is no terminal, and with `NO_COLOR`.
"""

from __future__ import annotations

import math
import os
import re
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lm_eval_ext.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console, RenderableType

#: What an SVG of rich fetches from elsewhere.
_FETCHED = re.compile(r"@font-face \{.*?\}\s*|<!--.*?-->\s*", re.DOTALL)
#: Empty lines and the space before others: Spaces of the text are entities.
_INDENTED = re.compile(r"\n\s+")
#: What each of its names begins with.
_PREFIX = re.compile(r"\bterminal-(\d+)-")
#: What XML 1.0 cannot hold, escaped or not.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

#: Set by `--quiet`, for this process and those that it starts.
QUIET = "LM_EVAL_EXT_QUIET"

#: Seconds between two lines of a progress bar in a log.
_LOG_INTERVAL = "10"


def is_quiet() -> bool:
    """Whether notes and progress are unwanted."""
    return os.environ.get(QUIET, "") not in ("", "0")


def set_up_progress(*, quiet: bool = False) -> None:
    """Progress bars for a person at a terminal, few lines in a log, none at all where it is quiet.

    To be called before tqdm is imported, which reads its environment then; what the user has set there stays.
    """
    if quiet:
        os.environ[QUIET] = "1"
    if is_quiet():
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    elif not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", _LOG_INTERVAL)


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


def print_json(content: Any) -> None:
    """Print one JSON document on standard output; NaN is null."""
    import json

    text = json.dumps(_finite(content), ensure_ascii=False, indent=2, default=str)
    sys.stdout.write(text + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if hasattr(value, "item"):  # a number of numpy
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def notes() -> Console:
    """A console on standard error for what a reader should know and a script need not."""
    console = output(160, stderr=True)
    console.quiet = is_quiet()
    return console


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
    drawn = _INDENTED.sub("\n", _FETCHED.sub("", console.export_svg(title=title)))
    return xml_text(_PREFIX.sub(r"t\1-", drawn))


def xml_text(text: str) -> str:
    """The text with a question mark for each character that XML cannot hold."""
    return _NOT_XML.sub("?", text)
