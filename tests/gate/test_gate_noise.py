"""The noise floor of one model evaluated several times, and reruns of one candidate."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from support.gates import NEWER, answers, run, words, write_gate, write_pair
from support.runs import write_run

from lm_eval_ext.gate import read_gate
from lm_eval_ext.gate.noise import _told, read_noise

PASS, FAIL, INCONCLUSIVE, MISUSE = 0, 1, 2, 3
RULE = "axis: qa, margin: 0.02, languages: [es, el, average]"


def evaluations(root: Path, *scores: dict, model: str = "org/base") -> list[Path]:
    folders = [root / f"evaluation{number}" for number in range(len(scores))]
    for folder, of_run in zip(folders, scores, strict=True):
        write_run(folder, of_run, model=model, date=NEWER)
    return folders


def add_margins(folder: Path, margins: np.ndarray) -> None:
    """Responses whose best option is ahead of the second by so many nats; then scores without the question."""
    for path in folder.rglob("samples_*.jsonl"):
        lines = []
        for line, margin in zip(path.read_text().splitlines(), margins, strict=True):
            sample = json.loads(line)
            sample["doc"]["options"] = ["a", "b", "c"]
            values = (-5.0, -5.0 - margin, -30.0, -1.0, -2.0, -3.0)
            lines.append(json.dumps(sample | {"filtered_resps": [[str(value), "False"] for value in values]}))
        path.write_text("".join(f"{line}\n" for line in lines))


# --- measuring -------------------------------------------------------------------------------------------------------


def test_flips_and_shifts_per_language(tmp_path):
    folders = evaluations(tmp_path, answers(), answers(lose={"el": 0.02}), answers(flips=0.05))
    out = tmp_path / "noise.json"
    result = run("noise", write_gate(tmp_path, RULE), *folders, "--json", out)
    assert result.exit_code == PASS, result.output
    assert "Noise of org/base, 3 evaluations" in words(result.output)
    floor = read_noise(out)
    greek = {noise.language: noise for noise in floor.noise}["el"]
    assert (floor.runs, greek.n) == (3, 400)
    assert greek.flips == pytest.approx((0.02 + 0.05 + 0.07) / 3, abs=0.005)
    assert greek.most_flips == pytest.approx(0.07, abs=0.01)
    assert greek.shift == pytest.approx(0.02)
    assert greek.deviation == pytest.approx(np.sqrt(greek.flips / 400))
    assert greek.margin is None
    assert {noise.language for noise in floor.noise} == {"es", "el", "average"}


def test_how_far_margins_move(tmp_path):
    folders = evaluations(tmp_path, answers(), answers())
    margins = np.linspace(0.1, 5, 400)
    add_margins(folders[0], margins)
    add_margins(folders[1], margins + np.linspace(0, 0.2, 400))
    out = tmp_path / "noise.json"
    result = run("noise", write_gate(tmp_path, RULE), *folders, "--json", out)
    assert "0.190 nats" in result.output
    assert [noise.margin for noise in read_noise(out).noise] == [pytest.approx(0.19)] * 3


def test_evaluations_are_run(tmp_path):
    """The harness's dummy model draws the same answers with the same seed: no noise."""
    rules = write_gate(tmp_path, "axis: transfer_mini_ko")
    arguments = "--model dummy --tasks transfer_mini_ko --limit 6"
    result = run(
        "noise", rules, tmp_path / "noise", "--runs", 2, "--eval", arguments, "--json", tmp_path / "noise.json"
    )
    assert result.exit_code == PASS, result.output
    (noise,) = read_noise(tmp_path / "noise.json").noise
    assert (noise.language, noise.n, noise.flips, noise.margin) == ("ko", 6, 0, 0)
    configs = [
        json.loads(path.read_text())["config"] for path in sorted(tmp_path.rglob("noise/run*/**/results_*.json"))
    ]
    assert [int(config["batch_size"]) for config in configs] == [1, 2]
    again = run("noise", rules, tmp_path / "noise", "--runs", 2, "--eval", arguments)
    assert (again.exit_code, "run1 exists" in words(again.stderr)) == (MISUSE, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluation0"], "at least two evaluations of the same model, got 1"),
        (["evaluation0", "evaluation0"], "is given twice"),
        (["evaluation0", "new"], "noise is measured on one model"),
        (["evaluation0", "short"], "not comparable"),
        (["evaluation0", "nowhere"], "nowhere"),
        (["."], "give the folder of one"),
        (["x", "--runs", "2"], "--runs and --eval belong together"),
        (["x", "--eval", "--tasks a"], "--runs and --eval belong together"),
        (["x", "y", "--runs", "2", "--eval", "--tasks a"], "--runs writes into one folder, got 2"),
        (["x", "--runs", "2", "--eval", "--output_path y"], "must not say --output_path"),
        (["x", "--runs", "2", "--eval", "'"], "cannot be split"),
        (["x", "--runs", "1", "--eval", "--tasks a"], "2"),
    ],
)
def test_evaluations_that_cannot_be_compared(tmp_path, arguments, message):
    evaluations(tmp_path, answers(50))
    write_run(tmp_path / "new", answers(50), model="org/new", date=NEWER)
    write_run(tmp_path / "short", answers(40), model="org/base", date=NEWER)
    rules = write_gate(tmp_path, RULE)
    named = [tmp_path / word if word[0] in "esnxy." and "--" not in word else word for word in arguments]
    result = run("noise", rules, *named)
    assert result.exit_code == MISUSE
    assert message in words(result.output)


