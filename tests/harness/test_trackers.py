"""Weights & Biases and Trackio through the harness's own loggers, offline, with a steered model."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING

import pytest
from support import tiny
from typer.testing import CliRunner

from lm_eval_ext import cli

if TYPE_CHECKING:
    from pathlib import Path


def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *tracker: str) -> float:
    """A steered evaluation with a tracker; its accuracy."""
    monkeypatch.chdir(tmp_path)
    given = f"pretrained={tiny.folder('llama')},vectors={tiny.vector_file('llama')},steer=loc@1:2,dtype=float32"
    words = ["eval", "--model", "steered-hf", "--model_args", given, "--tasks", "tiny_cloze", "--limit", "2"]
    words += ["--include_path", str(tiny.task_folder()), "--device", "cpu", "--output_path", "out", *tracker]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    (file,) = (tmp_path / "out").rglob("results_*.json")
    score: float = json.loads(file.read_text())["results"]["tiny_cloze"]["acc,none"]
    return score


def test_weights_and_biases(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged: dict[str, object] = {}
    log = wandb.Run.log if hasattr(wandb, "Run") else wandb.sdk.wandb_run.Run.log

    def recorded(self: object, data: dict[str, object], *arguments: object, **options: object) -> None:
        logged.update(data)
        log(self, data, *arguments, **options)

    monkeypatch.setattr(log.__globals__["Run"], "log", recorded)
    score = evaluate(tmp_path, monkeypatch, "--wandb_args", "project=offline")
    assert logged["tiny_cloze/acc"] == score
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))


def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio", reason="needs trackio")
    pytest.importorskip("lm_eval.loggers.trackio_logger", reason="lm-eval 0.5.0.dev1 has no --trackio_args")
    score = evaluate(tmp_path, monkeypatch, "--trackio_args", "project=offline")
    found = [str(row) for file in (tmp_path / "trackio").rglob("*.db") for row in rows(file)]
    assert any("tiny_cloze/acc" in row and str(score) in row for row in found)
    assert any("loc@1:2" in row for row in found)  # the plan, in the run's configuration


def rows(file: Path) -> list[object]:
    """Every row of every table of a database."""
    with sqlite3.connect(file) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return [row for name in names for row in database.execute(f'SELECT * FROM "{name}"')]
