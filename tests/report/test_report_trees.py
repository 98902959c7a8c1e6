"""A report of every result tree in results/ is built by the real command, without warnings; the demo's too, once it ran."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lm_eval_ext.results.run import Run  # noqa: TC001
from lm_eval_ext.results.runs import load

ROOT = Path(__file__).parents[2]
#: Folders that hold what the harness wrote; vectors, sweeps and tables are others.
TREES = sorted({path.relative_to(ROOT).parts[1] for path in ROOT.glob("results/*/**/results_*.json")})


def axis_of(subject: str, run: Run) -> str:
    """A family of an axis that was evaluated, else the first task."""
    families = {record.family for record in run.tasks.values() if record.axis == subject and not record.variant_of}
    return min(families, default=min(run.tasks))


def test_there_is_a_tree():
    assert "baselines" in TREES


@pytest.mark.parametrize("name", TREES)
def test_a_report_is_built_without_warnings(name, tmp_path):
    tree = load(ROOT / "results" / name)
    baseline = next((run for run in tree.runs if not run.plan), tree.runs[0])
    x, y = (axis_of(subject, baseline) for subject in ("transfer", "localization"))
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
