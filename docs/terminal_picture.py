"""Commands and what they print, as a picture; or a Markdown file as a terminal shows it.

    python docs/terminal_picture.py verify.svg "lm-eval-ext verify run.zip" "lm-eval-ext rerun run.zip"
    python docs/terminal_picture.py comment.svg --markdown comment.md

The pictures of `results/` that no option of a command writes are made by it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markdown import Markdown
from rich.text import Text

from lm_eval_ext.console import picture

if TYPE_CHECKING:
    from rich.console import RenderableType

_WIDTH = 150
#: Folded parts of a comment: their title becomes a line that stands out.
_SUMMARY = re.compile(r"<details[^>]*><summary>(.*?)</summary>")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_TAG = re.compile(r"</?\w[^>]*>")
_ENTITIES = {"&lt;": "\\<", "&gt;": ">", "&amp;": "&"}


def of_commands(commands: list[str]) -> list[RenderableType]:
    """Each command and its output, errors with it; no shell runs them."""
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(_WIDTH), "TERM": "xterm-256color"}
    shown: list[RenderableType] = []
    for command in commands:
        done = subprocess.run(
            shlex.split(command), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        shown += [Text(f"$ {command}", style="bold"), Text.from_ansi(done.stdout.decode().rstrip()), ""]
    return shown[:-1]


def of_markdown(path: Path) -> list[RenderableType]:
    """The text; what GitHub folds is shown open."""
    text = _SUMMARY.sub(r"**▸ \1**", _COMMENT.sub("", path.read_text(encoding="utf-8")))
    text = _TAG.sub("", text)
    for entity, character in _ENTITIES.items():
        text = text.replace(entity, character)
    return [Markdown(text)]


def main() -> None:
    """Write the picture."""
    out, *rest = sys.argv[1:]
    shown = of_markdown(Path(rest[1])) if rest[0] == "--markdown" else of_commands(rest)
    title = Path(rest[1]).name if rest[0] == "--markdown" else "lm-eval-ext"
    Path(out).write_text(picture(shown, title, _WIDTH), encoding="utf-8")


if __name__ == "__main__":
    main()
