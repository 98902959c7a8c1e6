"""Runs that were computed in different dtypes: named by the plane, the gate and the sweep, refused by none but the store."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from support import tiny
from support.gates import answers, write_gate, write_pair
from support.runs import random_scores, write_run
from support.sweeps import given_settings, sweep
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.plane.shifts import measure
from lm_eval_ext.results.runs import load
from lm_eval_ext.steering.vectors import SteeringVectors, VectorSet

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("before", "after", "is_noted"),
    [
        ("torch.bfloat16", "torch.float32", True),
        ("torch.float32", "torch.float32", False),
        (None, "torch.float32", False),
    ],
)
def test_the_plane_notes_it_once(tmp_path: Path, before: str | None, after: str, is_noted: bool) -> None:
    write_run(tmp_path / "base", random_scores(0), **({"model_dtype": before} if before else {}))
    write_run(tmp_path / "loc", random_scores(1), plan="loc@58%:2", model_dtype=after)
    notes = [note for note in measure(tmp_path, "base", resamples=100).notes if "computed in" in note]
    text = "run 'loc' was computed in float32, 'base' in bfloat16: rounding alone may change answers"
    assert notes == [text] * is_noted


def test_a_second_evaluation_in_another_dtype_is_noted(tmp_path: Path) -> None:
    for date, dtype in (("2026-01-01T00-00-00", "bfloat16"), ("2026-02-01T00-00-00", "float32")):
        write_run(tmp_path / "run", random_scores(0), date=date, model_dtype=f"torch.{dtype}")
    (note,) = load(tmp_path).notes
    assert note.endswith("the newest counts; dtype bfloat16 -> float32")


def test_the_gate_notes_it_and_judges(tmp_path: Path) -> None:
    baseline, candidate = write_pair(tmp_path, answers(), answers(), model_dtype="torch.float32")
    path = next(baseline.rglob("results_*.json"))
    content: dict[str, Any] = json.loads(path.read_text())
    content["config"]["model_dtype"] = "torch.bfloat16"
    path.write_text(json.dumps(content))
    rules = write_gate(tmp_path, "axis: qa, margin: 0.02, languages: [en]")
    asked = [
        str(rules),
        "--baseline",
        str(baseline),
        "--candidate",
        str(candidate),
        "--summary",
        str(tmp_path / "s.md"),
    ]
    result = CliRunner().invoke(cli.app, ["gate", *asked])
    assert result.exit_code == 0, result.output
    text = "run 'org/new' was computed in float32, 'org/base' in bfloat16"
    assert f"note: {text}" in result.stderr
    assert text in (tmp_path / "s.md").read_text()
    renewed = ["gate", "renew", str(rules), "--baseline", str(tmp_path / "renewed"), "--candidate", str(candidate)]
    result = CliRunner().invoke(cli.app, renewed)
    assert result.exit_code == 0, result.output
    (run,) = load(tmp_path / "renewed")
    assert {record.dtype for record in run.tasks.values()} == {"float32"}


def test_the_sweep_notes_vectors_of_another_dtype(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked = given_settings("llama", tmp_path / "out")
    sweep(asked)
    note = "the model runs in float32, the vectors were extracted in"
    assert note not in capfd.readouterr().err
    vectors = VectorSet.load(tiny.vector_file("llama"))
    entries = {
        key: SteeringVectors(replace(entry.info, dtype="bfloat16"), entry.tensors)
        for key, entry in vectors.vectors.items()
    }
    VectorSet(vectors.model, entries).save(tmp_path / "half.safetensors")
    sweep(replace(asked, vectors=tmp_path / "half.safetensors", out=tmp_path / "other"))
    assert f"{note} bfloat16" in capfd.readouterr().err
    record = json.loads((tmp_path / "other" / "sweep.json").read_text())["dtype"]
    assert (record["used"], record["requested"]) == ("float32", "float32")
