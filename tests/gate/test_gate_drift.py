"""Drift: a candidate that loses little against the last release, and much since a frozen one."""

from __future__ import annotations

import json

import pytest
from support.gates import OLDER, answers, write_gate, write_pair
from support.runs import write_run
from typer.testing import CliRunner

from lm_eval_ext import cli

PASS, FAIL, MISUSE = 0, 1, 3
RULE = "axis: qa, margin: 0.08, languages: [es, el]"
EARLY = "2025-06-01T00-00-00"


def gate(root, head="drift: {frozen: v1, margin: 0.05}", *rules, options=()):
    path = write_gate(root, *(rules or (RULE,)), head=head)
    arguments = ["gate", str(path), "--baseline", str(root / "base"), "--candidate", str(root / "new"), *options]
    return CliRunner(env={"GITHUB_ACTIONS": "", "GITHUB_STEP_SUMMARY": ""}).invoke(cli.app, arguments)


@pytest.fixture
def releases(tmp_path):
    """Greek loses five points with each of two releases."""
    write_run(tmp_path / "v1", answers(), model="org/first", date=EARLY)
    write_pair(tmp_path, answers(lose={"el": 0.05}), answers(lose={"el": 0.10}))
    return tmp_path


def test_losses_within_the_margin_add_up(releases):
    """No rule against the baseline fails, the same rule since the first release does."""
    report = releases / "gate.json"
    assert gate(releases, "").exit_code == PASS
    result = gate(releases, options=["--json", str(report)])
    assert result.exit_code == FAIL, result.output
    content = json.loads(report.read_text())
    verdicts = {(check["language"], bool(check["since"])): check["verdict"] for check in content["checks"]}
    assert verdicts == {
        ("es", False): "pass",
        ("el", False): "pass",
        ("es", True): "pass",
        ("el", True): "fail",
    }
    assert {check["margin"] for check in content["checks"] if check["since"]} == {0.05}
    assert {check["since"] for check in content["checks"]} == {None, "org/first"}
    assert (content["drift"]["tests"][0]["losses"], content["pooled"]["tests"][0]["losses"]) == (40, 20)
    output = " ".join(result.output.split())
    assert "drift since org/first (reported only): −5.00 points (0 gained, 40 lost)" in output
    assert "against the baseline −2.50 points" in output


def test_drift_as_a_warning(releases):
    result = gate(releases, "drift: {frozen: v1, margin: 0.05, severity: warning}")
    assert (result.exit_code, "fail (warning)" in result.output) == (PASS, True)


@pytest.mark.parametrize(
    ("head", "rule", "message"),
    [
        ("drift: {frozen: nowhere, margin: 0.05}", RULE, "nowhere"),
        ("drift: {frozen: base, margin: 0.05}", RULE, "is the baseline itself"),
        ("drift: {frozen: late, margin: 0.05}", RULE, "after the baseline"),
        ("drift: {frozen: short, margin: 0.05}", RULE, "not comparable"),
        ("drift: {frozen: ., margin: 0.05}", RULE, "give the folder of one"),
        ("drift: {frozen: v1}", RULE, "drift: margin is missing; needed: a share"),
        ("drift: {frozen: v1, margin: 5}", RULE, "3 points are 0.03"),
        ("drift: {frozen: v1, margin: 0.05}", "axis: qa, floor: 0.1", "drift needs a rule that compares two runs"),
    ],
)
def test_frozen_baselines_that_mean_nothing(releases, head, rule, message):
    write_run(releases / "late", answers(), model="org/late", date="2026-01-15T00-00-00")
    write_run(releases / "short", answers(50), model="org/short", date=EARLY)
    result = gate(releases, head, rule)
    assert (result.exit_code, message in " ".join(result.stderr.split())) == (MISUSE, True), result.stderr


def test_the_frozen_baseline_is_not_renewed(releases):
    path = write_gate(releases, RULE, head="drift: {frozen: v1, margin: 0.05}")
    arguments = ["gate", "renew", str(path), "--baseline", str(releases / "v1"), "--candidate", str(releases / "new")]
    result = CliRunner().invoke(cli.app, arguments)
    assert (result.exit_code, "is the frozen baseline" in result.stderr) == (MISUSE, True)


def test_the_frozen_baseline_may_be_another_model(releases):
    """`baseline:` says what the moving one is."""
    assert OLDER > EARLY
    result = gate(releases, "baseline: {model: org/base}\ndrift: {frozen: v1, margin: 0.05}")
    assert result.exit_code == FAIL, result.output
