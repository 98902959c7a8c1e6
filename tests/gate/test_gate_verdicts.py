"""The verdicts: pure, without files."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_ext.gate import judge
from lm_eval_ext.gate.rules import Rule
from lm_eval_ext.gate.verdicts import STATUS, Measured

RULE = Rule("qa", margin=0.03)
STILL = Measured(
    rule=RULE,
    language="el",
    baseline=0.6,
    candidate=0.6,
    n=400,
    questions=400,
    gains=0,
    losses=0,
    change=0.0,
    low=0.0,
    high=0.0,
    p=1.0,
    smallest=0.017,
)


def verdict(**changes) -> tuple[str, str]:
    (check,) = judge([replace(STILL, **changes)]).checks
    return check.verdict, check.detail


@pytest.mark.parametrize(
    ("changes", "expected", "reason"),
    [
        ({}, "pass", "a loss of 3.0 is excluded"),
        ({"change": -0.03, "low": -0.045, "high": -0.016, "p": 0.0002}, "fail", "a loss is shown"),
        # Shown, but certainly smaller than the margin.
        ({"change": -0.01, "low": -0.02, "high": -0.001, "p": 0.01}, "pass", "a loss of 3.0 is excluded"),
        ({"change": -0.02, "low": -0.04, "high": 0.001, "p": 0.06}, "inconclusive", "no loss is shown"),
        ({"smallest": 0.05, "low": -0.02}, "inconclusive", "too few items, 400 can show 5.0 points, not 3.0"),
        ({"smallest": 0.05, "change": -0.04, "low": -0.09, "p": 0.04}, "inconclusive", "too few items"),
        ({"smallest": 0.05, "change": -0.2, "low": -0.3, "p": 1e-4}, "fail", "p below 0.001"),
        ({"smallest": 0.05, "change": 0.2, "low": 0.1}, "pass", "excluded"),
        ({"smallest": math.inf, "n": 3}, "inconclusive", "3 can show no loss at all"),
    ],
)
def test_verdicts_on_a_margin(changes, expected, reason):
    found, detail = verdict(**changes)
    assert found == expected
    assert reason in detail


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"change": 0.05, "low": 0.01}, "pass"),
        ({"change": 0.05, "low": -0.01, "p": 0.9}, "inconclusive"),
        ({"change": -0.1, "low": -0.15, "p": 0.001}, "fail"),
    ],
)
def test_verdicts_on_a_floor(changes, expected):
    assert verdict(rule=Rule("qa", kind="floor", limit=0.5, margin=0.0), **changes)[0] == expected


@pytest.mark.parametrize(("gains", "losses", "expected"), [(0, 0, "pass"), (2, 2, "pass"), (3, 2, "fail")])
def test_gains_alter_scores_as_losses_do(gains, losses, expected):
    rule = Rule("qa", kind="unchanged", limit=0.01, margin=0.0)
    assert verdict(rule=rule, gains=gains, losses=losses, p=math.nan)[0] == expected


def test_p_values_are_corrected_over_all_checks():
    lost = replace(STILL, change=-0.02, low=-0.035, high=-0.001, p=0.02)
    assert judge([lost]).verdict == "fail"
    assert judge([lost, STILL, STILL]).verdict == "inconclusive"  # 0.02 x 3 is above 5%
    unchanged = replace(STILL, rule=Rule("qa", kind="unchanged", limit=0.01), p=math.nan)
    assert judge([lost, unchanged, unchanged]).verdict == "fail"  # without a test there is nothing to correct


VERDICTS = st.sampled_from(
    [STILL, replace(STILL, smallest=0.5), replace(STILL, change=-0.1, low=-0.2, high=-0.05, p=1e-9)]
)


@given(st.lists(VERDICTS, min_size=1, max_size=6))
def test_the_gate_is_as_good_as_its_worst_check(measured):
    result = judge(measured)
    verdicts = [check.verdict for check in result.checks]
    worst = min(verdicts, key=["fail", "inconclusive", "pass"].index)
    assert result.verdict == worst
    assert result.passed == (set(verdicts) == {"pass"})
    assert STATUS[worst] == {"pass": 0, "fail": 1, "inconclusive": 2}[worst]
    assert sum(map(result.count, STATUS)) == len(measured)


def test_a_gate_without_measurements_is_none():
    with pytest.raises(ValueError, match="at least one"):
        judge([])
