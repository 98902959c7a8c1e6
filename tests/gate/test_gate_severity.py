"""What decides and what is only reported: severities, suspicious gains, items that must pass, waivers."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.gates import answers, words, write_gate, write_pair
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.errors import GateError
from lm_eval_ext.gate import judge, read_gate
from lm_eval_ext.gate.rules import Rule, Waiver
from lm_eval_ext.gate.verdicts import Measured, waive

PASS, FAIL, MISUSE = 0, 1, 3
LOST = {"el": 0.1}


def gate(root: Path, after: dict, *rules: str, head: str = "", options: tuple[str, ...] = ()):
    base, new = write_pair(root, answers(), after)
    path = write_gate(root, *rules, head=head)
    arguments = ["gate", str(path), "--baseline", str(base), "--candidate", str(new), *options]
    result = CliRunner(env={"GITHUB_ACTIONS": "", "GITHUB_STEP_SUMMARY": ""}).invoke(cli.app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


# --- severity --------------------------------------------------------------------------------------------------------


def test_a_warning_is_reported_and_does_not_decide(tmp_path):
    report, junit, summary = tmp_path / "gate.json", tmp_path / "gate.xml", tmp_path / "gate.md"
    options = ("--json", str(report), "--junit", str(junit), "--summary", str(summary), "--annotate")
    rules = ("axis: qa, languages: el, margin: 0.05, severity: warning", "axis: qa, languages: es, margin: 0.05")
    result = gate(tmp_path, answers(lose=LOST), *rules, options=options)
    assert result.exit_code == PASS
    assert "pass: 1 pass, 1 fail (warning), of 2 checks" in words(result.output)
    assert "::warning title=gate%3A qa acc el::" in result.output
    assert [check["severity"] for check in json.loads(report.read_text())["checks"]] == ["warning", "error"]
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("failures"), suite.get("errors")) == ("0", "0")
    assert "fail (warning): " in "".join(suite.itertext())
    assert "✗ fail (warning)" in summary.read_text()


def test_a_gate_of_warnings_passes(tmp_path):
    result = gate(tmp_path, answers(lose=LOST), "axis: qa, languages: el, margin: 0.05, severity: warning")
    assert (result.exit_code, "pass: 1 fail (warning), of 1 checks" in words(result.output)) == (PASS, True)


# --- suspicious gains ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "expected", "said"),
    [
        ("max_gain: 0.05", PASS, "fail (warning)"),
        ("max_gain: 0.05, severity: error", FAIL, "more than is plausible"),
        ("max_gain: 0.2", PASS, "no suspicious gain"),
    ],
)
def test_a_gain_that_is_too_good(tmp_path, rule, expected, said):
    after = answers()
    wrong = [number for number, score in enumerate(after["qa_el"]["acc"]) if not score]
    for number in wrong[:40]:  # ten points
        after["qa_el"]["acc"][number] = 1.0
    result = gate(tmp_path, after, f"axis: qa, languages: el, {rule}")
    assert result.exit_code == expected
    assert said in words(result.output)


# --- items that must pass --------------------------------------------------------------------------------------------


def right_and_wrong() -> tuple[list[str], list[str]]:
    """Ids of questions that the candidate below answers right in every language, and wrong in Greek only."""
    scores = {code: task["acc"] for code, task in ((task[-2:], scores) for task, scores in answers().items())}
    numbers = [number for number in range(400) if all(scores[code][number] for code in scores)]
    wrong = [
        number for number in range(400) if not scores["el"][number] and scores["en"][number] and scores["es"][number]
    ]
    return [f"q{number}" for number in numbers[:3]], [f"q{number}" for number in wrong[:2]]


@pytest.mark.parametrize("languages", ["", ", languages: [en, es]", ", languages: el"])
def test_items_named_by_id(tmp_path, languages):
    right, wrong = right_and_wrong()
    head = f"must_pass: [{{axis: qa, ids: [{', '.join(right + wrong)}]{languages}}}]"
    report = tmp_path / "gate.json"
    result = gate(tmp_path, answers(), "axis: qa, margin: 0.05", head=head, options=("--json", str(report)))
    check = json.loads(report.read_text())["checks"][-1]
    n = 5 * {"": 3, ", languages: [en, es]": 2, ", languages: el": 1}[languages]
    assert (check["rule"], check["language"], check["n"]) == ("must-pass", "all", n)
    if "en" in languages:
        assert (result.exit_code, check["detail"]) == (PASS, "all 10 items are right")
    else:
        assert (result.exit_code, check["items"]) == (FAIL, [f"qa_el {name}" for name in wrong])
        assert f"2 of {n} items are wrong: qa_el {wrong[0]}, qa_el {wrong[1]}" in check["detail"]


def test_items_named_by_their_columns(tmp_path):
    right, wrong = right_and_wrong()
    for number, expected in ((right[0], PASS), (wrong[0], FAIL)):
        head = f'must_pass: [{{axis: qa, where: "question=qa_el {number[1:]}"}}]'
        assert gate(tmp_path / number, answers(), "axis: qa, margin: 0.05", head=head).exit_code == expected


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("axis: qa, ids: [q1, q4000]", "has no question q4000; did you mean"),
        ("axis: qa, where: colour=red", "has the column 'colour'; columns: id, language, question"),
        ("axis: qa, where: id=q4000", "no document of run"),
        ("axis: qa, where: language=es, languages: el", "no item of qa in the candidate"),
        ("axis: nowhere, ids: q1", "no results for 'nowhere'"),
        ("axis: qa, ids: q1, languages: ko", "has no ko on qa"),
    ],
)
def test_items_that_the_results_do_not_have(tmp_path, items, message):
    result = gate(tmp_path, answers(), "axis: qa", head=f"must_pass: [{{{items}}}]")
    assert result.exit_code == MISUSE
    assert message in words(result.stderr)


# --- waivers ---------------------------------------------------------------------------------------------------------

WAIVER = "waivers: [{axis: qa, languages: el, reason: 'known, issue 7', until: 2999-12-31}]"


def test_a_waived_rule_is_shown_with_its_reason(tmp_path):
    report = tmp_path / "gate.json"
    result = gate(
        tmp_path,
        answers(lose=LOST),
        "axis: qa, languages: [es, el], margin: 0.03",
        head=WAIVER,
        options=("--json", str(report)),
    )
    assert result.exit_code == PASS
    output = words(result.output)
    assert "fail (waived)" in output
    assert "waived until 2999-12-31: known, issue 7" in output
    waived = {check["language"]: check["waived"] for check in json.loads(report.read_text())["checks"]}
    assert waived == {"es": None, "el": {"until": "2999-12-31", "reason": "known, issue 7"}}


def test_a_waiver_hides_no_other_rule(tmp_path):
    assert gate(tmp_path, answers(lose={"es": 0.1}), "axis: qa, languages: [es, el]", head=WAIVER).exit_code == FAIL


def test_a_waived_loss_is_not_shown_again_by_all_items_together(tmp_path):
    rule, pooled = "axis: qa, languages: [es, el], margin: 0.3", "pooled: {decides: true}\n"
    for name, lose, head, expected in (
        ("known", LOST, WAIVER, PASS),
        ("none", LOST, "", FAIL),
        ("another", {"es": 0.1}, WAIVER, FAIL),
    ):
        result = gate(tmp_path / name, answers(lose=lose), rule, head=pooled + head)
        assert result.exit_code == expected, result.output
        assert ("400 waived items are left out" in words(result.output)) == bool(head)


def test_a_waiver_that_is_not_needed_is_told(tmp_path):
    result = gate(tmp_path, answers(), "axis: qa, margin: 0.05", head=WAIVER)
    assert result.exit_code == PASS
    assert "the waiver of qa (known, issue 7) is not needed" in words(result.stderr)


@pytest.mark.parametrize(
    ("waiver", "message"),
    [
        ("axis: qa, reason: later, until: 2024-02-29", "the waiver of qa expired on 2024-02-29 (later)"),
        ("axis: quiz, reason: later, until: 2999-01-01", "the waiver of quiz speaks of no check; there are: qa acc en"),
        ("axis: qa, metric: f1, reason: later, until: 2999-01-01", "the waiver of qa f1 speaks of no check"),
    ],
)
def test_waivers_that_do_not_hold(tmp_path, waiver, message):
    result = gate(tmp_path, answers(lose=LOST), "axis: qa", head=f"waivers: [{{{waiver}}}]")
    assert result.exit_code == MISUSE
    assert message in words(result.stderr)


def test_a_waiver_holds_on_its_last_day():
    measured = Measured(Rule("qa"), "el", 0.6, 0.5, 400, 400, 0, 40, -0.1, -0.12, -0.08, 1e-9, 0.02)
    result = judge([measured])
    last = date(2026, 12, 31)
    waiver = Waiver("qa", "", (), "known", last)
    assert (result.verdict, waive(result, [waiver], last).verdict) == ("fail", "pass")
    with pytest.raises(GateError, match="expired on 2026-12-31"):
        waive(result, [waiver], date(2027, 1, 1))
    assert waive(result, [replace(waiver, languages=("el",))], last).verdict == "pass"


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("must_pass: [{axis: qa}]", "either ids or where must say which items"),
        ("must_pass: [{axis: qa, ids: q1, where: a=b}]", "either ids or where must say which items"),
        ("must_pass: [{axis: qa, where: food}]", "invalid condition 'food'"),
        ("must_pass: [{axis: qa, ids: q1, languages: average}]", "average has no items"),
        ("must_pass: [{axis: qa, id: q1}]", "unknown key 'id', did you mean 'ids'"),
        ("must_pass: [{axis: qa, ids: []}]", "must_pass 1: ids is []; needed: ids of questions"),
        ("waivers: [{axis: qa, until: 2026-12-31}]", "reason"),
        ("waivers: [{axis: qa, reason: later}]", "until"),
        ("waivers: [{axis: qa, reason: later, until: soon}]", "needed: a day, such as 2026-12-31"),
        ("waivers: [{axis: qa, reason: later, until: 2026-02-30}]", "needed: a day, such as 2026-12-31"),
    ],
)
def test_mistakes_in_the_file(tmp_path, head, message):
    with pytest.raises(GateError) as error:
        read_gate(write_gate(tmp_path, "axis: qa", head=head))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("severity: fatal", "severity is 'fatal'; needed: error or warning"),
        ("max_gain: 0", "3 points are 0.03"),
        ("max_gain: 0.1, margin: 0.1", "margin has no meaning beside max_gain"),
        ("max_gain: 0.1, floor: 0.1", "floor and max_gain in one rule"),
    ],
)
def test_mistakes_in_a_rule(tmp_path, rule, message):
    with pytest.raises(GateError) as error:
        read_gate(write_gate(tmp_path, f"axis: qa, {rule}"))
    assert message in str(error.value)
