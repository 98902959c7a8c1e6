"""gate.yaml: what is read, and what is refused with the key and the valid values."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lm_eval_ext.errors import GateError
from lm_eval_ext.gate import read_gate
from lm_eval_ext.gate.rules import ALPHA, CHANCE_MARGIN, MARGIN, Rule

ROOT = Path(__file__).parents[2]


def read(tmp_path: Path, text: str):
    path = tmp_path / "gate.yaml"
    path.write_text(text, encoding="utf-8")
    return read_gate(path)


def test_a_rule_needs_only_an_axis(tmp_path):
    gate = read(tmp_path, "rules: [{axis: gmmlu}]")
    assert gate.rules == (Rule("gmmlu", "acc", (), "non-inferiority", 0.0, MARGIN, None, ALPHA, 0.8),)
    assert gate.same_prompts
    assert gate.baseline == {}


def test_every_kind_of_rule(tmp_path):
    gate = read(
        tmp_path,
        """
        alpha: 0.1
        baseline: {model: org/base, plan: }
        prompts: any
        rules:
          - {axis: a, margin: 0.03, alpha: 0.01, power: 0.9, languages: "ko, EL ,average", better: lower}
          - {axis: b, floor: 0.35, languages: el}
          - {axis: c, chance: 0.25}
          - {axis: d, max_changed: 0, metric: "exact_match,strict-match"}
        """,
    )
    first, second, third, fourth = gate.rules
    assert (first.languages, first.margin, first.alpha, first.better) == (("ko", "el", "average"), 0.03, 0.01, "lower")
    assert (second.kind, second.limit, second.margin, second.alpha) == ("floor", 0.35, 0.0, 0.1)
    assert (third.kind, third.limit, third.margin) == ("chance", 0.25, CHANCE_MARGIN)
    assert (fourth.kind, fourth.limit, fourth.metric) == ("unchanged", 0.0, "exact_match,strict-match")
    assert gate.baseline == {"model": "org/base", "plan": ""}
    assert not gate.same_prompts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [", "is not YAML"),
        ("", "got nothing; needed: keys with values; valid keys: alpha, power"),
        ("- axis: a", "needed: keys with values; valid keys: alpha, power"),
        (
            "rule: []",
            r"unknown key 'rule', did you mean 'rules'\? Valid keys: alpha, power, resamples, seed, baseline, prompts",
        ),
        ("alpha: 0.05", "rules is missing; needed: a list"),
        ("rules: []", "rules is .*; needed: a list of at least one"),
        ("rules: [gmmlu]", "rule 1: got 'gmmlu'; needed: keys with values; valid keys: axis, metric"),
        (
            "rules: [{axis: a}, {axis: b, marginn: 1}]",
            r"rule 2: unknown key 'marginn', did you mean 'margin'\? Valid keys: axis, metric",
        ),
        ("rules: [{axis: a, colour: 1}]", "rule 1: unknown key 'colour'; valid keys: axis, metric"),
        ("rules: [{margin: 0.1}]", "rule 1: axis is missing; needed: a name"),
        ("rules: [{axis: 3}]", "axis is 3; needed: a name"),
        ("rules: [{axis: a, margin: 3}]", r"margin is 3; needed: a share above 0, below 1 \(3 points are 0.03\)"),
        ("rules: [{axis: a, margin: 0}]", "margin is 0; needed: a share above 0"),
        ("rules: [{axis: a, margin: yes}]", "margin is 'yes'; needed: a share"),
        ("rules: [{axis: a, margin: true}]", "margin is True"),
        ("rules: [{axis: a, margin: }]", "margin is missing"),
        ("rules: [{axis: a, margin: 1:30}]", "margin is '1:30'"),
        ("rules: [{axis: a, axis: b}]", r"gate.yaml: the key 'axis' is given twice, in lines 1 and 1"),
        ("rules: [{axis: a}]\nalpha: 0.1\n\nalpha: 0.01", "the key 'alpha' is given twice, in lines 2 and 4"),
        ("rules: [{axis: a, margin: .nan}]", "margin is nan"),
        ("rules: [{axis: a, margin: '0.1'}]", "margin is '0.1'"),
        ("rules: [{axis: a, floor: 0.3, chance: 0.2}]", "floor and chance in one rule"),
        ("rules: [{axis: a, floor: 0.3, margin: 0.1}]", "margin has no meaning beside floor"),
        ("rules: [{axis: a, max_changed: -1}]", "max_changed is -1; needed: a share from 0"),
        ("rules: [{axis: a, alpha: 0.6}]", "alpha is 0.6; needed: a share above 0, below 0.5"),
        ("rules: [{axis: a, alpha: 0.2, power: 0.1}]", r"power is 0.1; needed: a share above alpha \(0.2\)"),
        ("rules: [{axis: a, better: more}]", "better is 'more'; needed: higher or lower"),
        ("rules: [{axis: a, better: lower, floor: 0.1}]", "floor asks for a score of which more is better"),
        ("rules: [{axis: a, languages: [false, ko]}]", r"languages is \[False, 'ko'\]; needed: at least one code"),
        ("rules: [{axis: a, languages: []}]", r"languages is \[\]; needed: at least one"),
        ("rules: [{axis: a, languages: }]", "languages is missing; needed: at least one"),
        ("prompts: other\nrules: [{axis: a}]", "prompts is 'other'; needed: same or any"),
        ("resamples: 5\nrules: [{axis: a}]", "resamples is 5; needed: a whole number, at least 100"),
        ("baseline: {name: x}\nrules: [{axis: a}]", "baseline: unknown key 'name'; valid keys: model, plan"),
        ("rules: !!python/object/apply:os.system ['true']", "is not YAML"),
        ("rules: [{axis: a, margin: !!int x}]", "is not YAML"),
        ("rules: [{axis: a, margin: !!timestamp x}]", "is not YAML"),
    ],
)
def test_what_means_nothing_is_named(tmp_path, text, message):
    with pytest.raises(GateError, match=message) as error:
        read(tmp_path, text)
    assert str(tmp_path / "gate.yaml") in str(error.value)


def test_all_mistakes_are_told_at_once(tmp_path):
    with pytest.raises(GateError) as error:
        read(
            tmp_path,
            "alfa: 1\nseed: -1\nrules: [{axis: a, margin: 3, flor: 0.2}, {axis: b, floor: 0.2, chance: 0.1}, 5]",
        )
    first, *lines = str(error.value).splitlines()
    assert first == f"{tmp_path / 'gate.yaml'}: 6 mistakes"
    assert [line.partition(";")[0].partition("?")[0].strip() for line in lines] == [
        "seed is -1",
        "rule 1: margin is 3",
        "rule 1: unknown key 'flor', did you mean 'floor'",
        "rule 2: floor and chance in one rule",
        "rule 3: got 5",
        "unknown key 'alfa', did you mean 'alpha'",
    ]


def test_a_word_means_what_is_written(tmp_path):
    """YAML 1.1 makes false, a number and a date of these."""
    gate = read(tmp_path, "baseline: {model: 2024-05-01, plan: off}\nrules: [{axis: 1_000, languages: [no, EL]}]")
    assert gate.baseline == {"model": "2024-05-01", "plan": "off"}
    assert (gate.rules[0].axis, gate.rules[0].languages) == ("1_000", ("no", "el"))


def test_a_key_of_an_anchor_may_be_given_again(tmp_path):
    gate = read(tmp_path, "rules: [&first {axis: a, margin: 0.1}, {<<: *first, axis: b}]")
    assert [(rule.axis, rule.margin) for rule in gate.rules] == [("a", 0.1), ("b", 0.1)]


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(GateError, match=r"cannot read the gate .*: No such file"):
        read_gate(tmp_path / "nowhere.yaml")
    with pytest.raises(GateError, match="cannot read the gate"):
        read_gate(tmp_path)
    path = tmp_path / "gate.yaml"
    path.write_bytes(b"\xff\xfe\x00rules")
    with pytest.raises(GateError, match="not text in UTF-8"):
        read_gate(path)


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("examples/gate.yaml", {"non-inferiority", "chance"}),
        ("results/baselines/gate.yaml", {"non-inferiority", "unchanged"}),
    ],
)
def test_the_gates_of_this_repository_are_read(path, kinds):
    gate = read_gate(ROOT / path)
    listed = [line for line in (ROOT / path).read_text(encoding="utf-8").splitlines() if re.match(r" +- .*axis:", line)]
    assert len(gate.rules) == len(listed)
    assert {rule.kind for rule in gate.rules} == kinds
