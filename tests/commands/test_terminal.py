"""What a script and a log see: JSON, quiet, colours, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import write_demo
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.console import QUIET


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("results"))


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command sets in the environment ends with the test."""
    for name in (QUIET, "TQDM_DISABLE", "TQDM_MININTERVAL", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_the_plane_as_json_is_one_document(results: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "plane.html")
    result = CliRunner().invoke(
        cli.app, ["plane", str(results), "--baseline", "unsteered", "--out", out, "--resamples", "100", "--json"]
    )
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["baseline"] == "unsteered"
    assert content["page"] == out
    average = {row["run"]: row for row in content["rows"] if row["language"] == "average"}
    assert average["unsteered"]["x_change"] == 0
    assert average["loc"]["y_low"] <= average["loc"]["y_change"] <= average["loc"]["y_high"]
    assert content["conclusions"]


def test_a_breakdown_as_json_has_the_numbers_of_the_table(results: Path) -> None:
    arguments = ["breakdown", str(results), "--task", "transfer_mini_cloze", "--by", "language"]
    rows = json.loads(CliRunner().invoke(cli.app, [*arguments, "--json"]).stdout)
    lines = CliRunner().invoke(cli.app, [*arguments, "--csv"]).stdout.splitlines()[1:]
    assert len(rows) == len(lines) > 5
    assert lines[0].split(",")[:3] == [rows[0]["run"], rows[0]["values"]["language"], str(rows[0]["n"])]
    assert f"{100 * rows[0]['score']:.1f}" in lines[0]


def test_quiet_leaves_errors(tmp_path: Path) -> None:
    mistake = CliRunner().invoke(cli.app, ["--quiet", "breakdown", str(tmp_path / "none"), "--task", "a", "--by", "b"])
    assert mistake.exit_code == 2
    assert mistake.stderr.startswith("error: ")
    assert os.environ["TQDM_DISABLE"] == "1"


def test_notes_are_muted_where_it_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lm_eval_ext.console import notes

    notes().print("note: something")
    monkeypatch.setenv(QUIET, "1")
    notes().print("note: something else")
    assert capsys.readouterr().err == "note: something\n"


def test_a_log_gets_few_lines_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval_ext.console import set_up_progress

    class Terminal:
        def isatty(self) -> bool:
            return True

    with monkeypatch.context() as terminal:
        terminal.setattr(sys, "stderr", Terminal())
        set_up_progress()
    assert "TQDM_MININTERVAL" not in os.environ
    set_up_progress()
    assert os.environ["TQDM_MININTERVAL"] == "10"
    monkeypatch.setenv("TQDM_MININTERVAL", "1")  # what the user says stays
    set_up_progress()
    assert os.environ["TQDM_MININTERVAL"] == "1"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("lm-eval-ext pl", ["plane"]),
        ("lm-eval-ext plane --bas", ["--baseline"]),
        ("lm-eval-ext gate re", ["renew"]),
        ("lm-eval-ext train clo --lam", ["--lambda"]),
    ],
)
def test_a_shell_completes_commands_and_options(typed: str, offered: list[str]) -> None:
    shell = {"_LM_EVAL_EXT_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    result = CliRunner().invoke(cli.app, prog_name="lm-eval-ext", env=shell)
    assert result.stdout.split() == offered


@pytest.mark.parametrize("arguments", [["axes"], ["init", __file__]])
def test_no_colours_in_a_pipe(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "lm_eval_ext", *arguments]
    process = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "TERM": "xterm-256color"}
    )
    assert process.stdout or process.stderr
    assert "\x1b" not in process.stdout + process.stderr
