"""Gates, noise floors, frozen baselines and side effects that cannot be judged: each is named, with what is valid."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from support.gates import NEWER, OLDER, answers, write_gate
from support.runs import write_run
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.side_effects.measuring import COLUMNS
from lm_eval_ext.side_effects.panel import Panel

MISUSE = 3
RULE = "axis: qa, languages: [es, el], margin: 0.1"
N = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A baseline and a candidate that can be compared, and much that cannot."""
    root = tmp_path_factory.mktemp("gate")
    scores = answers(N)
    old, new = {"model": "org/base", "date": OLDER}, {"model": "org/new", "date": NEWER}
    write_run(root / "base", scores, **old)
    write_run(root / "new", scores, **new)
    write_run(root / "short", answers(N - 2), **new)
    write_run(root / "version", scores, versions=dict.fromkeys(scores, 2.0), **new)
    write_run(root / "lists", {task: {"acc": [2.0] * N} for task in scores}, **new)
    write_run(root / "spanish", {"qa_es": scores["qa_es"]}, **old)
    write_run(root / "again", scores, **old)
    (root / "empty").mkdir()
    frame = pd.DataFrame([("kl", "ko", f"t{n}", 0.0, 0.1 + n / 100) for n in range(9)], columns=list(COLUMNS))
    Panel(frame, "org/new", "", "org/base", {}).write(root / "panel.json")
    Panel(frame, "org/new", "loc@58%:2", "new, unsteered", {}).write(root / "steered.json")
    (root / "other.json").write_text("{}")
    flips = {"n": N, "flips": 0.0, "most_flips": 0.0, "shift": 0.0, "deviation": 0.0}
    noise = [{"axis": "qa", "metric": "acc", "language": "es", "margin": None, **flips}]
    (root / "noise.json").write_text(json.dumps({"model": "m", "runs": 2, "noise": noise, "pooled": flips}))
    (root / "alone.json").write_text(json.dumps({"model": "m", "runs": 2, "noise": noise}))
    return root


def effects(rule: str, file: str = "panel.json") -> str:
    return f"side_effects: {{file: {file}, rules: [{{{rule}}}]}}"


