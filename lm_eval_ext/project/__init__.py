"""A project for a team that evaluates its models: questions, a gate, a study, a workflow, and how to use them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_ext.errors import OutputError
from lm_eval_ext.io import write_file
from lm_eval_ext.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

_TEMPLATES = Path(__file__).parent / "templates"

#: Files of a project, and the templates that they are made of.
FILES = {
    "README.md": "README.md",
    "gate.yaml": "gate.yaml",
    "study.yaml": "study.yaml",
    "questions/README.md": "questions.md",
    "questions/questions.jsonl": "questions.jsonl",
    ".github/workflows/gate.yml": "workflow.yml",
    ".gitignore": "gitignore",
}


def write_project(folder: Path, model: str = "") -> Iterator[Path]:
    """Write a project, and yield its files.

    Args:
        folder: new or empty.
        model: name or folder of the model that is evaluated; the embedded one where left out.

    Raises:
        OutputError: the folder holds something, or cannot be written.
    """
    from lm_eval_ext.data import own

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists and is not an empty folder; give the path of a new one")
    words = {
        "NAME": folder.resolve().name,
        "VERSION": __version__,
        "MODEL_LINE": f"model: {model}" if model else "# model: NAME_OR_FOLDER  # the embedded model where left out",
        "PRETRAINED": f"pretrained={model}," if model else "",
    }
    for name, template in FILES.items():
        text = (_TEMPLATES / template).read_text(encoding="utf-8")
        for word, value in words.items():
            text = text.replace(f"@{word}@", value)
        write_file(folder / name, text)
        yield folder / name
    own.write(folder / "questions" / "questions.jsonl", "own", folder / "tasks")
    yield folder / "tasks"
