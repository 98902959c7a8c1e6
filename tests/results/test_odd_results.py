"""Result trees as others have them: read, or refused with the file and the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.gates import NEWER, OLDER, answers, write_gate
from support.runs import DATE, random_scores, write_run

from lm_eval_ext import json_text
from lm_eval_ext.errors import GateError, ResultsError
from lm_eval_ext.gate import measure, read_gate
from lm_eval_ext.gate.measuring import Side
from lm_eval_ext.leaderboard.collect import collect
from lm_eval_ext.leaderboard.records import every_eval_ever, hub_results, write_records
from lm_eval_ext.leaderboard.site import write_site
from lm_eval_ext.report.provenance import evaluation
from lm_eval_ext.results import samples as samples_module
from lm_eval_ext.results.breakdown import shares
from lm_eval_ext.results.run import short_model
from lm_eval_ext.results.runs import load

TASK = "transfer_mini_ko_cloze"


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    for key, value in changes.items():
        content[key] = value
    path.write_text(json.dumps(content))


def edit_lines(path: Path, change: Any) -> None:
    file = next(path.parent.glob("samples_*"))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in change(lines)))


# --- numbers and text that JSON allows -------------------------------------------------------------------------------


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("score", ["NaN", "1e999", "-Infinity", "1" + "0" * 400])
def test_a_score_that_is_no_finite_number_is_named(tmp_path, monkeypatch, score, large):
    path = write_run(tmp_path, {TASK: {"acc": [1.0, 0.0]}})
    file = next(path.parent.glob("samples_*"))
    file.write_text(file.read_text().replace('"acc": 0.0', f'"acc": {score}'))
    if large:
        monkeypatch.setattr(samples_module, "_LARGE", 0)
    with pytest.raises(ResultsError, match=rf"{file.name}, line 2: acc of {TASK} is .*, not a finite number"):
        load(tmp_path).samples()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"doc_id": 1,', '"doc_id": 1e999,', "not a sample of the harness"),
        ('"doc_id": 1,', f'"doc_id": 1{"0" * 5000},', "a number of too many digits"),
        ('"doc_id": 1,', f'"doc_id": 1, "deep": {"[" * 20_000}{"]" * 20_000},', "nested too deeply"),
    ],
)
def test_damaged_lines_are_named(tmp_path, old, new, reason):
    path = write_run(tmp_path, {TASK: {"acc": [1.0, 0.0]}})
    file = next(path.parent.glob("samples_*"))
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ResultsError, match=rf"{file.name}, line 2: {reason}"):
        load(tmp_path).samples()


def test_half_a_surrogate_pair_can_be_written(tmp_path):
    assert json_text.parse('["a\\ud800", "\\ud83d\\ude00"]') == ["a\ufffd", "\U0001f600"]
    path = write_run(tmp_path / "tree", random_scores(0, n=4), model="org/m")
    edit(path, model_name="org/\ud800m")
    edit_lines(path, lambda lines: [{**line, "doc": {**line["doc"], "question": "\ud800"}} for line in lines])
    write_site(collect([tmp_path / "tree"], resamples=100), tmp_path / "site")


# --- fields of other releases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "shots"),
    [
        ({"n-shot": {TASK: {"a": 3, "b": 3}}}, 3),
        ({"n-shot": {TASK: {"a": 3, "b": 5}}}, '{"a": 3, "b": 5}'),
        ({"n-shot": 3}, 3),
        ({"versions": 1.0, "n-samples": {TASK: 2}, "higher_is_better": {TASK: True}, "task_hashes": None}, 0),
    ],
)
def test_fields_of_other_releases(tmp_path, changes, shots):
    edit(write_run(tmp_path, {TASK: {"acc": [1.0, 0.0]}}), **changes)
    (run,) = load(tmp_path).runs
    assert run.tasks[TASK].settings["few-shot examples"] == shots
    assert evaluation(run).startswith("lm_eval --model steered-hf")
    assert len(load(tmp_path).samples()) == 2


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        (1767322800.5, "1767322800"),
        ("1767322800.5", "1767322800"),
        ("2026-01-02T03:00:00+00:00", "1767322800"),
        ("2 January", None),
        (1e400, None),
        ([2026], None),
    ],
)
def test_dates_in_other_forms(tmp_path, date, expected):
    edit(write_run(tmp_path, random_scores(0, n=4)), date=date)
    board = collect([tmp_path], resamples=100)
    ((_, record),) = every_eval_ever(board, organization="us")
    assert record.get("evaluation_timestamp") == expected


@pytest.mark.parametrize("how", ["link", "folder"])
def test_what_cannot_be_read_is_named_or_passed_over(tmp_path, how):
    write_run(tmp_path / "good", {TASK: {"acc": [1.0]}})
    for name in (f"other_{DATE}.json", f"results_{DATE}.json"):
        path = tmp_path / name
        path.symlink_to(tmp_path / "nothing") if how == "link" else path.mkdir()
        if name.startswith("other"):
            assert len(load(tmp_path)) == 1
        else:
            with pytest.raises(ResultsError, match=f"cannot read .*{name}"):
                load(tmp_path)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "short"),
    [
        (r"C:\Users\mrsmith\models\gemma", "gemma"),
        ("C:/Users/mrsmith/gemma", "gemma"),
        (r"\\server\mrsmith\gemma", "gemma"),
        ("/home/mrsmith/gemma/", "gemma"),
        ("home/mrsmith/gemma", "gemma"),
        ("~/mrsmith/gemma", "gemma"),
        ("file:///home/mrsmith/gemma", "gemma"),
        ("google/gemma-3-270m", "google/gemma-3-270m"),
        ("https://example.org/v1", "https://example.org/v1"),
        ("en@2:2/all+loc@3:2/last", "en@2:2/all+loc@3:2/last"),
        ("{'a': 'x/y', 'b': 'z/w'}", "{'a': 'x/y', 'b': 'z/w'}"),
    ],
)
def test_a_path_as_a_models_name(model, short):
    assert short_model(model) == short


@pytest.mark.parametrize("root", ["C:\\Users\\mrsmith\\", "/home/mrsmith/", "home/mrsmith/"])
def test_a_users_name_stands_on_no_page(tmp_path, root):
    path = write_run(tmp_path / "tree", random_scores(0, n=4), model="m")
    arguments = {"pretrained": f"{root}m", "peft": f"{root}p", "model_kwargs": {"offload_folder": f"{root}o"}}
    content = json.loads(path.read_text())
    edit(path, model_name=f"{root}m", config={**content["config"], "model_args": arguments})
    board = collect([tmp_path / "tree"], resamples=100)
    write_site(board, tmp_path / "site")
    write_records(board, tmp_path / "site", organization="us", relationship="other", model_organization="them")
    assert not [p for p in (tmp_path / "site").rglob("*") if p.is_file() and "mrsmith" in f"{p}{p.read_text()}"]


def test_two_models_of_one_name_have_records_of_their_own(tmp_path):
    for name in ("mist", "clo"):
        path = write_run(tmp_path / name, random_scores(0, n=4), model="m")
        content = json.loads(path.read_text())
        model = f"/runs/{name}/checkpoint-1000"
        configs = {
            task: {**config, "dataset_path": "org/data", "dataset_name": "ko"}
            for task, config in content["configs"].items()
        }
        edit(path, model_name=model, config={**content["config"], "model_args": {"pretrained": model}}, configs=configs)
    board = collect([tmp_path], resamples=100)
    paths = [path for path, _ in hub_results(board, model_organization="us")]
    assert len(set(paths)) == len(paths) == 4
    assert len({path.parts[1] for path in paths}) == 2
    records = [record for _, record in every_eval_ever(board, organization="us", model_organization="us")]
    assert len({record["model_info"]["id"] for record in records}) == 2


# --- documents -------------------------------------------------------------------------------------------------------


def test_documents_that_were_chosen_in_the_harness_are_not_cut_off(tmp_path):
    path = write_run(tmp_path, {TASK: {"acc": [1.0, 0.0, 1.0, 1.0, 0.0]}})
    edit_lines(path, lambda lines: [lines[1], lines[3], lines[4]])
    edit(path, results={TASK: {"acc,none": 1 / 3}})
    assert load(tmp_path).samples()["doc_id"].tolist() == [1, 3, 4]
    edit(path, results={TASK: {"acc,none": 3 / 5}})  # the mean of all five
    with pytest.raises(ResultsError, match="the file was cut off"):
        load(tmp_path).samples()


def test_breakdown_says_that_documents_stand_twice(tmp_path):
    path = write_run(tmp_path, {TASK: {"acc": [1.0, 0.0]}})
    edit_lines(path, lambda lines: [*lines, {**lines[0], "doc_id": 7}])
    notes: list[str] = []
    assert shares(tmp_path, TASK, ["language"], notes=notes)[0].n == 3
    assert [note for note in notes if "1 documents stand in a task more than once" in note]
    edit_lines(path, lambda lines: [*lines[:2], lines[0]])
    with pytest.raises(ResultsError, match="document 0 stands here twice"):
        shares(tmp_path, TASK, ["language"])


def test_breakdown_counts_one_filter(tmp_path):
    path = write_run(tmp_path, {TASK: {"acc": [1.0, 0.0]}})
    edit_lines(path, lambda lines: [{**line, "filter": name} for line in lines for name in ("strict", "flexible")])
    with pytest.raises(ResultsError, match=r"under several filters.* name one: acc,flexible, acc,strict"):
        shares(tmp_path, TASK, ["language"])
    assert shares(tmp_path, TASK, ["language"], "acc,strict")[0].n == 2


# --- the gate --------------------------------------------------------------------------------------------------------


def test_other_prompts_have_a_cause_and_a_way_on(tmp_path):
    for name, date, shots in (("base", OLDER, 0), ("new", NEWER, 1)):
        path = write_run(tmp_path / name, answers(40), model=f"org/{name}", date=date, n_shot=shots)
        edit(path, chat_template_sha="abc", **{"n-shot": {}})
    gate = read_gate(write_gate(tmp_path, "axis: qa"))
    sides = [Side.read(role, tmp_path / name) for role, name in (("baseline", "base"), ("candidate", "new"))]
    with pytest.raises(GateError, match=r"one that writes the date gives other prompts.*write `prompts: any`"):
        measure(gate, *sides)
