"""The pooled test: all items together, beside the rules."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.gates import answers, write_gate, write_pair
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.errors import GateError
from lm_eval_ext.gate import read_gate
from lm_eval_ext.gate.pooled import pool_changes
from lm_eval_ext.gate.rules import Gate, Pooled
from lm_eval_ext.stats import mcnemar, sign_flip

PASS, FAIL, INCONCLUSIVE, MISUSE = 0, 1, 2, 3
GATE = Gate((), {}, pooled=Pooled(decides=True))


def changes(**of_axis: np.ndarray) -> pd.DataFrame:
    """[questions, languages] of changes per axis as documents; languages are numbered."""
    frames = []
    for axis, cells in of_axis.items():
        questions, languages = np.indices(cells.shape)
        frame = {"axis": axis, "language": [f"l{code}" for code in languages.ravel()], "change": cells.ravel()}
        frames.append(pd.DataFrame(frame).assign(question=[f"{axis}/{number}" for number in questions.ravel()]))
    return pd.concat(frames)


def cells(n: int, gains: int, losses: int) -> np.ndarray:
    return np.array([1.0] * gains + [-1.0] * losses + [0.0] * (n - gains - losses))[:, None]


def test_on_one_language_it_is_the_exact_mcnemar_test():
    result = pool_changes(GATE, changes(qa=cells(1000, 20, 41)))
    assert result.suite.p == pytest.approx(mcnemar(20, 41, "less"))
    assert (result.suite.gains, result.suite.losses, result.suite.change) == (20, 41, pytest.approx(-0.021))
    assert result.verdict == "fail"


def test_a_question_in_several_languages_counts_once():
    alike = np.repeat(cells(500, 6, 13), 7, axis=1)  # every language answers alike: seven times one answer
    result = pool_changes(GATE, changes(qa=alike))
    assert result.suite.p == pytest.approx(mcnemar(6, 13, "less"))
    assert result.verdict == "pass"
    apart = pool_changes(GATE, changes(**{f"qa{number}": cells(500, 6, 13) for number in range(7)}))
    assert apart.suite.p == pytest.approx(mcnemar(42, 91, "less"))
    assert apart.verdict == "fail"
    assert apart.smallest < result.smallest / 2


def test_whole_numbers_are_tested_exactly():
    rng = np.random.default_rng(0)
    sums = rng.integers(-3, 3, 12).astype(float)
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(sums))).reshape(len(sums), -1)
    drawn = np.abs(sums) @ signs
    for alternative, extreme in (
        ("less", drawn <= sums.sum()),
        ("greater", drawn >= sums.sum()),
        ("two-sided", np.abs(drawn) >= abs(sums.sum())),
    ):
        assert sign_flip(sums, alternative, exact=True) == pytest.approx(extreme.mean())
        assert sign_flip(sums, alternative) == pytest.approx(extreme.mean(), abs=0.02)


def test_other_scores_are_permuted():
    change = np.random.default_rng(1).normal(-0.02, 0.1, (300, 1))
    drawn = stats.permutation_test(
        (change[:, 0],), np.mean, permutation_type="samples", alternative="less", n_resamples=5000, rng=0
    )
    result = pool_changes(GATE, changes(qa=change))
    assert result.suite.p == pytest.approx(drawn.pvalue, abs=0.005)


def test_a_part_is_named_only_where_the_whole_lost():
    lost = np.hstack([cells(400, 10, 50), cells(400, 10, 10)[::-1]])
    result = pool_changes(GATE, changes(qa=lost, other=cells(400, 10, 12)))
    p = {test.name: test.p for test in result.parts}
    assert p.keys() == {"qa", "qa l0", "qa l1", "other"}
    assert result.suite.p <= p["qa"] <= p["qa l0"] < 0.001
    assert min(p["qa l1"], p["other"]) > 0.05
    assert "in qa (p below 0.001), qa l0 (p below 0.001)" in result.detail
    # A gain elsewhere that makes up for it: no loss of the whole, so no part is looked at.
    result = pool_changes(GATE, changes(qa=lost, other=cells(400, 60, 10)))
    assert result.verdict == "pass"
    assert min(test.p for test in result.parts) >= result.suite.p


def test_what_the_items_can_show():
    result = pool_changes(GATE, changes(qa=cells(14000, 140, 140)))
    assert result.smallest == pytest.approx(0.003, abs=0.0003)
    assert "14000 items of 14000 questions, 2.0% changed, can show a loss of 0.3" in result.sensitivity
    assert math.isinf(pool_changes(GATE, changes(qa=cells(3, 0, 0))).smallest)


def test_half_a_point_is_seen_on_seven_times_2000_items():
    """benchmarks/pooled_power.py has the figures."""
    rng = np.random.default_rng(0)

    def shown(loss: float) -> float:
        counts = rng.multinomial(14000, [0.015 - loss / 2, 0.015 + loss / 2, 0.97], size=100)
        return float(np.mean([mcnemar(gains, losses, "less") <= 0.05 for gains, losses, _ in counts]))

    assert shown(0.005) >= 0.8
    assert shown(0.0) <= 0.12  # 5%, and three standard errors of a hundred trials


def gate(tmp_path, before, after, *rules, head="", options=()):
    base, new = write_pair(tmp_path, before, after)
    path = write_gate(tmp_path, *rules, head=head)
    arguments = ["gate", str(path), "--baseline", str(base), "--candidate", str(new), *options]
    return CliRunner(env={"GITHUB_ACTIONS": "", "GITHUB_STEP_SUMMARY": ""}).invoke(cli.app, arguments)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("", PASS),
        ("pooled: {decides: false}", PASS),
        ("pooled: {decides: true}", FAIL),
        ("pooled: {decides: true, alpha: 1.0e-9}", PASS),
        ("pooled: {decides: true, alpha: 1.0e-9, margin: 0.001}", INCONCLUSIVE),
    ],
)
def test_it_decides_only_where_asked(tmp_path, head, expected):
    """Every language loses less than its rule allows."""
    lose = dict.fromkeys(("en", "es", "el"), 0.01)
    result = gate(tmp_path, answers(), answers(lose=lose), "axis: qa, margin: 0.05", head=head)
    assert result.exit_code == expected, result.output
    output = " ".join(result.output.split())
    assert output.index("can show a loss of") < output.index("−1.00 points (0 gained, 12 lost)")
    assert ("reported only" in output) == ("true" not in head)


def test_documents_of_several_rules_count_once(tmp_path):
    report, summary = tmp_path / "gate.json", tmp_path / "summary.md"
    rules = (
        "axis: qa, margin: 0.05",
        "axis: qa, languages: el, floor: 0.1",
        "axis: qa, metric: english_bias, max_changed: 1.0e-3",
    )
    options = ("--json", str(report), "--summary", str(summary), "--annotate")
    result = gate(
        tmp_path, answers(), answers(lose={"el": 0.03}), *rules, head="pooled: {decides: true}", options=options
    )
    pooled = json.loads(report.read_text())["pooled"]
    assert {test["name"]: (test["n"], test["losses"]) for test in pooled["tests"]} == {
        "all": (1200, 12),
        "qa": (1200, 12),
        "qa en": (400, 0),
        "qa es": (400, 0),
        "qa el": (400, 12),
    }
    assert (pooled["verdict"], pooled["decides"]) == ("fail", True)
    assert "all items together: 1200 items of 400 questions" in summary.read_text()
    assert "::error title=gate%3A all items together::" in result.output


@pytest.mark.parametrize(
    ("pooled", "message"),
    [
        ("{decide: true}", "unknown key 'decide', did you mean 'decides'"),
        ("{decides: yes}", "needed: true or false"),
        ("{margin: 3}", "3 points are 0.03"),
        ("{power: 0.01}", "pooled: power is 0.01; needed: a share above alpha (0.05)"),
        ("yes", "decides, margin, alpha, power"),
    ],
)
def test_what_is_asked_of_it_is_checked(tmp_path, pooled, message):
    path = write_gate(tmp_path, "axis: qa", head=f"pooled: {pooled}")
    with pytest.raises(GateError) as error:
        read_gate(path)
    assert message in str(error.value)