# --- judging ---------------------------------------------------------------------------------------------------------


def judged(root: Path, after: dict, rule: str, *noisy: dict):
    """A gate whose noise was measured on some evaluations."""
    root.mkdir(exist_ok=True)
    out = root / "noise.json"
    measured = run("noise", write_gate(root, rule), *evaluations(root / "noisy", *noisy), "--json", out)
    assert measured.exit_code == PASS, measured.output
    base, new = write_pair(root, answers(), after)
    return run(write_gate(root, rule, head="noise: noise.json"), "--baseline", base, "--candidate", new)


@pytest.mark.parametrize(
    ("moved", "expected", "reason"),
    [(0.0, FAIL, "a loss is shown"), (0.08, INCONCLUSIVE, "the same model moves by 8.0 points"), (0.01, FAIL, "shown")],
)
def test_a_loss_must_exceed_the_noise(tmp_path, moved, expected, reason):
    rule = "axis: qa, margin: 0.02, languages: el"
    result = judged(tmp_path, answers(lose={"el": 0.06}), rule, answers(), answers(lose={"el": moved}))
    assert (result.exit_code, reason in words(result.output)) == (expected, True), result.output


def test_flips_must_exceed_those_of_the_same_model(tmp_path):
    rule = "axis: qa, max_changed: 0.01, languages: el"
    result = judged(tmp_path / "noisy", answers(flips=0.04), rule, answers(), answers(flips=0.06, seed=3))
    assert result.exit_code == INCONCLUSIVE
    assert "the same model flips 6.0%" in words(result.output)
    assert judged(tmp_path / "quiet", answers(flips=0.04), rule, answers(), answers(flips=0.02)).exit_code == FAIL


