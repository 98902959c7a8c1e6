"""The report: what it says of what was run, what it finds, what it leaves open, the items that changed."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from support.reports import sample, write_results, write_tree
from support.runs import random_scores, write_demo, write_run
from typer.testing import CliRunner

from lm_eval_ext.commands.report import report as command
from lm_eval_ext.errors import UserError
from lm_eval_ext.plane.shifts import measure
from lm_eval_ext.report import provenance
from lm_eval_ext.report.answers import answers, run_table
from lm_eval_ext.report.build import Report, default_resamples
from lm_eval_ext.report.findings import findings, open_questions
from lm_eval_ext.report.items import _answer, changed_items
from lm_eval_ext.results import samples as results_module
from lm_eval_ext.results.axes import Axis
from lm_eval_ext.results.runs import load
from lm_eval_ext.results.samples import read_samples

app = typer.Typer()
app.command()(command)

OF_ANSWERS = {"change_x", "change_y", "change_bias", "language_changes", "moved_items"}
AXES = ["--x", "transfer_mini_cloze", "--y", "localization_mini_cloze"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"), n=24)


@pytest.fixture(scope="module")
def plane(tree):
    return measure(load(tree), "unsteered", x="transfer_mini_cloze", y="localization_mini_cloze", resamples=300)


@pytest.fixture(scope="module")
def html(plane) -> str:
    return Report(plane).html()


def blocks(html: str) -> dict[str, object]:
    found = re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', html, re.DOTALL)
    return {name: json.loads(text) for name, text in found}


# --- what was run ----------------------------------------------------------------------------------------------------


def test_the_page_says_what_was_run(html):
    for text in (
        "en@42%:2+loc@58%:2",
        "lm_eval 0.4.13, transformers 5.23.0",
        "vectors_sha256=5e5e5e5e5e5e",
        "positions=prompt",
        "transfer_mini_ko_cloze.yaml",  # where the data comes from
        "option text with the highest log-likelihood; 144 documents on 24 questions",
        "95% intervals: paired bootstrap over questions, 300 resamples, seed 0",
    ):
        assert text in html


def test_folders_of_the_machine_stay_there(html):
    assert "/home/me" not in html
    assert "vectors.safetensors" in html


def test_data_versions_and_hashes_are_listed_and_differences_named(tmp_path):
    for number, name in enumerate(("base", "run")):
        path = write_run(tmp_path / name, random_scores(number, n=8))
        content = json.loads(path.read_text())
        content["task_hashes"] = {task: f"{number if 'ko' in task else 7}" * 64 for task in content["configs"]}
        path.write_text(json.dumps(content))
    rows = {row[0]: row for row in provenance.data_rows(measure(load(tmp_path), "base", resamples=100))}
    assert rows["transfer_mini_es_cloze"][1:3] == ["1.0", "8"]
    assert rows["transfer_mini_es_cloze"][4] == "7" * 16
    assert rows["transfer_mini_ko_cloze"][4] == "0" * 16 + ", and 1 other in other runs"


def test_the_commands_do_it_again(plane):
    commands = provenance.commands(plane, ["RESULTS", "--baseline", "a b"])
    assert len(commands) == 6
    words = shlex.split(commands[2])
    assert words[:3] == ["lm_eval", "--model", "steered-hf"]
    assert words[words.index("--model_args") + 1] == (
        "pretrained=gemma-3-270m,steer=loc@58%:2,vectors=vectors.safetensors"
    )
    assert set(words[words.index("--tasks") + 1].split(",")) == {
        *("transfer_mini_cloze", "localization_mini_cloze", "localization_mini_ctx_cloze")
    }
    assert "--log_samples" in words
    assert shlex.split(commands[-1])[:5] == ["lm-eval-ext", "report", "RESULTS", "--baseline", "a b"]


def test_settings_of_the_evaluation_are_in_its_command(tmp_path):
    scores = {"arc": {"acc": [1.0]}}
    write_run(tmp_path, scores, n_shot=5, limit=10, batch_size=4, model_type="hf", model="a b/c;d")
    words = shlex.split(provenance.evaluation(load(tmp_path).runs[0]))
    assert words[words.index("--num_fewshot") + 1] == "5"
    assert words[words.index("--limit") + 1] == "10"
    assert words[words.index("--batch_size") + 1] == "4"
    assert words[words.index("--model_args") + 1] == "pretrained=a b/c;d"


# --- findings --------------------------------------------------------------------------------------------------------


def test_findings_have_intervals_and_name_front_languages_and_context(html, plane):
    from lm_eval_ext.plane.figures.context import context_gaps

    sentences = findings(plane, context_gaps(plane))
    assert any(
        re.match(r"loc: transfer .* localization up, \+[\d.]+ \[\+[\d.]+, \+[\d.]+\]", text) for text in sentences
    )
    assert any("Beyond the control random" in text for text in sentences)
    assert any(re.search(r"Pareto front.*surgical \(in \d+% of the resamples\)", text) for text in sentences)
    assert any(re.search(r"Behind the front.*unsteered [\d.]+ \[[\d.]+, [\d.]+\]", text) for text in sentences)
    assert any(re.search(r"Quadrant .* en cultural erasure, \d+%; loc ", text) for text in sentences)
    assert any(re.search(r"covers \d+ \[\d+, \d+\] squared points .* \(−10.0, −10.0\)", text) for text in sentences)
    assert any(text.startswith("Naming the country in the question changes localization by") for text in sentences)
    assert html.count("<li>") > len(sentences)


def test_what_cannot_be_concluded_is_said(tmp_path):
    sentences = open_questions(measure(load(write_demo(tmp_path, n=10)), "unsteered", resamples=200))
    text = "\n".join(sentences)
    assert "Undecided on both axes, which is not the same as unchanged" in text
    assert re.search(r"with 10 questions, of which \d+ changed in \w+, a single language would show", text)
    assert "covers the choice of questions, not that of prompts" in text
    assert "An average can hide a language that moves the other way" in text


def test_single_languages_are_named_after_correction(tmp_path):
    write_run(tmp_path / "base", random_scores(0, n=80))
    write_run(tmp_path / "run", random_scores(2, {"localization": 0.4}, n=80))
    text = "\n".join(findings(measure(load(tmp_path), "base", resamples=200)))
    assert re.search(r"run, single languages \(Holm-corrected over 7\): localization up in Spanish \+[\d.]+ \[", text)
    write_run(tmp_path / "run", random_scores(2, n=80), date="2026-02-01T00-00-00")
    text = "\n".join(findings(measure(load(tmp_path), "base", resamples=200)))
    assert "In no single language does a change survive the correction for their number" in text


def test_recovery_of_what_alignment_took(tmp_path):
    write_run(tmp_path / "base", random_scores(0, n=80), model="org/base")
    write_run(tmp_path / "aligned", random_scores(2, {"localization": -0.2}, n=80), model="org/aligned")
    write_run(tmp_path / "back", random_scores(3, n=80), model="org/aligned", plan="loc@3:2")
    text = "\n".join(findings(measure(load(tmp_path), "base", resamples=200)))
    assert re.search(r"back brings back of the localization that aligned lost: \d+% \[\d+%, \d+%\]", text)


def test_many_runs_are_counted_and_not_recited(tmp_path):
    for seed in range(26):
        up = {"transfer": 0.3, "localization": 0.3} if seed == 25 else {}
        write_run(tmp_path / f"run{seed:02d}", random_scores(seed, up, n=30), plan="loc@3:2" if seed else "")
    plane = measure(load(tmp_path), "run00", resamples=100)
    sentences = findings(plane)
    assert len(sentences) <= 7
    assert re.match(r"Transfer against run00, of 25 runs: \d+ up, \d+ down, \d+ undecided", sentences[0])
    assert any("Up on both axes: run25" in text for text in sentences)
    assert any("No random direction was evaluated" in text for text in open_questions(plane))
    assert (default_resamples(26), default_resamples(200)) == (10_000, 1_000)


# --- in short --------------------------------------------------------------------------------------------------------


def test_each_question_has_a_sentence_and_a_picture(html, plane):
    asked = answers(plane)
    assert [answer.question for answer in asked] == [
        "Did transfer change?",
        "Did localization change?",
        "Did the English bias change?",
        "In which languages?",
        "On which items?",
    ]
    assert {answer.chart.name for answer in asked} == OF_ANSWERS
    assert re.match(r"Of 4 runs \d are up, \d down, \d undecided; highest ", asked[1].sentence)
    assert re.search(r"transfer up in Indonesian \(1\).* of 4, in which the change is sure", asked[3].sentence)
    short = html[html.index('id="short"') : html.index('id="runs"')]
    positions = [short.index(text) for answer in asked for text in (answer.question, f"figure-{answer.chart.name}")]
    assert positions == sorted(positions)
    assert html.index('id="runs"') < html.index('id="findings"')


def test_a_sentence_counts_what_the_plane_says(plane):
    average = plane.shifts[plane.shifts["language"] == "average"].set_index("run").drop("unsteered")
    up = sum((average["y_low"] > 0) & (average["y_changed"] >= 6))
    down = sum((average["y_high"] < 0) & (average["y_changed"] >= 6))
    sentence = answers(plane)[1].sentence
    assert sentence.startswith(f"Of 4 runs {up} are up, {down} down, {4 - up - down} undecided")
    moved = int(average.loc["loc", ["x_gains", "x_losses", "y_gains", "y_losses"]].sum())
    titles, rows = run_table(plane)
    assert titles == ["run", "transfer", "localization", "English bias", "quadrant", "items gained", "items lost"]
    (row,) = [row for row in rows if row[0][0] == "loc"]
    assert row[-1][1] + row[-2][1] == moved
    assert row[2][1] == average.loc["loc", "y_change"]


def test_one_run_is_answered_with_yes_or_undecided(tmp_path):
    write_run(tmp_path / "base", random_scores(0, n=80))
    write_run(tmp_path / "run", random_scores(2, {"localization": 0.4}, n=80))
    transfer, localization, *_ = answers(measure(load(tmp_path), "base", resamples=200))
    assert transfer.sentence.startswith("Undecided: run ")
    assert localization.sentence.startswith("Yes, up: run +")


# --- items -----------------------------------------------------------------------------------------------------------


def test_the_items_are_those_whose_answer_changed(tree, plane):
    browser = changed_items(plane, 5_000)
    assert browser.note == ""
    runs = {run.name: run for run in load(tree).runs}
    task = "localization_mini_ko_cloze"
    before, after = (
        read_samples(runs[name], task).query("metric == 'acc'").set_index("doc_hash")["value"]
        for name in ("unsteered", "loc")
    )
    place = browser.data["runs"].index("loc")
    korean = [item for item in browser.data["items"] if item["l"] == "ko" and item["a"] == 1 and place in item["r"]]
    gained = [item for item in korean if (item["b"][1], item["r"][place][1]) == (0, 1)]
    lost = [item for item in korean if (item["b"][1], item["r"][place][1]) == (1, 0)]
    assert len(gained) == int((after > before).sum()) > 0
    assert len(lost) == int((after < before).sum())
    for item in gained:
        assert item["r"][place][0] == item["g"] != item["b"][0]
        assert len(item["o"]) == len(item["c"]) == 4
        assert item["t"]
        assert "South Korea" in item["c"][item["g"]]


def test_no_item_is_one_that_nobody_changed(plane):
    items = changed_items(plane, 5_000).data["items"]
    assert len(items) > 100
    for item in items:
        assert item["r"]
        assert all(answer != item["b"] for answer in item["r"].values())


def test_of_many_documents_a_sample_that_is_the_same_for_every_run(plane):
    everything = {json.dumps(item) for item in changed_items(plane, 5_000).data["items"]}
    browser = changed_items(plane, 120)
    some = {json.dumps(item) for item in browser.data["items"]}
    assert 0 < len(some) < len(everything) / 2
    assert some <= everything  # whole items: a document is there for all runs or for none
    assert "A random 35.7% of the 336 documents" in browser.note


@pytest.mark.parametrize(
    ("metric", "chosen"),
    [("acc", 0), ("acc_norm", 1), ("acc_bytes", 2), ("acc_mutual_info", 3), ("acc_prior", 1)],
)
def test_the_chosen_option_follows_the_score(metric, chosen):
    options = ["a", "bbbb", "ζζζζ", "dd"]
    given, alone = [-2.0, -3.0, -4.0, -3.5], [-2.0, -1.0, -4.5, -9.0]
    document = {"options": options, "gold": 0}
    line = sample(0, document, [(value, False) for value in (*given, *alone)], {metric: 0.0})
    assert _answer(line, Axis("x", ("x",), metric))[0] == chosen


def test_tasks_of_others_show_generated_text_or_the_options_of_the_requests(tmp_path):
    for name, answer in (("base", "four"), ("run", "4")):
        lines = [
            {**sample(0, {"question": "2 + 2?", "gold": 0}, [], {"exact_match": float(answer == "4")}), "target": "4"}
        ]
        lines[0]["filtered_resps"] = [answer]
        choice = sample(
            0, {"gold": 1}, [(-2.0 + 2 * (answer == "4"), False), (-1.0, False)], {"exact_match": float(answer != "4")}
        )
        choice |= {
            "arguments": {
                f"gen_args_{n}": {"arg_0": "Sky colour?", "arg_1": f" {text}"} for n, text in enumerate(("red", "blue"))
            }
        }
        write_results(tmp_path / name, "m", "", {"gsm": lines, "sky": [choice]})
    plane = measure(
        load(tmp_path), "base", x="gsm", y="sky", x_metric="exact_match", y_metric="exact_match", resamples=100
    )
    sky, gsm = changed_items(plane, 10).data["items"]
    assert (gsm["b"], gsm["r"][0]) == (["four", 0], ["4", 1])
    assert (sky["q"], sky["o"], sky["g"]) == ("Sky colour?", ["red", "blue"], 1)
    assert (sky["b"], sky["r"][0]) == ([1, 1, 1.0], [0, 0, 1.0])


# --- the page --------------------------------------------------------------------------------------------------------


HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def test_nothing_in_the_page_is_markup_that_came_from_results(tmp_path):
    documents = [{"question": HOSTILE, "options": [HOSTILE, "b"], "gold": 0, "topic": HOSTILE, "language": HOSTILE}]
    for name, best in (("base", -1.0), ("run", -9.0)):
        lines = [
            sample(0, document, [(best, False), (-2.0, False)], {"acc": float(best == -1.0)}) for document in documents
        ]
        write_results(tmp_path / name, HOSTILE, "", {"one": lines, "two": lines})
    html = Report(measure(load(tmp_path), "base", x="one", y="two", resamples=100), title=HOSTILE).html()
    assert html.count("<img") == 0
    assert html.count("<script") == html.count("</script>")
    assert HOSTILE in blocks(html)["items-data"]["items"][0]["q"]  # as data it is whole


def test_only_the_page_s_own_scripts_may_run(html):
    import base64
    import hashlib

    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)[1]
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == 3
    for script in scripts:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert policy.count("sha256-") == 3
    assert "unsafe-eval" not in policy
    assert "default-src 'none'" in policy
    assert "script-src 'unsafe-inline'" not in policy


def test_plotly_is_in_the_page_once_and_every_figure_brings_its_csv(html):
    assert html.count("plotly.js v") == 1
    names = {name.removeprefix("chart-") for name in blocks(html) if name.startswith("chart-")}
    assert names == {"plane", "plane_by_language", "slopes", "english_bias", "context_gap"} | OF_ANSWERS
    assert blocks(html)["chart-slopes"]["csv"].startswith("run,language,x_baseline")
    assert len(html) < 8_000_000


def test_the_command_writes_page_and_figures_data(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("lm_eval_ext.viz.chart.FORMATS", ("csv",))
    out = tmp_path / "deep" / "report.html"
    arguments = [
        str(tree),
        "--baseline",
        "unsteered",
        *AXES,
        "-o",
        str(out),
        "--resamples",
        "200",
        "--title",
        "My <title>",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "• Did transfer change? Of 4 runs" in result.output
    assert f"wrote {out}" in result.output.replace("\n", "")
    html = out.read_text()
    assert "<h1>My &lt;title&gt;</h1>" in html
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_without_the_browser_of_items_there_are_none(tree, tmp_path):
    out = tmp_path / "r.html"
    arguments = [str(tree), "--baseline", "unsteered", *AXES, "-o", str(out), "--resamples", "100", "--items", "0"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert "Items that changed" not in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--baseline", "nobody", *AXES], "no run is called 'nobody'"),
        (["--baseline", "unsteered", *AXES, "--x", "hellaswag"], "no results for 'hellaswag'"),
        (["--baseline", "unsteered", *AXES, "--metric", "f1"], "no score 'f1'"),
        (["--baseline", "unsteered", *AXES, "-o", "/proc/none/r.html"], "cannot write /proc/none/r.html"),
        (["--baseline", "unsteered", *AXES, "--languages", "fr"], "no documents in fr"),
    ],
)
def test_a_mistake_is_a_user_error(tree, arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [str(tree), "--resamples", "100", *arguments])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert not list(tmp_path.iterdir())


# --- large files -----------------------------------------------------------------------------------------------------


def test_read_as_columns_a_file_says_the_same_as_line_by_line(tree, monkeypatch):
    import pandas as pd

    order = ["doc_id", "metric"]
    for run in load(tree).runs[:2]:
        for task in list(run.tasks)[:8]:
            slow = read_samples(run, task).sort_values(order).reset_index(drop=True)
            monkeypatch.setattr(results_module, "_LARGE", 0)
            monkeypatch.setattr(results_module, "_line_by_line", None)  # the columns alone
            fast = read_samples(run, task).sort_values(order).reset_index(drop=True)
            monkeypatch.undo()
            pd.testing.assert_frame_equal(slow, fast, check_dtype=False)


IRREGULAR = {
    "another metric further down": lambda lines: [lines[0], {**lines[1], "metrics": ["acc", "f1"], "f1": 0.5}],
    "a score that is no number": lambda lines: [{**line, "acc": None} for line in lines],
    "an id further down": lambda lines: [lines[0], {**lines[1], "doc": {**lines[1]["doc"], "question_id": "z"}}],
    "true for 1": lambda lines: [{**line, "acc": bool(line["acc"])} for line in lines],
    "a document that is text": lambda lines: [{**line, "doc": "text"} for line in lines],
    "no language further down": lambda lines: [lines[0], {**lines[1], "doc": {"id": "q1"}}],
}


@pytest.mark.parametrize("how", IRREGULAR)
def test_an_irregular_large_file_is_read_line_by_line(tmp_path, monkeypatch, how):
    import pandas as pd

    task = "transfer_mini_ko_cloze"
    path = write_run(tmp_path, {task: {"acc": [1.0, 0.0]}})
    file = next(path.parent.glob("samples_*"))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in IRREGULAR[how](lines)))
    (run,) = load(tmp_path).runs
    expected = read_samples(run, task)
    monkeypatch.setattr(results_module, "_LARGE", 0)
    pd.testing.assert_frame_equal(read_samples(run, task), expected, check_dtype=False)


def _run_of(lines: list[dict], folder: Path) -> Path:
    return write_results(folder, f"org/{folder.name}", "", {"transfer_mini_ko_cloze": lines})


def _lines(scores: list[float], documents: range | None = None) -> list[dict]:
    return [
        sample(number, {"id": f"q{place}", "language": "ko", "options": ["a", "b"], "gold": 0}, [], {"acc": score})
        for number, (place, score) in enumerate(zip(documents or range(len(scores)), scores, strict=True))
    ]


@pytest.mark.parametrize(
    ("second", "n_parsed"),
    [
        (_lines([0.0, 1.0, 0.0]), 1),  # the same documents: only their scores are read
        (_lines([0.0, 1.0, 0.0], range(2, -1, -1)), 2),  # in another order
        (_lines([0.0, 1.0]), 2),  # fewer
        ([{**line, "doc_id": 10 + line["doc_id"]} for line in _lines([0.0, 1.0, 0.0])], 2),  # under other numbers
        ([{**line, "prompt_hash": "0" * 64} for line in _lines([0.0, 1.0, 0.0])], 2),  # asked otherwise
        ([{**line, "metrics": ["acc", "f1"], "f1": 0.5} for line in _lines([0.0, 1.0, 0.0])], 2),  # with another score
        (_lines([0.25, 1.0, 0.5]), 2),  # lines of several widths
    ],
)
def test_documents_that_another_run_had_are_parsed_once(tmp_path, monkeypatch, second, n_parsed):
    import pandas as pd

    from lm_eval_ext.results import columns

    _run_of(_lines([1.0, 1.0, 0.0]), tmp_path / "a")
    _run_of(second, tmp_path / "b")
    runs = load(tmp_path).runs
    expected = [read_samples(run, "transfer_mini_ko_cloze") for run in runs]
    monkeypatch.setattr(results_module, "_LARGE", 0)
    monkeypatch.setattr(results_module, "_line_by_line", None)
    columns._known.clear()
    parsed = []
    parse = columns._parse
    monkeypatch.setattr(columns, "_parse", lambda *args: parsed.append(1) or parse(*args))
    for run, slow in zip(runs, expected, strict=True):
        fast = read_samples(run, "transfer_mini_ko_cloze")
        order = ["doc_id", "metric"]
        pd.testing.assert_frame_equal(
            *(frame.sort_values(order).reset_index(drop=True) for frame in (fast, slow)), check_dtype=False
        )
    assert len(parsed) == n_parsed
