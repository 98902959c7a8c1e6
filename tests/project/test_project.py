"""`lm-eval-ext init`: what it writes works, from the questions to the verdict of the gate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from lm_eval.tasks import TaskManager
from support import snippets, tiny
from typer.testing import CliRunner

import lm_eval_ext as lx
from lm_eval_ext import cli
from lm_eval_ext.commands.table import subcommand
from lm_eval_ext.paths import tasks_dir
from lm_eval_ext.project import FILES
from lm_eval_ext.study import config
from lm_eval_ext.study.options import CommandLines
from lm_eval_ext.study.stages import plan as stages_of

#: A few of the tasks that the project asks: all of them take too long here.
TASKS = ["own_cloze", "transfer_mini_ko_cloze", "localization_mini_ko_cloze"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "my-eval"
    result = CliRunner().invoke(cli.app, ["init", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def _without_variables(script: str) -> str:
    return script.replace("${MODEL:+pretrained=$MODEL,}", "")


def test_a_project_goes_from_questions_to_a_verdict(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(project)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    # As the README says after editing the questions.
    shutil.rmtree("tasks")
    code, _ = run("data", "import", "questions/questions.jsonl", "--name", "own", "--out", "tasks/")
    assert code == 0
    manager = TaskManager(include_path=[str(tasks_dir()), "tasks"], include_defaults=False)
    for name, vectors, plan in (("base", None, ""), ("candidate", tiny.vector_file("llama"), "loc@1:30")):
        folder = tiny.roomy_folder("llama")
        options = {"pretrained": folder, "task_manager": manager, "device": "cpu", "limit": 5}
        vectors = tiny.vector_set("llama") if vectors else None
        lx.evaluate(tasks=TASKS, output=f"results/{name}", vectors=vectors, plan=plan, **options)

    # The average over one language stands for that over seven.
    gate = Path("gate.yaml")
    gate.write_text(gate.read_text().replace("languages: average", "languages: ko"))
    base = ("gate.yaml", "--baseline", "baseline", "--candidate")
    code, output = run("gate", "renew", *base, "results/base")
    assert code == 0, output
    code, output = run("gate", *base, "results/base", "--any-order", "--json", "-")
    verdicts = json.loads(output[output.index("{") : output.rindex("}") + 1])
    assert code == 2, output  # nothing changed, and five questions cannot show ten points
    assert {check["verdict"] for check in verdicts["checks"] if check["axis"] == "own_cloze"} == {"pass"}
    code, output = run("gate", *base, "results/candidate")
    assert code == 1, output
    code, output = run(
        "plane", "results", "--baseline", "base", "--x", "transfer_mini_cloze", "--y", "own_cloze", "--json"
    )
    assert code == 0, output
    assert json.loads(output)["rows"][0]["run"] == "base"


def test_the_study_and_the_workflow_can_be_read(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    stages = stages_of(settings := config.read(Path("study.yaml"), None), CommandLines(subcommand))
    assert settings.out == Path("results/study")
    assert "evaluate/base-surgical" in {stage.name for stage in stages}
    (job,) = yaml.safe_load(Path(".github/workflows/gate.yml").read_text())["jobs"].values()
    commands = [
        words
        for step in job["steps"]
        if "run" in step
        for words in snippets.commands(snippets.Block("workflow", 1, "bash", False, _without_variables(step["run"])))
    ]
    assert {words[0] for words in commands} >= {"lm_eval", "lm-eval-ext"}
    assert not [problem for words in commands if words[0] != "python" and (problem := snippets.problem(words))]
    for page in (Path("README.md"), Path("questions/README.md")):
        for block in snippets.blocks_of(page.read_text(), str(page)):
            assert not [problem for words in snippets.commands(block) if (problem := snippets.problem(words))], page


def test_a_folder_with_something_in_it_is_left_alone(project: Path) -> None:
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    assert {str(path.relative_to(project)) for path in before} >= set(FILES)
    code, output = run("init", project)
    assert code == 2
    assert "is not an empty folder" in output
    assert before == {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}


def test_the_model_stands_where_it_is_needed(tmp_path: Path) -> None:
    run("init", tmp_path / "p", "--model", "org/model")
    assert yaml.safe_load((tmp_path / "p" / "study.yaml").read_text())["model"] == "org/model"
    assert "pretrained=org/model,dtype" in (tmp_path / "p" / "README.md").read_text()
