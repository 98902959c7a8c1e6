"""A command and what it prints, as a picture; or a Markdown file as a terminal shows it.

    python docs/terminal_picture.py verify.svg lm-eval-ext verify run.zip
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


def of_command(command: list[str]) -> list[RenderableType]:
    """The command and its output, errors with it."""
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(_WIDTH), "TERM": "xterm-256color"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    output = Text.from_ansi(done.stdout.decode().rstrip())
    return [Text(f"$ {shlex.join(command)}", style="bold"), output, Text(f"exit status {done.returncode}", style="dim")]


def of_markdown(path: Path) -> list[RenderableType]:
    """The text; what GitHub folds is shown open."""
    text = _SUMMARY.sub(r"**▸ \1**", _COMMENT.sub("", path.read_text(encoding="utf-8")))
    text = _TAG.sub("", text)
    for entity, character in _ENTITIES.items():
        text = text.replace(entity, character)
    return [Markdown(text)]


def main() -> None:
    out, first, *rest = sys.argv[1:]
    shown = of_markdown(Path(rest[0])) if first == "--markdown" else of_command([first, *rest])
    Path(out).write_text(picture(shown, " ".join(rest[:1] if first == "--markdown" else [first, *rest[:1]]), _WIDTH))


if __name__ == "__main__":
    main()
