"""action.yml and the examples: their steps run here, with the real commands."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import fake_github, fake_hub
from support.gates import answers, write_gate, write_pair
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.results.runs import load

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "ci"
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
RUN_STEPS = {name: step for name, step in STEPS.items() if "run" in step}
TASKS = "transfer_mini_ko_cloze,localization_mini_ko_cloze"
HOSTILE = 'o $(touch pwned) `touch pwned`"; touch pwned #'

#: Stands for `python -m pip`, and for an evaluation where EVALUATED says what becomes its results; else the real one.
PYTHON = f"""#!/bin/bash
if [[ "$1 $2" == "-m pip" ]]; then printf '%s\\n' "$@" > pip.log; exit 0; fi
if [[ "$3" == eval && -n "$EVALUATED" ]]; then
  printf '%s\\n' "$@" > eval.log
  for word in "$@"; do [[ $word == --output_path=* ]] && out=${{word#*=}}; done
  mkdir -p "$out"; cp -r "$EVALUATED/." "$out"; exit 0
fi
exec {sys.executable} "$@"
"""


def script(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def step(name: str, folder: Path, env: dict[str, str] | None = None, **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run one step as GitHub would: its variables filled in, its script in bash with -e and pipefail.

    `baseline` is the input, and what the step of that name found.
    """
    values = {key: spec.get("default", "") for key, spec in ACTION["inputs"].items()} | inputs
    contexts = {**{f"inputs.{key}": value for key, value in values.items()}}
    contexts["steps.baseline.outputs.folder"] = values["baseline"]
    variables = {
        key: re.sub(r"\$\{\{ ([\w.-]+) \}\}", lambda match: contexts[match[1]], str(text))
        for key, text in STEPS[name]["env"].items()
    }
    script(folder / "bin" / "python", PYTHON)
    outside = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "GITHUB_ACTIONS": "true",
        "OMP_NUM_THREADS": "1",
    }
    outside |= {"GITHUB_ACTION_PATH": str(ROOT), "PYTHONPATH": f"{ROOT}:{os.environ['PYTHONPATH']}"}
    outside |= {f"GITHUB_{name}": str(folder / name.lower()) for name in ("OUTPUT", "STEP_SUMMARY")}
    outside |= {"RUNNER_OS": "Linux", "HOME": str(folder), **(env or {})}
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[name]["run"]],
        cwd=folder,
        env={**os.environ, **outside, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_input_is_pasted_into_a_script():
    for name, one in RUN_STEPS.items():
        assert one["shell"] == "bash", name
        assert "${{" not in one["run"], name
    assert len(RUN_STEPS) > 6
    used = {
        name
        for one in STEPS.values()
        for key in ("env", "with", "if")
        for name in re.findall(r"inputs\.([\w-]+)", str(one.get(key, "")))
    }
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
    workflow = yaml.safe_load((EXAMPLES / "github-workflow.yml").read_text())
    (used,) = [one for one in workflow["jobs"]["gate"]["steps"] if one.get("id") == "gate"]
    required = {name for name, spec in ACTION["inputs"].items() if spec.get("required")}
    assert required <= used["with"].keys() <= ACTION["inputs"].keys()
    assert workflow["permissions"]["pull-requests"] == "write"


def test_the_pipeline_of_gitlab_is_made_of_commands_that_exist():
    pipeline = yaml.safe_load((EXAMPLES / "gitlab-ci.yml").read_text())
    lines = [line for line in pipeline["gate"]["script"] if line.startswith("lm-eval-ext")]
    assert [line.split()[1] for line in lines] == ["eval", "bundle", "gate"]
    options = {word for word in lines[2].split() if word.startswith("--")}
    told = CliRunner().invoke(cli.app, ["gate", "check", "--help"], terminal_width=200).output
    assert all(option in told for option in options)
    kept = {*pipeline["gate"]["artifacts"]["paths"], pipeline["gate"]["artifacts"]["reports"]["junit"]}
    assert kept <= set(" ".join(lines).split())


#: `eval` copies results that are there, or fails where there are none; everything else is the real command.
STAND_IN = f"""#!/bin/bash
if [[ $1 == eval ]]; then
  while [[ $1 != --output_path ]]; do shift; done
  cp -r "$RESULTS" "$2"; exit
fi
exec {sys.executable} -m lm_eval_ext "$@"
"""


def test_the_pipeline_of_gitlab_runs(tmp_path):
    """Its script in one shell that ends at the first error, as GitLab runs it; artifacts are there after a failure too."""
    job = yaml.safe_load((EXAMPLES / "gitlab-ci.yml").read_text())["gate"]
    base, new = write_pair(tmp_path, answers(60), answers(60, lose={"el": 0.4}))
    (tmp_path / "baselines").mkdir()
    base.rename(tmp_path / "baselines" / "main")
    write_gate(tmp_path, "axis: qa, margin: 0.1")
    script(tmp_path / "bin" / "lm-eval-ext", STAND_IN)
    outside = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "RESULTS": str(new)}
    outside |= {"MODEL": "org/new", "TASKS": job["variables"]["TASKS"], "GITHUB_ACTIONS": "", "GITHUB_STEP_SUMMARY": ""}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", "\n".join(job["script"])],
        cwd=tmp_path,
        env={**os.environ, **outside},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    kept = [*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]]
    assert all((tmp_path / name).is_file() for name in kept)
    assert job["artifacts"]["when"] == "always"


