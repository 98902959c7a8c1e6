"""The output of commands, and how they end on a user error."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from lm_eval_ext.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console


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
