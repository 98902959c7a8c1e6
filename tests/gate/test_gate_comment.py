"""The comment on a pull request: what it says, its limits, and how it is posted and updated."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from support import fake_github
from support.gates import LANGUAGES, NEWER, OLDER, answers, write_gate, write_pair
from support.runs import write_run
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.gate.comment import to_comment
from lm_eval_ext.gate.marker import MAX_COMMENT, marker
from lm_eval_ext.gate.measuring import Side
from lm_eval_ext.gate.rules import Rule
from lm_eval_ext.gate.verdicts import Check, GateResult, Measured

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "</details><img src=x>|`x` @everyone #12 [a](javascript:b)"


@pytest.fixture(autouse=True)
def _no_github(monkeypatch):
    for name in ("ACTIONS", "STEP_SUMMARY", "TOKEN", "REPOSITORY", "API_URL", "EVENT_PATH", "SHA", "RUN_ID"):
        monkeypatch.delenv(f"GITHUB_{name}", raising=False)
    monkeypatch.delenv("GH_TOKEN", raising=False)


@pytest.fixture
def github(monkeypatch):
    with fake_github.serve() as server:
        for name, value in fake_github.environment(server).items():
            monkeypatch.setenv(name, value)
        yield server


def run(*arguments: object):
    result = CliRunner().invoke(cli.app, ["gate", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def comment(tmp_path: Path, before: dict, after: dict, *rules: str, **options: Any) -> str:
    base, new = write_pair(tmp_path, before, after, **options)
    file = tmp_path / "comment.md"
    result = run(write_gate(tmp_path, *rules), "--baseline", base, "--candidate", new, "--comment", file, "--any-order")
    assert result.exit_code in (0, 1, 2), result.output
    return file.read_text(encoding="utf-8")


# --- what it says ----------------------------------------------------------------------------------------------------


def test_worst_first_and_the_rest_folded(tmp_path):
    text = comment(tmp_path, answers(), answers(lose={"el": 0.1}), "axis: qa, margin: 0.02", "axis: qa, floor: 0.3")
    lines = text.splitlines()
    assert lines[0] == marker("gate") == "<!-- lm-eval-ext gate: gate -->"
    assert lines[1] == "## ✗ Gate: fail"
    visible = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    shown = [line for line in visible.splitlines() if re.match(r"\| [✓✗?]", line)]
    assert shown[0].startswith("| ✗ fail | qa acc | el | ")
    assert not [line for line in shown if line.startswith("| ✓")]
    assert re.search(r"<summary>✓ \d+ checks pass</summary>", text)
    assert text.count("<details>") == text.count("</details>") >= 2


def sample(language: str, number: int, chosen: int, question: str) -> dict[str, Any]:
    scores = [[str(-1.0 if place == chosen else -5.0), "False"] for place in range(3)]
    document = {"id": f"q{number}", "question": question, "options": ["119", "911", HOSTILE], "gold": 0}
    return {
        **{"doc_id": number, "doc": {**document, "language": language}, "target": "0", "filter": "none"},
        **{"doc_hash": f"{language}{number}", "prompt_hash": "p", "metrics": ["acc"], "filtered_resps": scores},
        "acc": float(chosen == 0),
    }


def write_asked(folder: Path, model: str, date: str, chosen: dict[int, int], question: str, n: int = 60) -> Path:
    """A run whose samples have questions and options, and the option chosen for some."""
    path = write_run(folder, {f"qa_{code}": {"acc": [1.0] * n} for code in LANGUAGES}, model=model, date=date)
    for code in LANGUAGES:
        lines = [sample(code, number, chosen.get(number, 0), f"{question} {number}?") for number in range(n)]
        (path.parent / f"samples_qa_{code}_{date}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_examples_show_who_answered_what(tmp_path):
    base = write_asked(tmp_path / "base", "org/base", OLDER, {}, "Which number")
    new = write_asked(
        tmp_path / "new", "org/new", NEWER, {number: 1 + number % 2 for number in range(30)}, "Which number"
    )
    file = tmp_path / "comment.md"
    rules = write_gate(tmp_path, "axis: qa, margin: 0.02, languages: [el, average]")
    assert run(rules, "--baseline", base, "--candidate", new, "--comment", file).exit_code == 1
    text = file.read_text()
    assert "<details><summary>qa acc el: 5 of 30 items</summary>" in text
    rows = [line for line in text.splitlines() if line.startswith("| q")]
    assert rows[1] == "| q1 (el) | Which number 1? | 119 | ✓ 119 | ✗ " + rows[1].rpartition("✗ ")[2]
    assert rows[0].startswith("| q0 (el) | Which number 0? | 119 | ✓ 119 | ✗ 911 |")
    assert len(rows) == len({row.split(" | ")[0] for row in rows}) == 10  # of el, then others of the average


def test_texts_of_others_stay_texts(tmp_path):
    question = f"{HOSTILE} token=s3cr3tValue9"
    base = write_asked(tmp_path / "base", HOSTILE, OLDER, {}, question)
    new = write_asked(tmp_path / HOSTILE.replace("/", ""), HOSTILE, NEWER, dict.fromkeys(range(30), 2), question)
    file = tmp_path / "comment.md"
    rules = write_gate(tmp_path, "axis: qa, margin: 0.02")
    assert run(rules, "--baseline", base, "--candidate", new, "--comment", file).exit_code == 1
    text = file.read_text()
    assert "<img" not in text
    assert "javascript" in text
    assert not re.search(r"(?<!\\)\]\(javascript", text)
    assert "@everyone" not in text
    assert "#12" not in text
    assert "s3cr3tValue9" not in text
    assert text.count("<details>") == text.count("</details>")
    rows = [line for line in text.splitlines() if line.startswith("| q")]
    assert rows
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}


def test_it_keeps_under_the_limit_and_counts_what_is_left_out(tmp_path):
    pair = write_pair(tmp_path, answers(2), answers(2))
    sides = [Side.read(role, folder) for role, folder in zip(("baseline", "candidate"), pair, strict=True)]
    rules = [Rule(f"task{'_of_a_long_name' * 10}{number}") for number in range(600)]
    figures = {"n": 9, "questions": 9, "gains": 0, "losses": 9, "change": -1.0, "low": -1.0, "high": -1.0}
    measured = [Measured(rule, "el", 1.0, 0.0, **figures, p=0.0, smallest=0.1) for rule in rules]
    checks = [Check(one, "fail" if number % 2 else "pass", "a loss", 0.0) for number, one in enumerate(measured)]
    text = to_comment(GateResult(tuple(checks)), *sides, [])
    assert MAX_COMMENT * 0.8 < len(text) < MAX_COMMENT - 900
    left = [int(number) for number in re.findall(r"\*\*(\d+) of 300 more stand in the step's log", text)]
    assert len(left) == 2
    assert len(re.findall(r"^\| [✓✗]", text, re.MULTILINE)) + sum(left) == 600
    assert text.endswith("</sub>\n")


def test_a_gate_that_cannot_be_judged_replaces_the_verdict(tmp_path):
    base, new = write_pair(tmp_path, answers(20), answers(20))
    file = tmp_path / "comment.md"
    rules = write_gate(tmp_path, "axis: qa, languages: ko")
    assert run(rules, "--baseline", base, "--candidate", new, "--comment", file).exit_code == 3
    text = file.read_text()
    assert text.startswith(f"{marker('gate')}\n## ✗ Gate: not judged")
    assert "has no ko on qa" in text


# --- posted ----------------------------------------------------------------------------------------------------------


def written(tmp_path: Path, text: str = "verdict", name: str = "gate") -> Path:
    file = tmp_path / "comment.md"
    file.write_text(f"{marker(name)}\n{text}\n")
    return file


def test_one_comment_is_posted_and_then_updated(tmp_path, github):
    for number in range(120):  # more than one page of others
        github.add_comment(f"talk {number}")
    first = run("post", written(tmp_path, "first"), "--pull-request", 7)
    assert (first.exit_code, first.stdout) == (0, "posted https://github.com/c/121\n"), first.output
    again = run("post", written(tmp_path, "second"), "--pull-request", 7)
    assert again.stdout == "updated https://github.com/c/121\n"
    assert len(github.comments) == 121
    body = github.comments[120]["body"]
    assert "second" in body
    assert "first" not in body
    assert "commit aaaaaaaaaaaa · [log and artifacts](https://github.com/org/repo/actions/runs/42)" in body
    assert run("post", written(tmp_path, name="other"), "--pull-request", 7).stdout.startswith("posted")
    assert len(github.comments) == 122


def test_nobody_else_s_comment_is_given_our_verdict(tmp_path, github):
    github.add_comment(f"{marker('gate')}\nnot ours", {"login": "someone", "type": "User"})
    assert run("post", written(tmp_path), "--pull-request", 7).stdout.startswith("posted")
    assert github.comments[0]["body"].endswith("not ours")
    github.user = {"login": "someone", "type": "User"}  # the token of that person
    assert run("post", written(tmp_path, "ours"), "--pull-request", 7).stdout.startswith("updated")
    assert "ours" in github.comments[0]["body"]


@pytest.mark.parametrize(
    "event", [{"pull_request": {"number": 7, "head": {"sha": "b" * 40}}}, {"issue": {"number": 7, "pull_request": {}}}]
)
def test_the_event_says_which_pull_request(tmp_path, github, monkeypatch, event):
    (tmp_path / "event.json").write_text(json.dumps(event))
    monkeypatch.setenv("GITHUB_EVENT_PATH", str(tmp_path / "event.json"))
    assert run("post", written(tmp_path)).exit_code == 0
    assert f"commit {('b' if 'pull_request' in event else 'a') * 12}" in github.comments[0]["body"]


def test_an_evaluation_that_ended_early_is_said(tmp_path, github):
    github.add_comment(f"{marker('gate')}\n## ✓ Gate: pass")
    result = run("post", tmp_path / "none.md", "--or-say", "it ended", "--pull-request", 7)
    assert result.stdout.startswith("updated")
    assert "Gate: not judged" in github.comments[0]["body"]
    assert "it ended" in github.comments[0]["body"]
