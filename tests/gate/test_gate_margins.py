"""The pooled test on margins: what it sees that right and wrong answers do not, and where margins are missing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import stats
from support.gates import LANGUAGES, answers, run, words, write_gate, write_pair

from lm_eval_ext.gate.margins import change_by_margins
from lm_eval_ext.results.answers import margin

if TYPE_CHECKING:
    from pathlib import Path

PASS, FAIL, INCONCLUSIVE, MISUSE = 0, 1, 2, 3
HEAD = "resamples: 200\npooled: {decides: true, scores: margins}"


def add_options(folder: Path, lower: float = 0.0) -> None:
    """Log-likelihoods of three options: the right one ahead or behind by up to three nats, of right answers less so."""
    for number, path in enumerate(sorted(folder.rglob("samples_*.jsonl"))):
        size = np.random.default_rng(number).uniform(0.5, 3, 1000)
        lines = []
        for place, line in enumerate(path.read_text().splitlines()):
            sample = json.loads(line)
            ahead = size[place] - lower if sample["acc"] else -size[place]
            sample["doc"] |= {"options": ["a", "b", "c"], "gold": 1}
            sample["filtered_resps"] = [["-9.0", "False"], [str(-9 + ahead), "False"], ["-20.0", "False"]]
            lines.append(json.dumps(sample))
        path.write_text("".join(f"{line}\n" for line in lines))


def pair(root: Path, after: dict[str, Any], lower: float) -> tuple[Path, Path]:
    base, new = write_pair(root, answers(), after)
    add_options(base)
    add_options(new, lower)
    return base, new


def test_the_change_is_that_of_the_chance_to_be_right():
    before, after = np.array([1.0, -2.0, 0.3]), np.array([0.5, -1.0, 0.3])
    moved = np.sqrt(np.pi / 2) * 0.5
    change = change_by_margins(before, after)
    assert change == pytest.approx(stats.norm.cdf(after / moved) - stats.norm.cdf(before / moved))
    assert not change_by_margins(before, before).any()


def test_swapping_the_runs_of_a_question_turns_its_sign_and_no_other():
    """What makes the permutation exact."""
    before, after = np.random.default_rng(0).normal(size=(2, 50))
    swapped = np.arange(50) % 3 == 0
    sign = np.where(swapped, -1, 1)
    mixed = change_by_margins(np.where(swapped, after, before), np.where(swapped, before, after))
    assert mixed == pytest.approx(sign * change_by_margins(before, after))


def test_a_loss_that_flips_do_not_show(tmp_path):
    base, new = pair(tmp_path, answers(), 0.3)  # no answer changes, right ones are less sure
    report = tmp_path / "gate.json"
    rules = write_gate(tmp_path, "axis: qa, margin: 0.3", head=HEAD)
    result = run(rules, "--baseline", base, "--candidate", new, "--json", report)
    assert result.exit_code == FAIL, result.output
    assert "by the margins of 1200" in words(result.output)
    assert "points by margins (0 gained, 0 lost): a loss is shown" in words(result.output)
    pooled = json.loads(report.read_text())["pooled"]
    assert (pooled["scores"], pooled["tests"][0]["losses"]) == ("margins", 0)
    assert pooled["tests"][0]["change"] < 0
    answered = run(
        write_gate(tmp_path, "axis: qa, margin: 0.3", head="resamples: 200\npooled: {decides: true}"),
        *result_of(base, new),
    )
    assert answered.exit_code == PASS
    assert "by margins" not in words(answered.output)


def result_of(base: Path, new: Path) -> list[object]:
    return ["--baseline", base, "--candidate", new]


def test_a_committed_baseline_keeps_margins_where_the_gate_reads_them(tmp_path):
    base, new = pair(tmp_path, answers(lose={"el": 0.02}), 0.1)
    rules, reports = write_gate(tmp_path, "axis: qa, margin: 0.3", head=HEAD), []
    assert run("renew", rules, "--baseline", tmp_path / "kept", "--candidate", base).exit_code == PASS
    for folder in (base, tmp_path / "kept"):
        run(rules, *result_of(folder, new), "--json", tmp_path / "gate.json")
        reports.append(json.loads((tmp_path / "gate.json").read_text())["pooled"])
    whole, kept = reports
    assert kept["tests"][0]["change"] == pytest.approx(whole["tests"][0]["change"], abs=1e-4)
    assert kept["tests"][0]["losses"] == whole["tests"][0]["losses"] == 8
    text = next((tmp_path / "kept").glob("samples_*.jsonl")).read_text()
    assert "filtered_resps" not in text

    plain = write_gate(tmp_path, "axis: qa, margin: 0.3")
    assert run("renew", plain, "--baseline", tmp_path / "without", "--candidate", base).exit_code == PASS
    assert "margins" not in next((tmp_path / "without").glob("samples_*.jsonl")).read_text()
    rules = write_gate(tmp_path, "axis: qa, margin: 0.3", head=HEAD)
    result = run(rules, *result_of(tmp_path / "without", new))
    assert result.exit_code == MISUSE
    assert "there are none in 'org/base' (baseline)" in words(result.stderr)
    assert "`lm-eval-ext gate renew` writes it with this gate" in words(result.stderr)


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ({"acc": 1.0}, 1.0),
        ({"acc": 0.0}, None),  # what is called right is not the option that is ahead
        ({"acc": 1.0, "filtered_resps": [["-1", "False"], ["nan", "False"]]}, None),
        ({"acc": 1.0, "filtered_resps": ["text"]}, None),
        ({"acc": 1.0, "filtered_resps": []}, None),
        ({"acc": 1.0, "doc": {"options": ["a", "b"]}}, None),  # which is right is not said
        ({"acc": 1.0, "margins": {"acc": 0.25}}, 0.25),
        ({"acc": 1.0, "margins": {"acc_norm": 0.25}}, None),
    ],
)
def test_margins_of_samples(sample, expected):
    responses = [["-1.0", "False"], ["-2.0", "False"]]
    whole = {"doc": {"options": ["a", "b"], "gold": 0}, "filtered_resps": responses, "target": ""} | sample
    assert margin(whole, "acc") == expected
    assert margin(whole, "exact_match") is None


def test_both_runs_without_options(tmp_path):
    base, new = write_pair(tmp_path, answers(20), answers(20))
    result = run(write_gate(tmp_path, "axis: qa", head=HEAD), *result_of(base, new))
    assert (result.exit_code, "'org/base' (baseline) and 'org/new' (candidate)" in words(result.stderr)) == (3, True)
    assert len(LANGUAGES) == 3
