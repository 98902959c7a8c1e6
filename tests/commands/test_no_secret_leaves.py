"""A credential among the model's arguments stands in nothing that any command writes or prints."""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
from support import studies, sweeps
from support.gates import write_gate
from support.reports import write_tree
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.study import run as running

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "s3cr3tValue9"
ARGUMENTS: dict[str, Any] = {
    "token": SECRET,
    "header": {"Authorization": f"Bearer {SECRET}"},
    "base_url": f"https://me:{SECRET}@models.example.org/v1",
}
FEW = ["--resamples", "100"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Runs whose arguments hold credentials, where the harness writes them: in `config`, and in the tasks' metadata."""
    root = write_tree(
        tmp_path_factory.mktemp("secret") / "tree",
        {"unsteered": ("", 0.0, 0.0), "loc": ("loc@58%:2", 0.0, 1.0)},
        n=6,
        context=False,
    )
    for file in root.rglob("results_*.json"):
        content = json.loads(file.read_text())
        content["config"]["model_args"] |= ARGUMENTS
        for task in content["configs"].values():
            task["metadata"] |= ARGUMENTS
        file.write_text(json.dumps(content))
    return root


def texts(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, and in the archives there."""
    found = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in [name for name in found if name.endswith(".zip")]:
        with zipfile.ZipFile(name) as archive:
            found |= {f"{name}/{member}": archive.read(member) for member in archive.namelist()}
    return found


def leaks(found: dict[str, bytes]) -> list[str]:
    assert found
    return [name for name, content in found.items() if SECRET.encode() in content]


def test_results_become_no_page_record_verdict_or_bundle_with_it(tree, tmp_path):
    assert leaks(texts(tree))  # it is there to be found
    out = tmp_path / "out"
    rules = write_gate(tmp_path, "axis: localization_mini_cloze, margin: 0.02", head="resamples: 100")
    sides = ["--baseline", f"{tree}/unsteered", "--candidate", f"{tree}/loc", "--any-order"]
    verdicts = [f"--{name}={out}/gate.{name}" for name in ("json", "junit", "svg", "summary", "comment")]
    runs = [f"{tree}", "--baseline", "unsteered"]
    commands = {
        "leaderboard": [str(tree), "-o", f"{out}/site", "--model-organization", "us", *FEW],
        "plane": [*runs, "--out", f"{out}/plane.html", *FEW],
        "report": [*runs, "-o", f"{out}/report.html", *FEW],
        "breakdown": [str(tree), "--task", "localization_mini_cloze", "--by", "topic"],
        "gate": [str(rules), *sides, *verdicts, "--annotate"],
        "gate renew": [str(rules), "--baseline", f"{out}/committed", "--candidate", f"{tree}/loc"],
        "bundle": [f"{tree}/loc", "-o", f"{out}/run.zip"],
        "bundle --no-samples": [f"{tree}/loc", "-o", f"{out}/hashes.zip"],
        "verify": [f"{out}/run.zip"],
        "rerun": [f"{out}/run.zip", "--model_args", f"token={SECRET}"],
    }
    printed = {}
    for command, arguments in commands.items():
        result = CliRunner().invoke(cli.app, [*command.split(), *arguments])
        assert result.exit_code in (0, 1, 2), (command, result.output, result.exception)
        assert isinstance(result.exception, SystemExit | None), result.exception
        assert result.output.strip(), command
        printed[command] = result.output.encode()
    written = texts(out)
    kinds = {"html", "csv", "json", "md", "svg", "junit", "comment", "summary", "zip", "jsonl", "txt"}
    assert kinds <= {name.rpartition(".")[2] for name in written}
    assert leaks(written) == []
    assert leaks(printed) == []
    assert b"(left out)" in written[f"{out}/report.html"]


def test_a_sweep_writes_it_nowhere(tmp_path):
    asked = sweeps.given_settings("llama", tmp_path / "sweep", limit=1, model_args=f"dtype=float32,token={SECRET}")
    sweeps.sweep(asked)
    found = texts(tmp_path / "sweep")
    assert {"sweep.html", "sweep.json", "summary.csv"} <= {name.rpartition("/")[2] for name in found}
    assert leaks(found) == []


def test_a_study_says_and_keeps_it_nowhere(tmp_path, monkeypatch):
    commands = studies.Commands()
    monkeypatch.setattr(running, "launch", commands.run)
    evaluate = {**studies.STUDY["evaluate"], "model-args": {"token": SECRET}}
    said = studies.start(studies.study(tmp_path, {"evaluate": evaluate}))
    assert any(SECRET in " ".join(call) for call in commands.calls)  # the evaluation itself needs it
    assert leaks({"said": "\n".join(said).encode(), "state": (tmp_path / "out" / "study.json").read_bytes()}) == []
