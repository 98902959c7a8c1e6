"""The output of commands, how they end on a user error, and how talkative they are.

Results go to standard output; notes, progress and errors go to standard error, which `--quiet` leaves to errors. Colours
are off where the output is no terminal, and with `NO_COLOR`.
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
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

#: Seconds from which an estimate or a time is worth a line, and that pass before an estimate is made (our defaults).
_WORTH_TELLING, _SHORTEST_SAMPLE = 5.0, 1.0


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


class Progress:
    """A progress bar on standard error, and lines that say how long it will take and has taken, where that is seconds.

    Args:
        total: units in all.
        title: what is done.
        unit: its name in the singular.
        initial: units that were done before.
        seconds: estimate for all that is left; where None, one is made after the first units.
        hidden: show nothing (another process shows it).
    """

    def __init__(
        self,
        total: int,
        title: str,
        unit: str,
        *,
        initial: int = 0,
        seconds: float | None = None,
        hidden: bool = False,
    ) -> None:
        from tqdm import tqdm

        # Given only where it hides the bar: else the environment decides (`set_up_progress`).
        disable: dict[str, Any] = {"disable": True} if hidden else {}
        self._bar: Any = tqdm(total=total, initial=initial, desc=title, unit=unit, **disable)
        self._title, self._unit, self._left, self._done = title, unit, total - initial, 0
        self._is_silent = hidden or is_quiet()
        self._is_told = seconds is not None
        self._started = time.monotonic()
        if seconds is not None and self._left:
            self._tell_estimate(seconds)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(is_complete=kind is None)

    def update(self, n: float = 1) -> None:
        """Add units that were done."""
        self._bar.update(n)
        self._done += int(n)
        seconds = time.monotonic() - self._started
        if not self._is_told and self._done and seconds >= _SHORTEST_SAMPLE:
            self._is_told = True
            self._tell_estimate(seconds / self._done * max(0, self._left - self._done))

    def note(self, text: str) -> None:
        """Show a text beside the bar."""
        self._bar.set_postfix_str(text)

    def close(self, *, is_complete: bool = True) -> None:
        """End the bar, and say what the units took."""
        self._bar.close()
        seconds = time.monotonic() - self._started
        if is_complete and seconds >= _WORTH_TELLING:
            self._say(f"{self._title}: {_counted(self._done, self._unit)} in {duration(seconds)}")

    def _tell_estimate(self, seconds: float) -> None:
        if seconds >= _WORTH_TELLING:
            left = self._left - self._done
            self._say(
                f"{self._title}: {_counted(left, self._unit)}{' left' if self._done else ''}, about {duration(seconds)}"
            )

    def _say(self, line: str) -> None:
        if not self._is_silent:
            self._bar.write(line, file=sys.stderr)


def duration(seconds: float) -> str:
    """`40 s`, `3 min`, `2.1 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _counted(n: int, unit: str) -> str:
    return f"{n:,} {unit}{'' if n == 1 else 's'}"


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
