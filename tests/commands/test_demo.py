"""`lm-eval-ext demo` from end to end, on a tiny model in place of the embedded one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support import tiny
from typer.testing import CliRunner

from lm_eval_ext import backends, cli
from lm_eval_ext.commands import demo
from lm_eval_ext.models import embedded
from lm_eval_ext.results.runs import load
from lm_eval_ext.steering.vectors import VectorSet
from lm_eval_ext.sweep.shared_runs import SharedRuns

pytestmark = pytest.mark.slow


def run(out: Path, *options: str) -> str:
    result = CliRunner().invoke(cli.app, ["demo", "--out", str(out), *options])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_it_says_how_long_it_takes_and_asks_what_fits(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("model") / "gemma3"
    shutil.copytree(tiny.folder("gemma3"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
    monkeypatch.setattr(embedded, "path", lambda: folder)
    monkeypatch.setattr(embedded, "DTYPE", "float32")
    monkeypatch.setattr(demo, "TASKS", ("transfer_mini_ko_cloze", "localization_mini_ko_cloze"))
    monkeypatch.setattr(demo, "CONDITIONS", {name: demo.CONDITIONS[name] for name in ("unsteered", "surgical")})
    # As slow as a machine on which neither all pairs nor all questions fit.
    monkeypatch.setattr(SharedRuns, "speed", lambda self: self.operations([""]) / 1e6)
    text = run(tmp_path)
    assert text.index("minutes here") < text.index("vectors.safetensors: ")  # before anything long
    assert "8 of 68 questions per language and task, vectors of at most 16 pairs (--limit 68 asks all)" in text
    assert text.splitlines()[-1] == f"the picture: {(tmp_path / 'plane.html').resolve()}"
    assert (tmp_path / "plane.html").is_file()
    runs = load(tmp_path)
    assert {run.name: run.plan for run in runs} == demo.CONDITIONS
    for each in runs:
        assert {record.n_documents for record in each.tasks.values()} == {8}
        assert {record.dtype for record in each.tasks.values()} == {"float32"}
        assert each.model == embedded.NAME
        assert each.config["model"] == "steered-hf"
    assert max(entry.info.n_pairs for entry in VectorSet.load(tmp_path / "vectors.safetensors").vectors.values()) == 16

    monkeypatch.setattr(backends, "load", lambda *_, **__: pytest.fail("a model was loaded again"))
    again = run(tmp_path)
    assert again.count(" exists") == 1 + len(demo.CONDITIONS)
    assert json.loads((tmp_path / "demo.json").read_text()) == {"limit": 8}
