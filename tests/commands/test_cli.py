"""`lm-eval-ext` and `python -m lm_eval_ext`: what reaches the harness, how mistakes end, how fast it starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Annotated

import pytest
import typer
from support.processes import modules_after
from typer.testing import CliRunner

from lm_eval_ext import __version__, cli
from lm_eval_ext.commands import table
from lm_eval_ext.errors import UserError

#: Each takes longer to import than all of `--help`.
HEAVY = {"torch", "transformers", "lm_eval", "datasets", "pandas", "numpy", "scipy", "plotly", "pyarrow", "trl", "peft"}


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("COLUMNS", "200")
    return CliRunner()


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lm_eval_ext", *arguments]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)


def stand_in(monkeypatch: pytest.MonkeyPatch, function: object, name: str = "plane") -> None:
    """Let a subcommand be another function."""
    monkeypatch.setattr(table, "_function", {table.COMMANDS[name][0]: function}.__getitem__)


def test_version_and_help_name_every_command(runner: CliRunner) -> None:
    assert runner.invoke(cli.app, ["--version"]).output == f"lm_eval_ext {__version__}\n"
    output = runner.invoke(cli.app, ["--help"]).output
    for name, (_, summary) in table.COMMANDS.items():
        assert re.search(rf"^\W*{name} +{re.escape(summary[:40])}", output, re.MULTILINE), name
    assert "Examples" in output


def test_help_is_quick_since_it_imports_nothing_heavy() -> None:
    modules = modules_after("from lm_eval_ext.cli import main; main()", "--help")
    assert "lm_eval_ext.cli" in modules
    assert not HEAVY & modules
    # Besides typer, and what typer and the interpreter need: a handful of light modules of ours.
    bare = modules_after("import typer.rich_utils; from importlib import metadata")
    others = {name for name in modules - bare if not name.startswith(("lm_eval_ext", "rich.", "typer."))}
    assert len(others) < 30, sorted(others)
    assert len({name for name in modules if name.startswith("lm_eval_ext")}) < 15


@pytest.mark.parametrize("arguments", [["train", "--help"], ["train", "clo", "--help"]])
def test_help_of_training_imports_nothing_heavy(arguments: list[str]) -> None:
    modules = modules_after("from lm_eval_ext.cli import main; main()", *arguments)
    assert "lm_eval_ext.commands.train" in modules
    assert not HEAVY & modules


@pytest.mark.parametrize("name", table.COMMANDS)
def test_every_command_exists_and_explains_itself(name: str, runner: CliRunner) -> None:
    result = runner.invoke(cli.app, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert f"{name} [OPTIONS]" in result.output


def test_arguments_reach_a_command_as_they_are(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def plane(folder: str, baseline: Annotated[str, typer.Option()], flag: bool = False) -> None:
        typer.echo((folder, baseline, flag))

    stand_in(monkeypatch, plane)
    assert runner.invoke(cli.app, ["plane", "--flag", "r/", "--baseline=b a"]).output == "('r/', 'b a', True)\n"
    result = runner.invoke(cli.app, ["plane", "r/"])
    assert result.exit_code == 2
    assert "Missing option '--baseline'" in result.output


def test_options_may_be_written_as_the_harness_writes_them(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(
        model_args: Annotated[str, typer.Option()] = "", num_fewshot: Annotated[int, typer.Option()] = 0
    ) -> None:
        typer.echo(f"{model_args} {num_fewshot}")

    stand_in(monkeypatch, command)
    for given in (["--model_args", "a_b=c", "--num_fewshot", "5"], ["--model-args", "a_b=c", "--num-fewshot=5"]):
        assert runner.invoke(cli.app, ["plane", *given]).output == "a_b=c 5\n"


def test_a_user_s_mistake_ends_with_one_message_and_status_2(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise UserError("got [red]x[/red], valid: y")

    stand_in(monkeypatch, fail)
    result = runner.invoke(cli.app, ["plane"])
    assert result.exit_code == 2
    assert result.stderr == "error: got [red]x[/red], valid: y\n"


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), 130), (typer.Exit(1), 1), (ZeroDivisionError(), 1)]
)
def test_exit_status(error: BaseException, status: int, runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise error

    stand_in(monkeypatch, fail)
    result = runner.invoke(cli.app, ["plane"])
    assert result.exit_code == status
    assert isinstance(result.exception, ZeroDivisionError) == isinstance(
        error, ZeroDivisionError
    )  # bugs are not hidden


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls", "tasks"],
        ["--help"],
        ["--model", "steered-hf", "--model_args", "steer=en@20:2+loc@28:2,lang=ko", "--tasks", "a,b", "-L", "4", "--"],
        ["run", "--gen_kwargs", 'stop=["\\n"]', "a b", "-vwx", "--version", "*", ""],
    ],
)
def test_eval_hands_everything_to_the_harness_verbatim(
    arguments: list[str], runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[str] = []
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: received.extend(sys.argv))
    monkeypatch.setattr(sys, "argv", sys.argv)
    result = runner.invoke(cli.app, ["eval", *arguments])
    assert result.exit_code == 0, result.output
    assert received == ["lm_eval", *arguments]


@pytest.mark.slow
def test_eval_finds_model_and_tasks_without_the_hook_and_reports_a_mistake() -> None:
    """The harness looks for the tasks first: an error of the model means that it found them, and the model."""
    command = ["--model", "steered-hf", "--model_args", "steer=en@20", "--tasks", "gmmlu,transfer_mini_ko_cloze"]
    process = run("eval", *command, LM_EVAL_EXT_AUTOLOAD="0", NO_COLOR="1")
    assert process.returncode == 2, process.stderr
    assert "\nerror: the plan en@20:2 needs vectors" in process.stderr
    assert "Traceback" not in process.stderr


def test_eval_under_accelerate() -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "lm_eval_ext"]
    process = subprocess.run([*command, "eval", "ls", "--help"], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "usage: lm-eval list" in process.stdout