def test_answers_within_the_noise_are_undecided(tmp_path):
    folders = evaluations(tmp_path, answers(), answers())
    margins = np.linspace(0.01, 4, 400)
    add_margins(folders[0], margins)
    add_margins(folders[1], margins + 0.5)  # every margin moves by half a nat
    rule = "axis: qa, margin: 0.02, languages: [es, el, average]"
    run("noise", write_gate(tmp_path, rule), *folders, "--json", tmp_path / "noise.json")
    base, new = write_pair(tmp_path, answers(), answers())
    add_margins(new, margins)
    report = tmp_path / "gate.json"
    gate = write_gate(tmp_path, rule, head="noise: noise.json")
    comment = tmp_path / "comment.md"
    told = ("--json", report, "--comment", comment, "--summary", tmp_path / "summary.md")
    result = run(gate, "--baseline", base, "--candidate", new, *told)
    assert result.exit_code == PASS
    assert "49 of 400 answers are undecided" in words(result.output)
    assert "(margin within the noise): qa_el q0, qa_el q1, qa_el q2 and 46 more" in words(result.output)
    checks = {check["language"]: check for check in json.loads(report.read_text())["checks"]}
    assert {code: check["undecided"] for code, check in checks.items()} == {"es": 49, "el": 49, "average": 98}
    assert checks["el"]["undecided_items"] == [f"qa_el q{number}" for number in range(49)]  # the closest first
    assert len(checks["average"]["undecided_items"]) == 98
    for text in (comment.read_text(), (tmp_path / "summary.md").read_text()):
        (fold,) = re.findall(r"<details><summary>\? Undecided answers.*?</details>", text, re.DOTALL)
        assert "| qa acc el | 49 of 400 | qa\\_el q0, qa\\_el q1," in fold
        assert "q19 and 29 more |" in fold


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the noise floor"),
        ("{", "was not written by `lm-eval-ext gate noise --json`"),
        ('{"model": "m", "runs": 1, "noise": []}', "was not written by `lm-eval-ext gate noise --json`"),
        ('{"model": "m", "runs": 2, "noise": [{"axis": "qa"}]}', "was not written by"),
    ],
)
def test_noise_files_that_cannot_be_read(tmp_path, content, message):
    if content is not None:
        (tmp_path / "noise.json").write_text(content)
    base, new = write_pair(tmp_path, answers(50), answers(50))
    result = run(write_gate(tmp_path, RULE, head="noise: noise.json"), "--baseline", base, "--candidate", new)
    assert (result.exit_code, message in words(result.stderr)) == (MISUSE, True), result.stderr


def test_noise_that_was_not_measured(tmp_path):
    folders = evaluations(tmp_path, answers(50), answers(50))
    run("noise", write_gate(tmp_path, RULE), *folders, "--json", tmp_path / "noise.json")
    base, new = write_pair(tmp_path, answers(50), answers(50))
    rules = write_gate(tmp_path, "axis: qa, languages: en", head="noise: noise.json")
    result = run(rules, "--baseline", base, "--candidate", new)
    assert (result.exit_code, "the noise of qa acc en was not measured" in words(result.stderr)) == (MISUSE, True)
    assert read_gate(rules).noise == tmp_path / "noise.json"


# --- reruns ----------------------------------------------------------------------------------------------------------


def test_reruns_of_a_candidate_are_no_more_items(tmp_path):
    base, new = write_pair(tmp_path, answers(), answers(lose={"el": 0.06}))
    write_run(tmp_path / "again", answers(lose={"el": 0.06}), model="org/new", date=NEWER, random_seed=1)
    reports = []
    for number, candidates in enumerate(([new], [new, tmp_path / "again"])):
        report = tmp_path / f"gate{number}.json"
        named = [part for folder in candidates for part in ("--candidate", folder)]
        run(write_gate(tmp_path, RULE), "--baseline", base, *named, "--json", report)
        reports.append(json.loads(report.read_text()))
    once, twice = reports
    assert (once["candidate"]["evaluations"], twice["candidate"]["evaluations"]) == (1, 2)
    assert twice["checks"] == once["checks"]  # the same answers twice say no more than once
    assert twice["pooled"] == once["pooled"]