@pytest.mark.parametrize(
    ("head", "rule", "sides", "message"),
    [
        # gate.yaml
        ("", "axis: qa, marginn: 0.1", "base new", "rule 1: unknown key 'marginn', did you mean 'margin'?"),
        ("", "axis: qa, margin: 3", "base new", "margin is 3; needed: a share above 0, below 1 (3 points are 0.03)"),
        ("", "axis: qa, severity: fatal", "base new", "severity is 'fatal'; needed: error or warning"),
        ("", "axis: qa, floor: 0.1, max_gain: 0.1", "base new", "floor and max_gain in one rule"),
        ("alpha: 0.4\npower: 0.3", RULE, "base new", "power is 0.3; needed: a share above alpha (0.4)"),
        (
            "waivers: [{axis: qa, reason: known, until: 2020-01-31}]",
            RULE,
            "base new",
            "the waiver of qa expired on 2020-01-31 (known)",
        ),
        ("waivers: [{axis: qa, until: 2099-01-31}]", RULE, "base new", "waiver 1: reason is missing; needed: a reason"),
        ("waivers: [{axis: qa, reason: r, until: soon}]", RULE, "base new", "until is 'soon'; needed: a day, such as"),
        ("waivers: [{axis: arc, reason: r, until: 2099-01-31}]", RULE, "base new", "speaks of no check; there are: qa"),
        ("must_pass: [{axis: qa, ids: [q1, q77]}]", RULE, "base new", "has no question q77; did you mean 'q7'?"),
        ("must_pass: [{axis: qa, where: id=q99}]", RULE, "base new", "q99"),
        ("must_pass: [{axis: qa}]", RULE, "base new", "must_pass 1: either ids or where must say which items"),
        ("must_pass: [{axis: qa, ids: [7]}]", RULE, "base new", "has no question 7; did you mean 'q7'?"),
        ("must_pass: [{axis: qa, ids: [[]]}]", RULE, "base new", "needed: ids of questions, as texts or numbers"),
        ("pooled: {scores: flips}", RULE, "base new", "pooled: scores is 'flips'; needed: answers or margins"),
        ("pooled: {scores: margins}", RULE, "base new", "pooled: scores are margins, and there are none in 'org/base'"),
        # two runs
        ("", RULE, "empty new", "empty"),
        ("", RULE, "base base", "a run cannot be held against itself"),
        ("", RULE, "new base", "are --baseline and --candidate swapped?"),
        ("baseline: {model: org/other}", RULE, "base new", "the gate wants the baseline to have model 'org/other'"),
        ("", RULE, "base short", "paired on the 20 documents that both have, of 24 in the baseline"),
        ("", RULE, "base version", "other versions of"),
        ("", RULE, "base lists", "is not between 0 and 1; a gate holds shares per document"),
        ("", RULE, "spanish new", "has no el on qa; it has es"),
        # noise, drift
        ("noise: nowhere.json", RULE, "base new", "cannot read the noise floor"),
        ("noise: other.json", RULE, "base new", "was not written by `lm-eval-ext gate noise --json`"),
        ("noise: alone.json", RULE, "base new", "pooled is missing"),
        ("noise: noise.json", RULE, "base new", "the noise of qa acc el was not measured; run lm-eval-ext gate noise"),
        ("drift: {frozen: base, margin: 0.1}", RULE, "base new", "the frozen baseline"),
        ("drift: {frozen: empty, margin: 0.1}", RULE, "base new", "empty"),
        ("drift: {frozen: again}", RULE, "base new", "drift: margin is missing"),
        ("drift: {frozen: again, margin: 0.1}", "axis: qa, floor: 0.1", "base new", "drift needs a rule that compares"),
        # side effects
        (effects("measure: kl_div, max: 1"), RULE, "base new", "measure is 'kl_div'; valid: perplexity, kl, "),
        (effects("measure: kl"), RULE, "base new", "no limit; needed: one of max, min, max_rise, max_fall"),
        (effects("measure: kl, max: 1, min: 0"), RULE, "base new", "max and min; needed: one of"),
        (effects("measure: kl, max: -1"), RULE, "base new", "max is -1; needed: a number from 0"),
        (effects("measure: length, max_rise: 0.1"), RULE, "base new", "the side effects have no length in all; there"),
        (effects("measure: kl, languages: el, max: 1"), RULE, "base new", "no kl in el; there are: kl in ko"),
        (
            effects("measure: kl, max: 1", "steered.json"),
            RULE,
            "base new",
            "has the side effects of org/new with loc@58%:2",
        ),
        (
            effects("measure: kl, max: 1", "other.json"),
            RULE,
            "base new",
            "was not written by `lm-eval-ext side-effects",
        ),
    ],
)
def test_each_mistake_is_named(root, head, rule, sides, message):
    path = write_gate(root, rule, head=f"resamples: 100\n{head}")
    baseline, candidate = sides.split()
    arguments = ["gate", str(path), "--baseline", str(root / baseline), "--candidate", str(root / candidate)]
    result = CliRunner(env={"GITHUB_ACTIONS": "", "GITHUB_STEP_SUMMARY": ""}).invoke(cli.app, arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, message in " ".join(result.stderr.split())) == (MISUSE, True), result.stderr


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ("measure: kl, max: 0.2", "pass"),
        ("measure: kl, max: 0.1", "fail"),
        ("measure: kl, max: 0.1, severity: warning", "fail"),
        ("measure: kl, max: 0.14", "inconclusive"),
        ("measure: kl, min: 0.05", "pass"),
        ("measure: kl, max_rise: 0.05", "fail"),
        ("measure: kl, max_fall: 0.05", "pass"),
    ],
)
def test_side_effects_are_held_to_limits(root, rule, verdict):
    """The divergence is 0.14 on average, between 0.10 and 0.18."""
    path, report = write_gate(root, RULE, head=f"resamples: 500\n{effects(rule)}"), root / "report.json"
    arguments = ["gate", str(path), "--baseline", str(root / "base"), "--candidate", str(root / "new")]
    result = CliRunner(env={"GITHUB_ACTIONS": "", "GITHUB_STEP_SUMMARY": ""}).invoke(
        cli.app, [*arguments, "--json", str(report)]
    )
    content = json.loads(report.read_text())
    (check,) = [check for check in content["checks"] if check["rule"] == "side-effect"]
    assert (check["axis"], check["metric"], check["language"], check["n"]) == ("side effects", "kl", "ko", 9)
    assert check["verdict"] == verdict, check["detail"]
    assert "0.1400" in result.output
    assert (content["verdict"] == "fail") == (verdict == "fail" and "warning" not in rule)
