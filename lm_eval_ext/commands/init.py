"""The command `lm-eval-ext init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the project, new or empty.", show_default=False)],
    model: Annotated[str, typer.Option(help="Model name or folder; the embedded model by default.")] = "",
) -> None:
    """Write a project for a team: own questions, a gate, a study, a workflow.

    The files work as they are. README.md in the folder says how to use them.

    Examples:

      lm-eval-ext init my-eval/

      lm-eval-ext init my-eval/ --model google/gemma-3-1b-pt
    """
    from lm_eval_ext.project import write_project

    for path in write_project(folder, model):
        typer.echo(f"wrote {path}")
    typer.echo(f"next: {folder / 'README.md'}")
