"""action.yml and the examples: their steps run here, with the real commands."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.gates import answers, write_gate, write_pair
from typer.testing import CliRunner

from lm_eval_ext import cli

ROOT = Path(__file__).parents[2]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
TASKS = "transfer_mini_ko_cloze,localization_mini_ko_cloze"
HOSTILE = 'o $(touch pwned) `touch pwned`"; touch pwned #'

#: Stands for `python -m pip`; anything else is the real one.
PYTHON = f"""#!/bin/bash
if [[ "$1 $2" == "-m pip" ]]; then printf '%s\\n' "$@" > pip.log; exit 0; fi
exec {sys.executable} "$@"
"""


def script(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def step(name: str, folder: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run one step as GitHub would: its variables filled in, its script in bash with -e and pipefail."""
    values = {key: spec.get("default", "") for key, spec in ACTION["inputs"].items()} | inputs
    variables = {
        key: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: values[match[1]], str(text))
        for key, text in STEPS[name]["env"].items()
    }
    script(folder / "bin" / "python", PYTHON)
    outside = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "GITHUB_ACTIONS": "true",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    outside |= {"GITHUB_ACTION_PATH": str(ROOT), "PYTHONPATH": str(ROOT)}
    outside |= {f"GITHUB_{name}": str(folder / name.lower()) for name in ("OUTPUT", "STEP_SUMMARY")}
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[name]["run"]],
        cwd=folder,
        env={**os.environ, **outside, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_input_is_pasted_into_a_script():
    for name, one in STEPS.items():
        assert one["shell"] == "bash", name
        assert "${{" not in one["run"], name
        assert set(re.findall(r"inputs\.([\w-]+)", str(one["env"]))) <= ACTION["inputs"].keys()
    used = {name for one in STEPS.values() for name in re.findall(r"inputs\.([\w-]+)", str(one["env"]))}
    assert used == ACTION["inputs"].keys()  # none is there for nothing


@pytest.mark.parametrize(
    ("package", "installed"), [("", f"{ROOT}[model]"), ("-r evil; touch pwned", "-r evil; touch pwned")]
)
def test_install(tmp_path, package, installed):
    assert step("Install", tmp_path, package=package).returncode == 0
    assert (tmp_path / "pip.log").read_text().splitlines() == ["-m", "pip", "install", "--", installed]
    assert not (tmp_path / "pwned").exists()


def test_evaluate_and_gate(tmp_path):
    """A real evaluation by the harness's model that guesses, and the gate on what it wrote."""
    evaluated = step("Evaluate", tmp_path, model="dummy", tasks=TASKS, limit="6", output=HOSTILE, **{"batch-size": "1"})
    assert evaluated.returncode == 0, evaluated.stderr
    assert not (tmp_path / "pwned").exists()
    results = tmp_path / HOSTILE / "results"
    rules = {"pass": "max_changed: 0", "fail": "floor: 0.99", "inconclusive": "margin: 0.01", "misuse": "languages: el"}
    for rule in rules.values():
        write_gate(tmp_path, f"axis: transfer_mini_cloze, {rule}").rename(tmp_path / f"{rule.split(':')[0]}.yaml")
    renewed = CliRunner().invoke(
        cli.app,
        ["gate", "renew", f"{tmp_path}/max_changed.yaml", f"--baseline={tmp_path}/committed", f"--candidate={results}"],
    )
    assert renewed.exit_code == 0, renewed.output

    statuses = {}
    for verdict, rule in rules.items():
        (tmp_path / "output").unlink(missing_ok=True)
        judged = step("Gate", tmp_path, gate=f"{rule.split(':')[0]}.yaml", baseline="committed", output=HOSTILE)
        statuses[verdict] = judged.returncode
        assert (tmp_path / "output").read_text() == f"verdict={verdict}\n", judged.stderr
    assert statuses == {"pass": 0, "fail": 1, "inconclusive": 2, "misuse": 3}
    assert (tmp_path / HOSTILE / "gate.json").is_file()
    assert (tmp_path / HOSTILE / "gate.xml").is_file()
    assert (tmp_path / "step_summary").read_text().count("## ") == 3
    assert not (tmp_path / "pwned").exists()


def test_an_inconclusive_gate_may_only_warn(tmp_path):
    base, new = write_pair(tmp_path, answers(20), answers(20))
    new.rename(tmp_path / "results")
    write_gate(tmp_path, "axis: qa, margin: 0.01")
    inputs = {"gate": "gate.yaml", "baseline": str(base), "output": "."}
    assert step("Gate", tmp_path, **inputs).returncode == 2
    judged = step("Gate", tmp_path, inconclusive="warn", **inputs)
    assert judged.returncode == 0
    assert "::warning title=gate%3A qa acc el::" in judged.stdout


def test_the_workflow_uses_what_the_action_offers():
    workflow = yaml.safe_load((ROOT / "examples" / "github-workflow.yml").read_text())
    (used,) = [one for one in workflow["jobs"]["gate"]["steps"] if one.get("id") == "gate"]
    required = {name for name, spec in ACTION["inputs"].items() if spec.get("required")}
    assert required <= used["with"].keys() <= ACTION["inputs"].keys()


@pytest.mark.parametrize(("lost", "status", "said"), [(0.0, 0, "released: nothing"), (0.2, 1, "a loss is shown")])
def test_the_pre_release_script(tmp_path, lost, status, said):
    base, new = write_pair(tmp_path, answers(), answers(lose={"el": lost}))
    write_gate(tmp_path, "axis: qa, margin: 0.02")
    # `eval` copies results that are there; `gate` is the real command.
    stand_in = f"""#!/bin/bash
if [[ $1 == eval ]]; then
  while [[ $1 != --output_path ]]; do shift; done
  cp -r "$RESULTS" "$2"; exit 0
fi
exec {sys.executable} -m lm_eval_ext "$@"
"""
    script(tmp_path / "bin" / "lm-eval-ext", stand_in)

    def release(results: Path) -> subprocess.CompletedProcess[str]:
        outside = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "RESULTS": str(results)}
        command = ["bash", str(ROOT / "examples" / "pre-release.sh"), "gate.yaml", "committed"]
        outside["OUTPUT"] = f"evaluated-{results.name}"
        return subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **outside}, capture_output=True, text=True, check=False
        )

    first = release(base)
    assert (first.returncode, "this run becomes it" in first.stdout) == (0, True), first.stderr
    second = release(new)
    assert second.returncode == status, second.stderr
    assert said in second.stdout
