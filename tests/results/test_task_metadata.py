"""Somebody's own tasks with metadata, whose names we do not know, from a harness run to every reader of results."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pandas as pd
import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from support import tiny
from typer.testing import CliRunner

from lm_eval_ext import results
from lm_eval_ext.cli import app
from lm_eval_ext.data.task_metadata import TaskMetadata
from lm_eval_ext.errors import DataError, ResultsError
from lm_eval_ext.leaderboard.collect import collect
from lm_eval_ext.plane.shifts import measure
from lm_eval_ext.results.axes import default_axis, find_axis
from lm_eval_ext.results.breakdown import shares
from lm_eval_ext.sweep.run import Sweep
from lm_eval_ext.sweep.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Two languages of ours and two that we know nothing of.
LANGUAGES = ("ko", "es", "sw", "yo")
QUESTIONS = 12
PLAN = "loc@2:8"

TASK = """
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
num_fewshot: 0
doc_to_text: "{{{{question}}}}"
doc_to_choice: options
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 1.0, axis: {axis}, split: {split}, form: texts, family: {family}, language: {language}}}
"""


def write_tasks(folder: Path) -> Path:
    """`proverbs` (test and dev) and `sums`: the names of their tasks say neither language, nor family, nor split."""
    folder.mkdir()
    number = 0
    for family, axis, split in (
        ("proverbs", "localization", "test"),
        ("proverbs", "localization", "dev"),
        ("sums", "transfer", "test"),
        ("sums", "transfer", "dev"),
    ):
        for language in LANGUAGES:
            number += 1
            lines = [
                {
                    "id": f"{split}{n}",
                    "question": f"{family} {split} {language} {n}",
                    "gold": n % 4,
                    "topic": f"t{n % 2}",
                }
                | {"options": [chr(ord("a") + (n + shift) % 26) for shift in (0, 5, 9, 14)]}
                for n in range(QUESTIONS)
            ]
            file = folder / f"item{number}.jsonl"
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
            said = {"axis": axis, "split": split, "family": family, "language": language}
            (folder / f"item{number}.yaml").write_text(TASK.format(task=f"item{number}", file=file, **said))
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("proverbs") / "tasks")


def manager(folder: Path) -> TaskManager:
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture(scope="module")
def tree(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, steered and unsteered, on all tasks."""
    root = tmp_path_factory.mktemp("results")
    vectors = str(tiny.vector_file("llama", ("en", "loc"), LANGUAGES))
    for name, plan in (("plain", ""), ("steered", PLAN), ("negated", "loc@2:-8")):
        tracker = EvaluationTracker(output_path=str(root / name))
        evaluated: Any = simple_evaluate(
            tiny.steered("llama", plan, vectors=vectors),
            tasks=[path.stem for path in tasks.glob("*.yaml")],
            task_manager=manager(tasks),
            evaluation_tracker=tracker,
            bootstrap_iters=0,
        )
        samples = evaluated.pop("samples")
        tracker.save_results_aggregated(results=evaluated, samples=samples)
        for task in evaluated["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])
    return root


def test_runs_know_what_their_tasks_say(tree: Path) -> None:
    table = results.load(tree).table()
    assert set(table["family"]) == {"proverbs", "proverbs_dev", "sums", "sums_dev"}
    assert set(table["language"]) == set(LANGUAGES)
    assert set(table.loc[table["split"] == "dev", "family"]) == {"proverbs_dev", "sums_dev"}
    assert set(table.loc[table["axis"] == "localization", "family"]) == {"proverbs", "proverbs_dev"}
    assert dict(zip(table["run"], table["control"], strict=True)) == {"negated": "negated", "plain": "", "steered": ""}


def test_samples_have_the_language_of_the_metadata(tree: Path) -> None:
    frame = results.load(tree).samples(metrics=["acc"], runs=["plain"])
    assert set(frame["language"]) == set(LANGUAGES)
    assert len(frame) == 4 * len(LANGUAGES) * QUESTIONS


def test_the_plane_finds_its_axes(tree: Path) -> None:
    plane = measure(results.load(tree), "plain", resamples=200)
    assert (plane.x.name, plane.y.name) == ("sums", "proverbs")  # the test questions
    assert plane.is_transfer_localization
    assert plane.languages == ("es", "ko", "sw", "yo")
    assert "option text with the highest log-likelihood" in plane.y.rule
    assert [run.name for run in plane.runs] == ["steered", "negated"]
    assert (plane.shifts.loc[plane.shifts["language"] == "sw", "x_n"] == QUESTIONS).all()
    table = plane.table()
    row = table[(table["run"] == "steered") & (table["language"] == "average")].iloc[0]
    shift = plane.shifts[(plane.shifts["run"] == "steered") & (plane.shifts["language"] == "average")].iloc[0]
    assert row["y_change"] == pytest.approx(100 * shift["y_change"])
    assert "plain" not in set(table["run"])
    assert plane.conclusions()[0].startswith("steered: transfer ")
    assert {trace.name for trace in plane.plot().data} >= {"plain", "steered", "negated"}


def test_development_questions_can_be_named(tree: Path) -> None:
    runs = results.load(tree).runs
    axis = find_axis("proverbs_dev", runs)
    assert len(axis.tasks) == len(LANGUAGES)
    assert not set(axis.tasks) & set(find_axis("proverbs", runs).tasks)
    assert axis.subject == "localization"


def test_the_leaderboard_and_the_breakdown(tree: Path) -> None:
    board = collect([tree], resamples=100)
    assert list(board.axes) == ["sums", "sums_dev", "proverbs", "proverbs_dev"]
    assert board.languages == ("es", "ko", "sw", "yo")
    assert board.scores["comparable"].all()
    found = shares(tree, "proverbs", ["topic"])
    assert {share.n for share in found} == {len(LANGUAGES) * QUESTIONS // 2}


@contextmanager
def their_tasks_only() -> Iterator[None]:
    """The harness looks for tasks in `include_path` and nowhere else: a scan of its own tasks takes longer than a test."""
    with mock.patch("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False)):
        yield


def test_the_command_sweeps_tasks_of_a_folder(tasks: Path, tmp_path: Path) -> None:
    vectors = str(tiny.vector_file("llama", ("en", "loc"), LANGUAGES))
    command = ["sweep", "--vectors", vectors, "--tasks", "item1", "--out", str(tmp_path), "--layers", "1", "--dry-run"]
    with their_tasks_only():
        run = CliRunner().invoke(app, [*command, "--include-path", str(tasks)])
        assert run.exit_code == 0, run.output
        assert f"on {QUESTIONS} questions in ko" in run.output
        assert "unknown task item1" in CliRunner().invoke(app, command).output
        missing = CliRunner().invoke(app, [*command, "--include-path", "nowhere"])
    assert (missing.exit_code, "include_path: nowhere is not a folder" in missing.output) == (2, True)


def test_the_sweep_chooses_on_development_questions(tasks: Path, tmp_path: Path) -> None:
    settings = Settings(
        vectors=tiny.vector_file("llama", ("en", "loc"), LANGUAGES),
        tasks=tuple(path.stem for path in tasks.glob("*.yaml")),
        include_path=tasks,
        out=tmp_path,
        kinds=("en", "loc"),
        layers="1,2",
        gammas=("1",),
        positions=("prompt",),
        pair_layers=1,
        n_random=0,
        controls=False,
        control_gammas=(),
        languages=(),
        limit=3,
        num_fewshot=None,
        metric="acc",
        prior=True,
        lang=None,
        model=str(tiny.folder("llama")),
        model_args="dtype=float32",
        device="cpu",
        memory=2**24,
        max_tokens=1024,
        likelihoods=False,
        resamples=100,
        restart=False,
    )
    with their_tasks_only():
        Sweep(settings).run()
    plan = yaml.safe_load((tmp_path / "plan.yaml").read_text())
    assert plan["chosen_on"] == {"transfer": "sums_dev", "localization": "proverbs_dev"}
    items = pd.read_parquet(tmp_path / "items.parquet")
    assert set(items["family"]) == {"proverbs", "proverbs_dev", "sums", "sums_dev"}
    assert set(items["language"]) == set(LANGUAGES)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("axis", "culture", "task item1: its metadata has axis: 'culture'; valid: transfer, localization"),
        ("split", "train", "task item1: its metadata has split: 'train'; valid: dev, test"),
        ("family", 7, "task item1: its metadata has family: 7; it must be a text"),
    ],
)
def test_a_wrong_value_is_told_where_it_is_used(tree: Path, key: str, value: object, message: str) -> None:
    loaded = results.load(tree)
    run = loaded["plain"]
    wrong = replace(
        run.tasks["item1"], metadata=TaskMetadata("item1", {**run.tasks["item1"].metadata.values, key: value})
    )
    damaged = replace(loaded, runs=(replace(run, tasks={**run.tasks, "item1": wrong}),))
    with pytest.raises(DataError, match=message):
        default_axis("--y", "localization", damaged.runs)


def test_other_peoples_metadata_does_no_harm(tree: Path) -> None:
    """A task of the harness may have keys of the same name with values of its own: they are read when they are needed."""
    loaded = results.load(tree)
    run = loaded["plain"]
    foreign = replace(run.tasks["item1"], metadata=TaskMetadata("item1", {"form": ["html"], "language": "ko"}))
    assert foreign.language == "ko"
    changed = replace(loaded, runs=(replace(run, tasks={**run.tasks, "item1": foreign}),))
    assert len(changed.samples(tasks=["item1"], metrics=["acc"])) == QUESTIONS


def test_without_metadata_an_axis_must_be_named(tmp_path: Path) -> None:
    from support.runs import write_run

    write_run(tmp_path, {"riddles_ko": {"acc": [1.0]}})
    with pytest.raises(ResultsError, match="no task with the metadata axis: localization"):
        default_axis("--y", "localization", results.load(tmp_path).runs)
