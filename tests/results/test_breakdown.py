"""Scores by a column of the documents."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from support import tiny
from support.runs import write_run
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.data import own
from lm_eval_ext.errors import DataError, ResultsError
from lm_eval_ext.results.breakdown import shares


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two runs of two languages: three questions on law, one on history."""
    for name, right in (("base", [1, 1, 0, 0]), ("steered", [1, 1, 1, 0])):
        file = write_run(tmp_path / name, {"gmmlu_ko": {"acc": right}, "gmmlu_es": {"acc": [0, 0, 0, 0]}})
        for samples in file.parent.glob("samples_*.jsonl"):
            lines = [json.loads(line) for line in samples.read_text().splitlines()]
            for number, line in enumerate(lines):
                line["doc"] |= {"subject": "history" if number == 3 else "law"}
            samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def run(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(cli.app, ["breakdown", *arguments])
    assert result.exit_code == status, result.output
    return result.output


def test_a_score_by_subject_with_its_interval(results: Path) -> None:
    found = {(share.run, *share.values): share for share in shares(results, "gmmlu_ko", ["subject"])}
    assert set(found) == {(run, subject) for run in ("base", "steered") for subject in ("law", "history")}
    law = found["base", "law"]
    assert (law.n, law.score) == (3, pytest.approx(2 / 3))
    assert (law.low, law.high) == (pytest.approx(0.2077, abs=1e-4), pytest.approx(0.9385, abs=1e-4))  # Wilson, 2 of 3
    assert found["steered", "law"].score == 1
    assert found["steered", "law"].high == 1
    assert found["base", "history"].low == 0


def test_only_scores_of_0_and_1_have_such_an_interval(tmp_path: Path) -> None:
    write_run(tmp_path, {"gmmlu_ko": {"f1": [0.5, 1.0]}})
    with pytest.raises(ResultsError, match=r"gmmlu_ko: f1 is 0\.5 in a document; .* need scores of 0 or 1"):
        shares(tmp_path, "gmmlu_ko", ["language"], "f1")


def test_a_family_is_taken_together_and_columns_are_crossed(results: Path) -> None:
    assert [share.n for share in shares(results, "gmmlu", ["subject"])] == [2, 6, 2, 6]
    crossed = {share.values: share.score for share in shares(results, "gmmlu", ["language", "subject"])}
    assert crossed["ko", "law"] == 1
    assert crossed["es", "law"] == 0


def test_the_command_prints_a_table_or_csv(results: Path) -> None:
    table = run(str(results), "--task", "gmmlu_ko", "--by", "subject")
    assert "steered" in table
    assert "history" in table
    rows = list(csv.DictReader(io.StringIO(run(str(results), "--task", "gmmlu_ko", "--by", "subject", "--csv"))))
    assert rows[1] == {"run": "base", "subject": "law", "n": "3", "acc %": "66.7", "low": "20.8", "high": "93.9"}


def test_what_the_harness_saved_is_read(tmp_path: Path) -> None:
    questions = [
        {"id": str(n), "question": f"{n}?", "options": ["a", "b"], "answer": n % 2, "language": "en", "topic": topic}
        for n, topic in enumerate(["law", "law", "art", "art", "art"])
    ]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    own.write(tmp_path / "my.jsonl", "mine", tmp_path / "tasks")
    tracker = EvaluationTracker(output_path=str(tmp_path / "results"))
    evaluated: Any = simple_evaluate(
        tiny.hf("qwen2"),
        tasks=["mine"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        bootstrap_iters=0,
        evaluation_tracker=tracker,
    )
    samples = evaluated.pop("samples")
    tracker.save_results_aggregated(results=evaluated, samples=samples)
    tracker.save_results_samples(task_name="mine_en", samples=samples["mine_en"])
    found = {share.values[0]: share for share in shares(tmp_path / "results", "mine", ["topic"])}
    assert {topic: share.n for topic, share in found.items()} == {"law": 2, "art": 3}
    total = sum(share.n * share.score for share in found.values())
    assert total == pytest.approx(5 * evaluated["results"]["mine_en"]["acc,none"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "gmmlu_ko", "--by", "colour"], "have no colour; columns: id, question, language, subject"),
        (["--task", "gmmlu_ko", "--by", "subject", "--metric", "f1"], "not scored by 'f1'; its metrics: acc"),
        (["--task", "arc", "--by", "subject"], "no results for 'arc'"),
    ],
)
def test_a_mistake_is_one_message(results: Path, arguments: list[str], message: str) -> None:
    assert message in " ".join(run(str(results), *arguments, status=2).split())


def test_results_without_samples_and_damaged_samples_are_refused(results: Path) -> None:
    for samples in (results / "base").rglob("samples_gmmlu_ko_*.jsonl"):
        samples.write_text('{"doc": ')
    with pytest.raises(DataError, match="truncated"):
        shares(results, "gmmlu_ko", ["subject"])
    for samples in results.rglob("samples_gmmlu_ko_*.jsonl"):
        samples.unlink()
    with pytest.raises(ResultsError, match="--log_samples"):
        shares(results, "gmmlu_ko", ["subject"])
