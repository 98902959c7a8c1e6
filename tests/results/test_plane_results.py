"""Reading result files: names of runs, dates, and what is damaged or missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.runs import DATE, write_run

from lm_eval_ext.errors import ResultsError
from lm_eval_ext.results.run import find_run
from lm_eval_ext.results.runs import load

TASK = "transfer_mini_ko_cloze"
SCORES = {TASK: {"acc": [1.0, 0.0, 1.0]}}
OLDER, NEWER = "2026-01-01T00-00-00", "2026-03-01T00-00-00.5"


def names(root: Path) -> list[str]:
    return [run.name for run in load(root).runs]


def samples_of(results: Path) -> Path:
    return results.with_name(f"samples_{TASK}_{DATE}.jsonl")


# --- names -----------------------------------------------------------------------------------------------------------


def test_a_run_is_called_after_its_folder(tmp_path):
    write_run(tmp_path / "demo" / "unsteered", SCORES, plan="")
    write_run(tmp_path / "demo" / "loc", SCORES, plan="loc@3:2")
    assert names(tmp_path) == ["demo/loc", "demo/unsteered"]
    assert names(tmp_path / "demo") == ["loc", "unsteered"]


def test_without_a_folder_it_is_called_after_its_model(tmp_path):
    write_run(tmp_path, SCORES, model="google/gemma")
    write_run(tmp_path, SCORES, model="/models/local/llama")
    assert names(tmp_path) == ["google/gemma", "llama"]


def test_runs_in_one_folder_are_told_apart_by_what_differs(tmp_path):
    write_run(tmp_path / "a", SCORES, model="org/one")
    write_run(tmp_path / "a", SCORES, model="org/two")
    write_run(tmp_path / "a", SCORES, model="org/two", plan="en@3:2", date=NEWER)
    write_run(tmp_path / "a", SCORES, model="org/two", plan="loc@3:2", label="local", date=OLDER)
    assert names(tmp_path) == ["a/org/one", "a/org/two", "a/org/two [en@3:2]", "a/org/two [local]"]


def test_revisions_of_one_model_are_different_runs(tmp_path):
    for date, revision in ((OLDER, "step1"), (NEWER, "step2")):
        write_run(tmp_path, SCORES, date=date, model_args={"pretrained": "tiny/model", "revision": revision})
    assert names(tmp_path) == ["tiny/model (revision=step1)", "tiny/model (revision=step2)"]
    assert not load(tmp_path).notes


def test_how_a_run_was_executed_does_not_make_it_another(tmp_path):
    for date, batch in ((OLDER, 1), (NEWER, 8)):
        write_run(tmp_path, SCORES, date=date, model_args={"pretrained": "tiny/model", "batch_size": batch})
    assert names(tmp_path) == ["tiny/model"]


def test_a_name_that_the_harness_invented_is_not_the_model(tmp_path):
    for invented in ("clever-fox", "quick-owl"):
        write_run(
            tmp_path / "loc",
            SCORES,
            model=invented,
            date=OLDER if invented == "clever-fox" else NEWER,
            model_args="steer=loc@3:2",
            steering={"plan": "loc@3:2", "pretrained": "gemma-3-270m"},
        )
    (run,) = load(tmp_path).runs
    assert (run.name, run.model) == ("loc", "gemma-3-270m")


def test_the_harness_s_own_steered_model_is_steered(tmp_path):
    args = {"pretrained": "tiny/model", "steer_path": "vectors.pt"}
    write_run(tmp_path / "x", SCORES, model_type="steered", model_args=args)
    assert load(tmp_path).runs[0].plan == "vectors.pt"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("demo/loc", "demo/loc"),
        ("demo/loc/", "demo/loc"),
        ("loc", "demo/loc"),  # the last folder
        ("loc@3:2", "demo/loc"),  # the plan
        ("local", "demo/loc"),  # the label
        ("", "demo/unsteered"),  # no plan
        ("tiny/model", "demo/unsteered"),  # the model's unsteered run
    ],
)
def test_a_run_is_found_by(tmp_path, name, found):
    write_run(tmp_path / "demo" / "unsteered", SCORES, plan="")
    write_run(tmp_path / "demo" / "loc", SCORES, plan="loc@3:2", label="local")
    assert find_run(load(tmp_path).runs, name).name == found


def test_a_run_is_found_by_its_path(tmp_path):
    results = write_run(tmp_path / "loc", SCORES)
    runs = load(tmp_path).runs
    assert find_run(runs, str(tmp_path / "loc")) is find_run(runs, f"{results.parent}/") is runs[0]


@pytest.mark.parametrize(("name", "problem"), [("nobody", "no run is called"), ("x", "ambiguous"), ("", "ambiguous")])
def test_a_name_that_means_none_or_several_lists_the_runs(tmp_path, name, problem):
    for folder in ("a/x", "b/x"):
        write_run(tmp_path / folder, SCORES)
    with pytest.raises(ResultsError, match=problem) as error:
        find_run(load(tmp_path).runs, name)
    assert "a/x: model tiny/model, unsteered, 1 tasks" in str(error.value)


# --- dates -----------------------------------------------------------------------------------------------------------


def test_the_newest_of_each_task_counts_and_the_older_is_named(tmp_path):
    other = "localization_mini_ko_cloze"
    write_run(tmp_path, SCORES | {other: {"acc": [1.0]}}, date=OLDER, limit=3)
    write_run(tmp_path, {TASK: {"acc": [0.0, 0.0, 0.0, 0.0]}}, date=NEWER, n_shot=5)
    tree = load(tmp_path)
    assert {task: record.date for task, record in tree.runs[0].tasks.items()} == {TASK: NEWER, other: OLDER}
    (note,) = tree.notes
    assert TASK in note
    assert other not in note
    assert "few-shot examples 0 -> 5" in note
    assert "limit 3 -> None" in note
    frame = load(tmp_path).samples(tasks=[TASK])
    assert frame["value"].tolist() == [0.0] * 4


def test_other_output_names_are_read_and_other_json_is_not(tmp_path):
    results = write_run(tmp_path, SCORES)
    results.rename(results.with_name(f"mine_{DATE}.json"))
    (tmp_path / f"other_{DATE}.json").write_text("[1, 2]")
    (tmp_path / "results.json").write_text("{}")
    tree = load(tmp_path)
    assert [run.name for run in tree.runs] == ["tiny/model"]
    assert "results.json" in tree.notes[0]


# --- the frame -------------------------------------------------------------------------------------------------------


def test_the_frame_says_what_each_column_promises(tmp_path):
    write_run(
        tmp_path / "loc", {TASK: {"acc": [1.0, None], "f1": [0.25, 0.5], "pair": [[1, 2], [3, 4]]}}, plan="loc@3:2"
    )
    frame = load(tmp_path).samples()
    first = frame.iloc[0].to_dict()
    assert first["run"] == "loc"
    assert first["plan"] == "loc@3:2"
    assert first["version"] == "1.0"
    assert first["language"] == "ko"
    assert first["question_id"] == "q0"
    assert frame.pivot(index="doc_id", columns="metric", values="value")["f1"].tolist() == [0.25, 0.5]
    assert frame["value"].isna().sum() == 1  # a score that the harness saved as null
    assert "pair" not in set(frame["metric"])  # not a number per document
    assert len(load(tmp_path).samples(metrics=["f1"])) == 2


def test_languages_come_from_the_document_the_metadata_or_the_name(tmp_path):
    results = write_run(tmp_path, {"plain_kor": {"acc": [1.0]}, "told": {"acc": [1.0]}, "x_el": {"acc": [1.0]}})
    content = json.loads(results.read_text())
    content["configs"]["told"]["metadata"]["language"] = "kor_Hang"
    results.write_text(json.dumps(content))
    for path in results.parent.glob("samples_x_el_*"):
        path.write_text(path.read_text().replace('"language": "el"', '"language": "zh-CN"'))
    languages = load(tmp_path).samples().set_index("task")["language"]
    assert languages["told"] == "ko"
    assert languages["x_el"] == "zh"
    assert languages.isna()["plain_kor"]


def test_a_selection_without_results_is_an_error(tmp_path):
    write_run(tmp_path, SCORES)
    with pytest.raises(ResultsError, match=r"no run or task matches"):
        load(tmp_path).samples(runs=["nobody"])


# --- damage ----------------------------------------------------------------------------------------------------------


def test_no_folder_and_no_results(tmp_path):
    with pytest.raises(ResultsError, match="not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ResultsError, match="--log_samples"):
        load(tmp_path)


def test_missing_samples_say_how_to_get_them(tmp_path):
    write_run(tmp_path, SCORES, samples=False)
    with pytest.raises(ResultsError, match=rf"no samples of {TASK} .*--log_samples"):
        load(tmp_path).samples()


def test_damaged_results_name_file_and_line(tmp_path):
    path = write_run(tmp_path, SCORES)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ResultsError, match=rf"{path.name}, line \d+, column \d+"):
        load(tmp_path)


@pytest.mark.parametrize(
    "content", ["[]", '{"results": 1, "configs": {}}', '{"results": {}, "configs": {"a": 3}}', '""']
)
def test_results_of_something_else_are_named(tmp_path, content):
    path = write_run(tmp_path, SCORES)
    path.write_text(content)
    with pytest.raises(ResultsError, match="not a results file of the harness"):
        load(tmp_path)


def damage(path: Path, how: str) -> None:
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    whole = {
        "cut in a line": text[: len(text) - 30],
        "cut between lines": "".join(lines[:2]),
        "empty": "",
        "twice": text + lines[0],
        "another format": text.replace('"doc_hash"', '"hash"'),
        "not an object": lines[0] + "[1]\n",
        "metric missing": text.replace('"acc": 0.0', '"other": 0.0'),
    }
    path.write_bytes(b"\xff\xfe\x00" if how == "binary" else whole[how].encode())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut in a line", "line 3, column .* not valid JSON"),
        ("cut between lines", "holds 2 documents, .* says 3"),
        ("empty", "holds 0 documents"),
        ("twice", "line 4: document 0 stands here twice"),
        ("another format", "line 1: not a sample of the harness .*doc_hash"),
        ("not an object", "line 2: not a sample"),
        ("metric missing", "line 2: not a sample of the harness .*acc"),
        ("binary", "line 1: not text"),
    ],
)
def test_damaged_samples_name_file_and_line(tmp_path, how, message):
    path = samples_of(write_run(tmp_path, SCORES))
    damage(path, how)
    with pytest.raises(ResultsError, match=message) as error:
        load(tmp_path).samples()
    assert str(path) in str(error.value)


def test_a_copied_tree_of_another_model_does_not_mix(tmp_path):
    write_run(tmp_path / "a", SCORES)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path) == ["a", "b"]
    assert len(load(tmp_path).samples()) == 6
