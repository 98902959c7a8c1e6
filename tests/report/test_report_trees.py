"""A report of every result tree in results/ is built by the real command, without warnings; the demo's too, once it ran."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lm_eval_ext.results.axes import LOCALIZATION, TRANSFER, family_of
from lm_eval_ext.results.runs import read_tree

ROOT = Path(__file__).parents[2]
#: Folders that hold what the harness wrote; vectors, sweeps and tables are others.
TREES = sorted({path.relative_to(ROOT).parts[1] for path in ROOT.glob("results/*/**/results_*.json")})


def axis_of(families: tuple[str, ...], tasks: set[str]) -> str:
    """The first known family that was evaluated, else the first task."""
    known = [name + form for name in families for form in ("", "_cloze")]
    return next((name for name in known if name in {family_of(task) for task in tasks}), min(tasks))


def test_there_is_a_tree():
    assert "baselines" in TREES


@pytest.mark.parametrize("name", TREES)
def test_a_report_is_built_without_warnings(name, tmp_path):
    tree = read_tree(ROOT / "results" / name)
    baseline = next((run for run in tree.runs if not run.plan), tree.runs[0])
    x, y = (axis_of(families, set(baseline.tasks)) for families in (TRANSFER, LOCALIZATION))
    page = tmp_path / "report.html"
    arguments = [f"results/{name}", "--baseline", baseline.name, "--x", x, "--y", y, "--out", str(page)]
    process = subprocess.run(
        [sys.executable, "-Werror", "-Wignore::DeprecationWarning", "-m", "lm_eval_ext", "report", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert page.stat().st_size > 1_000_000  # with plotly.js
