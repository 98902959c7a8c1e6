"""How commands end when the user, not the program, has to act."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from lm_eval_ext.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator


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