def test_reruns_are_averaged_by_item(tmp_path):
    base, new = write_pair(tmp_path, answers(), answers(lose={"el": 0.06}))
    write_run(tmp_path / "again", answers(), model="org/new", date=NEWER, random_seed=1)
    report = tmp_path / "gate.json"
    candidates = ("--candidate", new, "--candidate", tmp_path / "again")
    run(write_gate(tmp_path, "axis: qa, languages: el"), "--baseline", base, *candidates, "--json", report)
    (check,) = json.loads(report.read_text())["checks"]
    assert (check["n"], check["losses"], check["change"]) == (400, 24, pytest.approx(-0.03))


@pytest.mark.parametrize(
    ("model", "n", "message"),
    [
        ("org/other", 50, "is no rerun of the candidate"),
        ("org/new", 40, "the reruns of the candidate are not comparable"),
    ],
)
def test_candidates_that_are_no_reruns(tmp_path, model, n, message):
    base, new = write_pair(tmp_path, answers(50), answers(50))
    write_run(tmp_path / "again", answers(n), model=model, date=NEWER)
    candidates = ("--candidate", new, "--candidate", tmp_path / "again")
    result = run(write_gate(tmp_path, RULE), "--baseline", base, *candidates)
    assert (result.exit_code, message in words(result.stderr)) == (MISUSE, True), result.stderr
    twice = run(write_gate(tmp_path, RULE), "--baseline", base, "--candidate", new, "--candidate", new)
    assert (twice.exit_code, "is given twice" in words(twice.stderr)) == (MISUSE, True)


# --- all items together ----------------------------------------------------------------------------------------------


def test_the_pooled_loss_must_exceed_the_noise(tmp_path):
    """A loss that the pooled test shows, in a model that loses as much when it is only evaluated again."""
    lose = dict.fromkeys(("en", "es", "el"), 0.02)
    noisy, quiet = tmp_path / "noisy", tmp_path / "quiet"
    rule, head = "axis: qa, margin: 0.5", "pooled: {decides: true}\nnoise: noise.json"
    for root, moved in ((noisy, {"el": 0.09}), (quiet, {"el": 0.01})):
        root.mkdir()
        out = root / "noise.json"
        run("noise", write_gate(root, rule), *evaluations(root / "e", answers(), answers(lose=moved)), "--json", out)
        assert read_noise(out).pooled.shift == pytest.approx(moved["el"] / 3)
        write_pair(root, answers(), answers(lose=lose))
    results = {
        root: run(write_gate(root, rule, head=head), "--baseline", root / "base", "--candidate", root / "new")
        for root in (noisy, quiet)
    }
    assert (results[quiet].exit_code, results[noisy].exit_code) == (FAIL, INCONCLUSIVE)
    assert "the same model moves by 3.00 points" in words(results[noisy].output)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("batch_size", "8", "--batch_size=8"),
        ("model", "hf", "--model=hf"),
        ("order", "reversed", "--tasks=c,b,a"),
        ("dtype", "bfloat16", "--model_args=pretrained=x,dtype=bfloat16"),
    ],
)
def test_what_evaluations_vary_in(key, value, expected):
    given = ["-M", "steered-hf", "--tasks", "a,b", "c", "--model_args=pretrained=x,dtype=float32", "--limit", "4"]
    told = _told(given, key, value)
    assert {*told[:2], expected} <= {"--limit", "4", *told}
    assert sum(word.startswith(expected.partition("=")[0] + "=") for word in told) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vary", "batch_size=1,2"], "--vary needs --runs"),
        (["--runs", "2", "--eval", "--tasks a", "--vary", "batch_size"], "write KEY=VALUE,VALUE"),
        (["--runs", "2", "--eval", "--tasks a", "--vary", "dtype=float32"], "write KEY=VALUE,VALUE"),
        (["--runs", "2", "--eval", "--tasks a", "--vary", "order=given,random"], "valid orders: given, reversed"),
    ],
)
def test_what_evaluations_cannot_vary_in(tmp_path, arguments, message):
    result = run("noise", write_gate(tmp_path, RULE), tmp_path / "x", *arguments)
    assert (result.exit_code, message in words(result.stderr)) == (MISUSE, True), result.stderr
