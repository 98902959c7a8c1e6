"""Tasks of the harness as axes: its real YAML on tiny local data, steered by each task's language, read by the plane."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from support import tiny
from typer.testing import CliRunner

from lm_eval_ext import results
from lm_eval_ext.cli import app
from lm_eval_ext.data import axes
from lm_eval_ext.errors import DataError
from lm_eval_ext.plane.shifts import measure
from lm_eval_ext.results.breakdown import shares
from lm_eval_ext.steering.vectors import VectorSet
from lm_eval_ext.sweep.questions import Questions

HARNESS = Path(lm_eval.tasks.__file__).parent
PLAN = "loc@2:4"
N = 6


def _include(language: str, country: str) -> dict[str, Any]:
    """As CohereForAI/include-base-44 has it: the name of the language in a column."""
    return {
        **{
            "language": language,
            "country": country,
            "domain": "STEM",
            "subject": "birds",
            "regional_feature": "agnostic",
        },
        **{"question": "", "option_a": "rice", "option_b": "bird", "option_c": "one", "option_d": "nine", "answer": 0},
    }


_CAUSES = {"premise": "", "choice1": "Rice is one.", "choice2": "Birds are nine.", "question": "cause", "label": 0}
_PASSAGE = {"link": "", "question_number": 1, "flores_passage": "", "question": "", "correct_answer_num": "1"}
_PASSAGE |= {"dialect": "", "ds": "2023-05-03", **{f"mc_answer{n}": text for n, text in enumerate("abcd", start=1)}}
#: Task of the harness: its file, a row of its data set, the language that its name means.
TASKS: dict[str, tuple[str, dict[str, Any], str]] = {
    "include_base_44_bengali_stem": (
        "include/default/Bengali/include_base_44_bengali_stem.yaml",
        _include("Bengali", "Bangladesh"),
        "bn",
    ),
    "include_base_44_turkish_stem": (
        "include/default/Turkish/include_base_44_turkish_stem.yaml",
        _include("Turkish", "Turkey"),
        "tr",
    ),
    "xcopa_tr": ("xcopa/default_tr.yaml", {**_CAUSES, "idx": 0, "changed": False}, "tr"),
    "belebele_ben_Beng": ("belebele/belebele_ben_Beng.yaml", _PASSAGE, "bn"),
    "belebele_tur_Latn": ("belebele/belebele_tur_Latn.yaml", _PASSAGE, "tr"),
    "copal_id_standard": ("copal_id/standard.yaml", {**_CAUSES, "Terminology": 0}, "id"),
}
SPOKEN = ("bn", "tr", "id")


def _row(row: dict[str, Any], number: int) -> dict[str, Any]:
    words = tiny.TEXTS["en"].split()
    text = " ".join(words[number : number + 4]) + "?"
    varying = {"question": text} if row.get("question") == "" else {}
    varying |= {key: text for key in ("premise", "flores_passage") if key in row}
    varying |= {"idx": number} if "idx" in row else {}
    varying |= {"link": f"passage {number // 2}", "question_number": number} if "link" in row else {}
    return {**row, **varying}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The harness's files by `include`, with local data in place of the hub's."""
    path = tmp_path_factory.mktemp("local")
    for task, (file, row, _) in TASKS.items():
        data = path / f"{task}.jsonl"
        data.write_text("".join(json.dumps(_row(row, number)) + "\n" for number in range(N)), "utf-8")
        splits = dict.fromkeys(("test", "validation"), str(data))
        (path / f"{task}.yaml").write_text(
            f"include: {HARNESS / file}\ntask: {task}\ndataset_path: json\n"
            f"dataset_kwargs: {json.dumps({'data_files': splits})}\n",
            "utf-8",
        )
    return path


@pytest.fixture(autouse=True)
def _no_files_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(axes.VARIABLE, "")