def test_the_whole_action_on_a_pull_request(tmp_path):
    """Every step with a script, the API of GitHub a local one: baseline by artifact, verdict as a comment, bundle."""
    base, new = write_pair(tmp_path / "made", answers(60), answers(60, lose={"el": 0.4}), token="s3cr3tValue9")
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        for file in base.rglob("*.json*"):
            archive.write(file, file.relative_to(base))
    write_gate(tmp_path, "axis: qa, margin: 0.1")
    with fake_github.serve() as github:
        github.add_artifact("baseline", zipped.getvalue())
        (tmp_path / "event.json").write_text(json.dumps({"pull_request": {"number": 7}}))
        env = fake_github.environment(github, EVALUATED=str(new), GITHUB_EVENT_PATH=str(tmp_path / "event.json"))
        inputs = {"tasks": TASKS, "gate": "gate.yaml", "token": fake_github.TOKEN, "output": "out"}

        fetched = step("Baseline", tmp_path, env, baseline="artifact:baseline", **inputs)
        assert fetched.returncode == 0, fetched.stderr
        (folder,) = re.findall(r"^folder=(.+)$", (tmp_path / "output").read_text(), re.MULTILINE)
        assert sorted(path.name for path in Path(folder).rglob("*.json*")) == sorted(
            p.name for p in base.rglob("*.json*")
        )
        assert ("GET", "/storage/1", "") in github.asked  # the token stays with the API

        assert step("Evaluate", tmp_path, env, **inputs).returncode == 0
        assert step("Gate", tmp_path, env, baseline=folder, **inputs).returncode == 1
        for attempt in ("posted", "updated"):
            said = step("Comment", tmp_path, env, **inputs)
            assert said.stdout.startswith(attempt), said.stderr
        assert step("Bundle", tmp_path, env, **inputs).returncode == 0
        (comment,) = github.comments
        assert comment["body"].startswith("<!-- lm-eval-ext gate: gate -->\n## ✗ Gate: fail")

        github.refuse["PATCH"] = 403, "Resource not accessible by integration"
        refused = step("Comment", tmp_path, env, **inputs)
        assert (refused.returncode, "::warning title=gate::" in refused.stdout) == (0, True)
        assert "pull-requests: write" in refused.stderr
        assert fake_github.TOKEN not in refused.stdout + refused.stderr
    uploaded = [tmp_path / "out" / Path(line).name for line in STEPS["Upload the report"]["with"]["path"].splitlines()]
    assert {path.name for path in uploaded} == {"gate.json", "gate.xml", "gate.svg", "comment.md", "run.zip"}
    assert all(path.is_file() for path in uploaded)


