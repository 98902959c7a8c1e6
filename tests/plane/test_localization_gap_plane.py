"""Turkish, Bengali, French and Russian from the pairs to the plane: `gmmlu` (made-up questions) and `localization_gap`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from support import gmmlu_mirror, tiny
from typer.testing import CliRunner

from lm_eval_ext import results
from lm_eval_ext.cli import app
from lm_eval_ext.paths import tasks_dir
from lm_eval_ext.plane.shifts import measure
from lm_eval_ext.results.breakdown import shares
from lm_eval_ext.steering.vectors import VectorSet

SPOKEN = ("tr", "bn", "fr", "ru")
N = 6


@pytest.fixture(scope="module")
def mirror(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mirror")
    (path / "localization_gap").symlink_to(small_data / "localization_gap")
    for code in ("en", *SPOKEN):
        for split in ("test", "dev"):
            questions = {f"anatomy/{split}/{n}": f"{code} {split} question {n}" for n in range(N)}
            gmmlu_mirror.write_questions(path, code, split, questions)
    return path


@pytest.fixture(scope="module")
def tree(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, unsteered and steered by the vectors that `extract` makes of the pairs of both sets."""
    root = tmp_path_factory.mktemp("gap")
    model = str(tiny.roomy_folder("llama"))
    vectors = root / "gap.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LM_EVAL_EXT_DATA", str(mirror))
        patch.setenv("LM_EVAL_EXT_ALLOW_MODIFIED", "1")
        command = [
            "extract",
            "--model",
            model,
            "--languages",
            ",".join((*SPOKEN, "en")),
            "--out",
            str(vectors),
            "--dtype",
            "float32",
        ]
        pairs = ["--pairs", "en=gmmlu", "--pairs", "loc=localization_gap", "--device", "cpu"]
        extracted = CliRunner().invoke(app, [*command, *pairs, "--max-pairs", "4"])
        assert extracted.exit_code == 0, extracted.output
        for name, plan in (("plain", ""), ("steered", "en@1:4+loc@2:4")):
            tracker = EvaluationTracker(output_path=str(root / "results" / name))
            evaluated: Any = simple_evaluate(
                tiny.steered("llama", plan, pretrained=model, vectors=str(vectors)),
                tasks=["gmmlu_gap", "localization_gap", "localization_gap_ctx"],
                task_manager=TaskManager(include_path=str(tasks_dir()), include_defaults=False),
                evaluation_tracker=tracker,
                bootstrap_iters=0,
                limit=N,
            )
            samples = evaluated.pop("samples")
            tracker.save_results_aggregated(results=evaluated, samples=samples)
            for task in evaluated["configs"]:
                tracker.save_results_samples(task_name=task, samples=samples[task])
    return root


def test_the_vectors_are_those_of_the_four_languages(tree: Path) -> None:
    vectors = VectorSet.load(tree / "gap.safetensors")
    assert set(vectors.vectors) == {("loc", "en"), *((kind, code) for kind in ("en", "loc") for code in SPOKEN)}
    assert vectors.vectors["loc", "bn"].info.source == "localization_gap"


def test_the_plane(tree: Path) -> None:
    plane = measure(results.load(tree / "results"), "plain", resamples=200)
    assert (plane.x.name, plane.y.name) == ("gmmlu", "localization_gap")
    assert (plane.languages, plane.averaged) == ((*SPOKEN, "en"), SPOKEN)
    average = plane.shifts.query("run == 'steered' and language == 'average'").iloc[0]
    assert (average["x_n"], average["y_n"], average["bias_n"]) == (4 * N, 4 * N, 4 * N)
    assert average["y_changed"] > 0  # steered


def test_the_page_names_the_languages(tree: Path, tmp_path: Path) -> None:
    page = tmp_path / "plane.html"
    drawn = CliRunner().invoke(
        app, ["plane", str(tree / "results"), "--baseline", "plain", "--out", str(page), "--resamples", "200"]
    )
    assert drawn.exit_code == 0, drawn.output
    assert all(name in page.read_text("utf-8") for name in ("Turkish", "Bengali", "French", "Russian"))


def test_subtasks(tree: Path) -> None:
    found = shares(tree / "results", "localization_gap", ["subtask"])
    assert {share.values[0] for share in found} <= {"names", "cities", "culture"}
    assert sum(share.n for share in found if share.run == "plain") == 5 * N
