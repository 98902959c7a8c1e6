"""`lm-eval-ext gate renew`: a small baseline without text, renewed on purpose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.gates import NEWER, answers, write_gate, write_pair
from support.runs import write_run
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.results.runs import load

RULES = ("axis: qa, max_changed: 0.01", "axis: qa, metric: english_bias, languages: el, margin: 0.05")
LATER = "2026-03-01T00-00-00"


def run(*arguments: object):
    result = CliRunner().invoke(cli.app, ["gate", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def renew(rules: Path, baseline: Path, candidate: Path, *options: str):
    return run("renew", rules, "--baseline", baseline, "--candidate", candidate, *options)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def world(tmp_path) -> tuple[Path, Path, Path, Path]:
    """Rules, a place for the baseline, results, and later results that lost some Greek."""
    first, second = write_pair(tmp_path, answers(60), answers(60, lose={"el": 0.1}))
    return write_gate(tmp_path, *RULES), tmp_path / "committed", first, second


def test_a_change_fails_until_the_baseline_is_renewed(world):
    rules, committed, first, second = world
    result = renew(rules, committed, first)
    assert result.exit_code == 0, result.output
    assert "qa acc el: " in result.output
    assert "(new)" in result.output
    judged = run(rules, "--baseline", committed, "--candidate", second)
    assert judged.exit_code == 1
    assert "6 of 60 items changed (10.0%)" in judged.output
    result = renew(rules, committed, second)
    assert "6 lost (q" in result.output
    # acc and english_bias: three languages each, of which Greek moved.
    assert "4 of 6 did not move" in result.output
    again = write_run(second.parent / "again", answers(60, lose={"el": 0.1}), model="org/new", date=LATER)
    judged = run(rules, "--baseline", committed, "--candidate", again.parent)
    assert "0 of 60 items changed" in judged.output
    assert judged.exit_code == 2  # too few items for the margin of the other rule


def test_it_is_a_tree_like_any_other_without_any_text(world):
    rules, committed, first, _ = world
    renew(rules, committed, first)
    (mine,), (theirs,) = load(committed).runs, load(first).runs
    assert mine.is_committed
    assert (mine.model, mine.plan, mine.date) == (theirs.model, theirs.plan, theirs.date)
    assert {task: record.version for task, record in mine.tasks.items()} == {
        task: record.version for task, record in theirs.tasks.items()
    }
    for path in committed.glob("samples_*"):
        for line in path.read_text().splitlines():
            sample = json.loads(line)
            assert set(sample) == {
                *("doc_id", "doc", "filter", "doc_hash", "prompt_hash", "metrics", "acc", "english_bias")
            }
            assert set(sample["doc"]) == {"id", "language"}
    assert sum(map(len, files(committed).values())) < 300 * 180 + 2000  # bytes per document


def test_renewing_with_the_same_results_changes_nothing(world):
    rules, committed, first, _ = world
    renew(rules, committed, first)
    before = files(committed)
    assert "did not move" in renew(rules, committed, first).output
    assert files(committed) == before
    assert [path.name for path in committed.parent.iterdir() if path.name.startswith(".")] == []


def test_a_dry_run_writes_nothing(world):
    rules, committed, first, second = world
    assert "was not written" in renew(rules, committed, first, "--dry-run").output
    assert not committed.exists()
    renew(rules, committed, first)
    before = files(committed)
    assert "6 lost" in renew(rules, committed, second, "--dry-run").output
    assert files(committed) == before


def test_a_new_task_version_is_named_and_not_compared(world, tmp_path):
    rules, committed, first, _ = world
    renew(rules, committed, first)
    versions = {f"qa_{code}": 2.0 for code in ("en", "es", "el")}
    other = tmp_path / "version2"
    write_run(other, answers(60), model="org/base", date=NEWER, versions=versions)
    assert run(rules, "--baseline", committed, "--candidate", other).exit_code == 3
    assert "(version 1.0 -> 2.0)" in renew(rules, committed, other).output
    assert run(rules, "--baseline", committed, "--candidate", first).exit_code == 3


def test_a_committed_baseline_is_no_candidate(world):
    rules, committed, first, _ = world
    renew(rules, committed, first)
    swapped = run(rules, "--baseline", first, "--candidate", committed)
    assert (swapped.exit_code, "swapped?" in swapped.stderr) == (3, True)
    assert renew(rules, first.parent / "other", committed).exit_code == 3


def test_clocks_of_other_places_do_not_count_against_a_committed_baseline(world):
    rules, committed, first, second = world
    renew(rules, committed, second)
    assert run(rules, "--baseline", committed, "--candidate", first).exit_code == 1


@pytest.mark.parametrize("kind", ["results", "text", "file"])
def test_nothing_else_is_overwritten(world, kind):
    rules, committed, first, second = world
    target = {"results": second, "text": committed, "file": committed}[kind]
    if kind == "text":
        committed.mkdir()
        (committed / "notes.txt").write_text("mine")
    if kind == "file":
        committed.write_text("mine")
    result = renew(rules, target, first)
    assert (result.exit_code, "nothing was written" in result.stderr) == (3, True)
    assert target.exists()
    if kind == "text":
        assert files(committed) == {"notes.txt": b"mine"}


def test_an_interrupted_write_leaves_the_old_baseline(world, monkeypatch):
    rules, committed, first, second = world
    renew(rules, committed, first)
    before = files(committed)

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    result = renew(rules, committed, second)
    assert (result.exit_code, "No space left" in result.stderr) == (3, True)
    assert files(committed) == before