def test_an_evaluation_that_fails_leaves_no_old_verdict(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comment.md").write_text("<!-- lm-eval-ext gate: gate -->\n## ✓ Gate: pass")
    base, _ = write_pair(tmp_path / "made", answers(4), answers(4))
    with fake_github.serve() as github:
        (tmp_path / "event.json").write_text(json.dumps({"pull_request": {"number": 7}}))
        env = fake_github.environment(github, GITHUB_EVENT_PATH=str(tmp_path / "event.json"))
        inputs = {"token": fake_github.TOKEN, "output": "out"}
        assert step("Baseline", tmp_path, env, baseline=str(base), **inputs).returncode == 0
        assert step("Evaluate", tmp_path, env, engine="llama", tasks=TASKS, **inputs).returncode == 3
        assert step("Comment", tmp_path, env, **inputs).returncode == 0
        assert "## ✗ Gate: not judged" in github.comments[0]["body"]
    for name in ("Comment", "Bundle", "Upload the report"):
        assert "always()" in STEPS[name]["if"]


@pytest.mark.parametrize(
    ("inputs", "model"),
    [({}, "steered-hf"), ({"engine": "vllm"}, "steered-vllm"), ({"engine": "vllm", "model": "vllm"}, "vllm")],
)
def test_the_engine_is_passed_on(tmp_path, inputs, model):
    (tmp_path / "made").mkdir()
    env = {"EVALUATED": str(tmp_path / "made")}
    given = {"model-args": "pretrained=org/model,tensor_parallel_size=4", "tasks": TASKS, **inputs}
    assert step("Evaluate", tmp_path, env, **given).returncode == 0
    words = (tmp_path / "eval.log").read_text().splitlines()
    assert f"--model={model}" in words
    assert "--model_args=pretrained=org/model,tensor_parallel_size=4" in words


def test_the_cache_is_named_by_model_and_tasks(tmp_path):
    keys = set()
    for inputs in (
        {"tasks": "a"},
        {"tasks": "b"},
        {"tasks": "b", "model-args": HOSTILE},
        {"tasks": "b", "engine": "vllm"},
    ):
        (tmp_path / "output").unlink(missing_ok=True)
        assert step("Name the cache", tmp_path, **inputs).returncode == 0
        outputs = dict(line.split("=", 1) for line in (tmp_path / "output").read_text().splitlines())
        assert re.fullmatch(r"lm-eval-ext-Linux-[0-9a-f]{16}", outputs["key"])
        assert outputs["key"].startswith(outputs["restore"])
        keys.add(outputs["key"])
    assert len(keys) == 4
    assert outputs["data"] == f"{tmp_path}/.cache/lm_eval_ext"
    assert "LM_EVAL_EXT_CACHE:-$HOME/.cache/lm_eval_ext" in STEPS["Evaluate"]["run"]
    with_outputs = STEPS["Cache models and data"]["with"]
    assert set(re.findall(r"steps\.cache\.outputs\.(\w+)", str(with_outputs))) == outputs.keys()


def test_a_baseline_on_the_hub(tmp_path):
    base, _ = write_pair(tmp_path / "made", answers(4), answers(4))
    shutil.copytree(base, tmp_path / "dataset" / "main")
    revision = "c" * 40
    server = fake_hub.serve("org/baselines", revision, tmp_path / "dataset", [])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        env = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "HF_HUB_OFFLINE": "0"}
        fetched = step("Baseline", tmp_path, env, baseline=f"hub:org/baselines@{revision}:main")
        assert fetched.returncode == 0, fetched.stderr
    finally:
        server.shutdown()
        server.server_close()
    (folder,) = re.findall(r"^folder=(.+)$", (tmp_path / "output").read_text(), re.MULTILINE)
    assert load(folder).runs[0].model == "org/base"


@pytest.mark.parametrize(("lost", "status", "said"), [(0.0, 0, "released: nothing"), (0.2, 1, "a loss is shown")])
def test_the_pre_release_script(tmp_path, lost, status, said):
    base, new = write_pair(tmp_path, answers(), answers(lose={"el": lost}))
    write_gate(tmp_path, "axis: qa, margin: 0.02")
    script(tmp_path / "bin" / "lm-eval-ext", STAND_IN)

    def release(results: Path) -> subprocess.CompletedProcess[str]:
        outside = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "RESULTS": str(results)}
        command = ["bash", str(EXAMPLES / "pre-release.sh"), "gate.yaml", "committed"]
        outside["OUTPUT"] = f"evaluated-{results.name}"
        return subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **outside}, capture_output=True, text=True, check=False
        )

    first = release(base)
    assert (first.returncode, "this run becomes it" in first.stdout) == (0, True), first.stderr
    second = release(new)
    assert second.returncode == status, second.stderr
    assert said in second.stdout
    kept = {"gate.json", "gate.xml", "gate.svg", "comment.md", "run.zip"}
    assert kept <= {path.name for path in (tmp_path / "evaluated-new").iterdir()}


def test_the_pre_release_script_without_a_verdict(tmp_path):
    """Its status is never that of a verdict that there was not."""
    script(tmp_path / "bin" / "lm-eval-ext", STAND_IN)
    outside = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "RESULTS": str(tmp_path / "nowhere")}
    for words, said in (([], "usage: "), (["gate.yaml", "committed"], "not released: the evaluation failed")):
        done = subprocess.run(
            ["bash", str(EXAMPLES / "pre-release.sh"), *words],
            cwd=tmp_path,
            env={**os.environ, **outside},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, said in done.stderr) == (3, True), done.stderr
