"""The leaderboard: scores, what may be compared, the site's files, records that travel."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
import yaml
from support.reports import write_tree
from support.runs import random_scores, write_run
from typer.testing import CliRunner

from lm_eval_ext.commands.leaderboard import leaderboard as command
from lm_eval_ext.errors import ResultsError, UserError
from lm_eval_ext.leaderboard.collect import COLUMNS, collect
from lm_eval_ext.leaderboard.records import every_eval_ever, hub_results, write_records
from lm_eval_ext.leaderboard.site import level_chart, page, write_site
from lm_eval_ext.leaderboard.tables import to_csv, to_markdown
from lm_eval_ext.plane.shifts import measure
from lm_eval_ext.results.runs import load
from lm_eval_ext.viz import labels

app = typer.Typer()
app.command()(command)

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">|`x`"


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"), n=24, context=False)


@pytest.fixture(scope="module")
def board(tree):
    return collect([tree], resamples=200)


def rows_of(board, run, family="localization_mini_cloze"):
    frame = board.scores[(board.scores["run"] == run) & (board.scores["family"] == family)]
    assert len(frame) == 8
    return frame.set_index("language")


# --- scores ----------------------------------------------------------------------------------------------------------


def test_scores_are_the_means_of_the_samples(tree, board):
    frame = load(tree).samples(metrics=["acc"]).astype({"run": str, "task": str})
    mean = frame.groupby(["run", "task"])["value"].mean()
    for run in ("unsteered", "loc"):
        rows = rows_of(board, run)
        assert rows["score"]["ko"] == pytest.approx(mean[run, "localization_mini_ko_cloze"])
        others = [mean[run, f"localization_mini_{code}_cloze"] for code in ("es", "id", "el", "ko", "zh", "ar")]
        assert rows["score"]["average"] == pytest.approx(np.mean(others))
        assert (rows["low"] < rows["score"]).all()
        assert (rows["score"] < rows["high"]).all()
        assert (rows["n"]["average"], rows["questions"]["average"]) == (6 * 24, 24)
    assert tuple(board.scores.columns) == COLUMNS


def test_a_steered_run_is_held_against_its_own_model(tree, board):
    plane = measure(load(tree), "unsteered", resamples=200)
    change = plane.shifts.set_index(["run", "language"])["y_change"]
    rows = rows_of(board, "loc")
    for language in ("average", "ko"):
        assert rows["change"][language] == pytest.approx(change["loc", language])
    assert rows_of(board, "unsteered")["change"].isna().all()


def test_english_bias_leaves_english_out(board):
    rows = rows_of(board, "unsteered")
    assert rows["bias"].isna()["en"]
    assert 0 < rows["bias"]["average"] < 1
    assert rows_of(board, "unsteered", "transfer_mini_cloze")["bias"].isna().all()


def test_families_stand_in_order_and_can_be_chosen(tree, board):
    assert list(board.axes) == ["transfer_mini_cloze", "localization_mini_cloze"]
    assert list(collect([tree], families=["transfer_mini_cloze"], resamples=100).axes) == ["transfer_mini_cloze"]
    with pytest.raises(ResultsError, match=r"no results for arc; there are: localization_mini_cloze, transfer"):
        collect([tree], families=["arc"])


def test_runs_that_were_asked_otherwise_are_marked_and_named(tmp_path):
    for name in ("a", "b", "c"):
        write_run(tmp_path / name, random_scores(ord(name), n=20), model=f"org/{name}")
    write_run(tmp_path / "short", random_scores(1, n=10), model="org/short", limit=10)
    write_run(tmp_path / "new", random_scores(2, n=20), model="org/new", versions={"transfer_mini_ko_cloze": 2.0})
    write_run(tmp_path / "shots", random_scores(3, n=20), model="org/shots", n_shot=5)
    board = collect([tmp_path], resamples=100)
    transfer = board.scores[board.scores["family"] == "transfer_mini_cloze"]
    assert set(transfer[~transfer["comparable"]]["run"]) == {"short", "new", "shots"}
    note = next(text for text in board.notes if text.startswith("transfer_mini_cloze"))
    assert "other documents, prompts or task versions" in note
    assert "new, short, shots" in note
    localization = board.scores[board.scores["family"] == "localization_mini_cloze"]
    assert set(localization[~localization["comparable"]]["run"]) == {"short", "shots"}
    transfer_table = to_markdown(board).split("## localization")[0]
    ranks = re.findall(r"^\| (\S+) \| (\w+) ", transfer_table, re.MULTILINE)
    assert [place for place, _ in ranks[-6:]] == ["1", "2", "3", "≠", "≠", "≠"]
    assert {run for place, run in ranks if place == "≠"} == {"short", "new", "shots"}


def test_the_order_of_documents_does_not_make_two_sets_different(tmp_path):
    write_run(tmp_path / "a", random_scores(1, n=8), model="org/a")
    path = write_run(tmp_path / "b", random_scores(2, n=8), model="org/b")
    for file in path.parent.glob("samples_*"):
        file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    assert collect([tmp_path], resamples=100).scores["comparable"].all()


def test_several_trees_stand_side_by_side(tmp_path):
    for tree in ("one", "two"):
        write_run(tmp_path / tree / "unsteered", random_scores(1, n=8), model="m")
        write_run(tmp_path / tree / "loc", random_scores(2, n=8), model="m", plan="loc@3:2")
    board = collect([tmp_path / "one", tmp_path / "two"], resamples=100)
    assert set(board.runs) == {"one/unsteered", "one/loc", "two/unsteered", "two/loc"}
    assert set(board.scores["tree"]) == {"one", "two"}
    assert board.scores[board.scores["run"] == "two/loc"]["change"].notna().all()
    with pytest.raises(ResultsError, match="two result trees hold a run 'one/loc'"):
        collect([tmp_path / "one", tmp_path / "one"])


def test_a_family_without_the_score_is_left_out_and_said(tmp_path):
    write_run(tmp_path, {"arc": {"acc": [1.0, 0.0]}, "gsm8k": {"exact_match": [1.0]}})
    board = collect([tmp_path], resamples=100)
    assert list(board.axes) == ["arc"]
    assert any(
        note.startswith("gsm8k: the samples of gsm8k") and "there are: exact_match" in note for note in board.notes
    )
    assert board.scores["language"].tolist() == ["average"]
    with pytest.raises(ResultsError, match="no family of tasks has the score 'f1'"):
        collect([tmp_path], metric="f1")


# --- the site --------------------------------------------------------------------------------------------------------


def test_the_site_is_three_files_that_load_nothing(board, tmp_path):
    written = write_site(board, tmp_path / "site", title="Our <models>")
    assert [path.name for path in written] == ["index.html", "leaderboard.csv", "leaderboard.md"]
    html = written[0].read_text()
    assert '<h1 id="top">Our &lt;models&gt;</h1>' in html
    assert not re.search(r"<(link|iframe|img)\b|\ssrc=", html.split("<script", 1)[0])
    assert "default-src 'none'" in html


def test_csv_and_markdown_hold_the_scores(board):
    frame = pd.read_csv(io.StringIO(to_csv(board)), keep_default_na=False)
    assert len(frame) == len(board.scores) == 5 * 2 * 8
    text = to_markdown(board)
    average = rows_of(board, "loc").loc["average"]
    assert f"{average['score']:.1%} \\[{100 * average['low']:.1f}, {100 * average['high']:.1f}\\]" in text
    localization = text.split("## localization")[1]
    places = re.findall(r"^\| (\d) \| (\w+)", localization, re.MULTILINE)
    scores = [rows_of(board, run)["score"]["average"] for _, run in places]
    assert scores == sorted(scores, reverse=True)


def test_hostile_names_are_text_everywhere(tmp_path):
    for number, name in enumerate(("a", "b")):
        write_run(
            tmp_path / name, random_scores(number, n=6), model=HOSTILE, plan=HOSTILE if number else "", label=HOSTILE
        )
    board = collect([tmp_path], resamples=100)
    html = page(board, title=HOSTILE)
    assert "<img" not in html
    assert html.count("<script") == html.count("</script>")
    rows = [line for line in to_markdown(board).splitlines() if line.startswith("| ")]
    assert not any("<img" in row for row in rows)
    cells = {re.sub(r"\\\|", "", row).count("|") for row in rows}
    assert len(cells) == 1  # no name adds a column
    named = [row for row in rows if "onerror" in row]
    assert named
    assert all("\\`x\\`" in row for row in named)
    records = list(
        write_records(board, tmp_path / "records", organization=HOSTILE, relationship="other", model_organization="us")
    )
    assert len(records) > 1
    for path in records:
        assert tmp_path / "records" in path.parents
        assert re.fullmatch(r"[\w.@~-]+", path.name)


def test_levels_are_drawn_when_there_is_one_family_of_each(board, tree):
    chart = level_chart(board)
    assert {trace.name for trace in chart.figure.data[1:]} == {"unsteered", "steered", "random direction"}
    assert len({trace.marker.symbol for trace in chart.figure.data[1:]}) == 3
    steered = chart.figure.data[2]
    assert len(steered.x) == len(steered.textposition) == 3
    assert set(steered.textposition) <= labels.POSITIONS.keys()
    assert len(chart.figure.layout.updatemenus[0].buttons) == 8
    assert level_chart(collect([tree], families=["transfer_mini_cloze"], resamples=100)) is None


# --- records ---------------------------------------------------------------------------------------------------------

#: What the Every Eval Ever schema 0.3.0 asks for and allows.
TOP = {
    *(
        "schema_version",
        "evaluation_id",
        "evaluation_timestamp",
        "retrieved_timestamp",
        "source_metadata",
        "eval_library",
    ),
    *("model_info", "evaluation_results", "detailed_evaluation_results"),
}


def test_records_follow_the_every_eval_ever_schema(board):
    records = list(
        every_eval_ever(board, organization="Our lab", relationship="third_party", model_organization="google")
    )
    assert len(records) == 5
    for path, record in records:
        assert TOP - {"detailed_evaluation_results"} == record.keys()
        assert re.fullmatch(r"lm_eval_ext/google/gemma-3-270m/[0-9a-f-]{36}\.json", str(path))
        assert record["schema_version"] == "0.3.0"
        assert record["source_metadata"]["source_type"] == "evaluation_run"
        assert record["source_metadata"]["evaluator_relationship"] == "third_party"
        assert record["source_metadata"]["source_organization_name"] == "Our lab"
        assert {"name", "version"} <= record["eval_library"].keys()
        assert record["eval_library"]["version"] == "0.4.13"
        assert re.fullmatch(r"\d+", record["retrieved_timestamp"])
        assert {"name", "id"} <= record["model_info"].keys()
        assert len(record["evaluation_results"]) == 2 * 8
        for result in record["evaluation_results"]:
            assert {"evaluation_name", "source_data", "metric_config", "score_details"} <= result.keys()
            metric, score = result["metric_config"], result["score_details"]
            assert metric["metric_id"] == "accuracy"
            assert metric["lower_is_better"] is False
            assert metric["score_type"] == "continuous"
            assert metric["min_score"] <= score["score"] <= metric["max_score"]
            interval = score["uncertainty"]["confidence_interval"]
            assert interval["lower"] <= score["score"] <= interval["upper"]
            assert result["source_data"]["source_type"] in ("url", "hf_dataset", "other")
            for details in (score["details"], result["generation_config"]["additional_details"]):
                assert all(isinstance(value, str) for value in details.values())
        json.dumps(record, allow_nan=False)
    plans = {record["model_info"]["additional_details"]["plan"] for _, record in records}
    assert "loc@58%:2" in plans


def test_a_record_keeps_its_name_when_it_is_written_again(board):
    first, again = (
        {str(path) for path, _ in every_eval_ever(board, organization="x", model_organization="us")} for _ in range(2)
    )
    assert first == again
    assert len(first) == 5


@pytest.fixture(scope="module")
def on_the_hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    scores = {
        **{f"gmmlu_{code}": {"acc": [1.0, 0.0, 1.0, 1.0]} for code in ("en", "ko")},
        **{"mmlu_pro": {"acc": [0.0, 1.0]}, "blend_decon_ko": {"acc": [1.0], "english_bias": [0.0]}},
    }
    for plan in ("", "en@3:2"):
        path = write_run(root / ((plan and "steered") or "plain"), scores, model="google/gemma", plan=plan)
        content = json.loads(path.read_text())
        content["configs"]["mmlu_pro"] |= {"dataset_path": "TIGER-Lab/MMLU-Pro", "dataset_kwargs": {"revision": "abc"}}
        path.write_text(json.dumps(content))
    return collect([root], resamples=100)


def test_hub_files_are_what_the_hub_s_own_parser_reads(on_the_hub):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    files = {str(path): yaml.safe_load(text) for path, text in hub_results(on_the_hub)}
    assert set(files) == {
        "google/gemma/.eval_results/gmmlu.yaml",
        "google/gemma/.eval_results/gmmlu-steered.yaml",
        "google/gemma/.eval_results/mmlu_pro.yaml",
        "google/gemma/.eval_results/mmlu_pro-steered.yaml",
    }
    korean = next(
        entry for entry in files["google/gemma/.eval_results/gmmlu.yaml"] if entry["dataset"]["task_id"] == "ko"
    )
    assert korean["dataset"]["id"] == "CohereLabs/Global-MMLU"
    assert re.fullmatch(r"[0-9a-f]{40}", korean["dataset"]["revision"])
    assert korean["value"] == 75.0
    assert korean["date"] == "2026-01-02"
    assert korean.keys() == {"dataset", "value", "date", "notes"}
    assert "steered" not in korean["notes"]
    steered = files["google/gemma/.eval_results/gmmlu-steered.yaml"][0]
    assert "steered: en@3:2" in steered["notes"]
    if hasattr(huggingface_hub, "parse_eval_result_entries"):
        entries = huggingface_hub.parse_eval_result_entries(files["google/gemma/.eval_results/gmmlu.yaml"])
        assert {entry.task_id for entry in entries} == {"ko", "en"}


def test_sources_of_the_data_are_told_by_kind(on_the_hub):
    (_, record), *_ = every_eval_ever(on_the_hub, organization="x")
    sources = {result["evaluation_name"]: result["source_data"] for result in record["evaluation_results"]}
    assert sources["gmmlu.ko"]["hf_repo"] == "CohereLabs/Global-MMLU"
    assert sources["gmmlu.ko"]["hf_config"] == "ko"
    assert sources["mmlu_pro.average"]["hf_repo"] == "TIGER-Lab/MMLU-Pro"
    assert sources["mmlu_pro.average"]["hf_revision"] == "abc"
    assert sources["blend_decon.ko"]["url"] == ["https://github.com/nlee0212/BLEnD"]


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_site_and_records(tree, tmp_path):
    out = tmp_path / "site"
    result = CliRunner().invoke(app, [str(tree), "-o", str(out), "--resamples", "100", "--model-organization", "us"])
    assert result.exit_code == 0, result.output
    assert "5 runs, 2 families, 7 languages" in result.output
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "leaderboard.csv", "leaderboard.md", "records"]
    assert len(list((out / "records" / "every_eval_ever" / "data").rglob("*.json"))) == 5
    assert (
        CliRunner().invoke(app, [str(tree), "-o", str(tmp_path / "b"), "--no-records", "--resamples", "100"]).exit_code
        == 0
    )
    assert not (tmp_path / "b" / "records").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "not a folder"),
        (["TREE", "--metric", "f1"], "no family of tasks has the score 'f1'"),
        (["TREE", "--family", "arc"], "no results for arc"),
        (["TREE"], "nothing says whose model gemma-3-270m is, and records are filed by organisation; say --model-org"),
        (["TREE", "--model-organization", "a/b"], "'a/b' is no organisation of the hub"),
        (["TREE", "--relationship", "friend"], "unknown relationship 'friend'; valid: first_party"),
        (["TREE", "-o", "/proc/none/site", "--no-records"], "cannot write /proc/none/site/index.html"),
    ],
)
def test_a_mistake_is_a_user_error(tree, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    words = [str(tree) if word == "TREE" else word for word in arguments]
    result = CliRunner().invoke(app, [*words, "--resamples", "100"])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