def evaluate(model: Any, folder: Path, *tasks: str, out: Path | None = None) -> dict[str, list[Any]]:
    tracker = EvaluationTracker(output_path=None if out is None else str(out))
    evaluated: Any = simple_evaluate(
        model,
        tasks=list(tasks),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        evaluation_tracker=tracker,
        bootstrap_iters=0,
    )
    samples = evaluated.pop("samples")
    if out is not None:
        tracker.save_results_aggregated(results=evaluated, samples=samples)
        for task in evaluated["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])
    return {task: [sample["resps"] for sample in rows] for task, rows in samples.items()}


def one_language(vectors: VectorSet, language: str) -> VectorSet:
    """Vectors that steer every request with those of one language."""
    entries = {("loc", other): vectors.vectors["loc", language] for other in SPOKEN}
    return VectorSet(vectors.model, entries)


def test_each_request_is_steered_with_the_vector_of_its_task_s_language(folder: Path) -> None:
    vectors = tiny.vector_set("llama", ("loc",), SPOKEN)
    together = evaluate(tiny.steered("llama", PLAN, vectors=vectors), folder, *TASKS)
    plain = evaluate(tiny.steered("llama", vectors=None), folder, *TASKS)
    for task, (_, _, language) in TASKS.items():
        alone = {
            other: evaluate(tiny.steered("llama", PLAN, vectors=one_language(vectors, other)), folder, task)[task]
            for other in SPOKEN
        }
        assert together[task] == alone[language] != plain[task]
        assert all(together[task] != alone[other] for other in SPOKEN if other != language)


def test_a_language_that_only_a_file_of_the_user_knows(folder: Path, tmp_path: Path) -> None:
    vectors = tiny.vector_set("llama", ("loc",), SPOKEN)
    mine = tmp_path / "mine.yaml"
    mine.write_text("tasks: [{match: xcopa_*, axis: transfer, family: xcopa, language: id}]")
    steered = evaluate(tiny.steered("llama", PLAN, vectors=vectors, axes=str(mine)), folder, "xcopa_tr")
    assert steered == evaluate(tiny.steered("llama", PLAN, vectors=one_language(vectors, "id")), folder, "xcopa_tr")
    with pytest.raises(DataError, match="cannot read the axis file"):
        tiny.steered("llama", axes=str(tmp_path / "nowhere.yaml"))


def test_the_sweep_asks_in_the_same_languages(folder: Path) -> None:
    questions = Questions(["include_base_44_bengali_stem", "xcopa_tr"], include_path=folder).questions
    assert {(q.task, q.language, q.axis, q.family) for q in questions} == {
        ("include_base_44_bengali_stem", "bn", "localization", "include"),
        ("xcopa_tr", "tr", "transfer", "xcopa"),
    }
    assert [q.question_id for q in questions if q.task == "xcopa_tr"] == list("012345")


@pytest.fixture(scope="module")
def tree(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    vectors = tiny.vector_set("llama", ("loc",), SPOKEN)
    evaluate(tiny.steered("llama", vectors=None), folder, *TASKS, out=root / "plain")
    evaluate(tiny.steered("llama", PLAN, vectors=vectors), folder, *TASKS, out=root / "steered")
    return root


def test_results_have_axis_family_and_language(tree: Path) -> None:
    table = results.load(tree).table().query("run == 'plain'").set_index("task")
    assert dict(table["family"]) == {
        "include_base_44_bengali_stem": "include",
        "include_base_44_turkish_stem": "include",
        "xcopa_tr": "xcopa",
        "belebele_ben_Beng": "belebele",
        "belebele_tur_Latn": "belebele",
        "copal_id_standard": "copal_id",
    }
    assert dict(table["language"]) == {task: language for task, (_, _, language) in TASKS.items()}
    frame = results.load(tree).samples(tasks=["include_base_44_bengali_stem", "belebele_ben_Beng"], metrics=["acc"])
    assert set(frame["language"]) == {"bn"}  # not "bengali", as a column of the documents says
    assert set(frame.query("task == 'belebele_ben_Beng'")["question_id"]) == {"passage 0", "passage 1", "passage 2"}


def test_a_plane_of_two_benchmarks_of_the_harness(tree: Path, tmp_path: Path) -> None:
    plane = measure(results.load(tree), "plain", x="belebele", y="include", resamples=200)
    assert plane.is_transfer_localization
    assert plane.languages == ("tr", "bn")
    assert plane.x.rule == "acc: most likely letter"
    command = ["plane", str(tree), "--baseline", "plain", "--x", "belebele", "--y", "include", "--resamples", "200"]
    drawn = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "plane.html")])
    assert drawn.exit_code == 0, drawn.output
    assert "transfer (acc)" in drawn.output


def test_the_score_of_a_file_is_read_where_none_is_named(tree: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    entry = "{match: 'belebele_{language}', axis: transfer, family: reading, metric: acc_norm}"
    mine.write_text(f"tasks: [{entry}]")
    axes.use(mine)
    runs = results.load(tree)
    assert measure(runs, "plain", x="reading", y="include", resamples=200).x.score == "acc_norm"
    assert measure(runs, "plain", x="reading", y="include", x_metric="acc", resamples=200).x.score == "acc"


def test_a_breakdown_of_a_family(tree: Path) -> None:
    assert {share.n for share in shares(tree, "include", ["country"])} == {N}
