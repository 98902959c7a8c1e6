"""What the benchmarks share: rows with targets, children that answer in turn, one table."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("bench")


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
import bench
print("noise of a library")
counted = iter(range(int(sys.argv[2]), 100))
bench.serve(lambda: {"seconds": next(counted)})
"""


def test_children_measure_in_turn(bench: Any, tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    start = {str(n): lambda n=n: bench.Child(str(script), str(FOLDER), str(n)) for n in (6, 2)}
    runs = bench.in_turn(start, rounds=3)
    assert [[run["seconds"] for run in found] for found in runs.values()] == [[6, 7, 8], [2, 3, 4]]
    value, detail = bench.ratio(runs["6"], runs["2"])
    assert value == pytest.approx(7 / 3)
    assert detail == "7.00 and 3.00 s; rounds 2.00 to 3.00"


MULTIPLIES = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
import bench
a = torch.rand(300, 300)
def measure():
    for _ in range(200): a @ a
    return {"seconds": 1.0}
bench.serve(measure)
"""


@pytest.mark.parametrize("missed", [True, False])
def test_a_missed_target_has_a_profile(missed: bool, bench: Any, tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(MULTIPLIES)
    start = {"ours": lambda: bench.Child(str(script), str(FOLDER))}
    found = bench.in_turn(start, 1, profile_of="ours", when=lambda found: missed and found["ours"][0]["seconds"] == 1)
    detail = bench.missed_profile(found["ours"])
    assert detail.startswith("; profile: matrix products ") if missed else detail == ""


def test_a_child_that_dies_is_named(bench: Any, tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match=r"child\.py ended with status 3"):
        bench.Child(str(script))


def test_rows_say_whether_the_target_is_met(bench: Any) -> None:
    assert bench.Row.at_least("x", 3.0, 3.21, "d") == bench.Row("x", ">= 3.00 times", "3.21 times", "d", True)
    assert bench.Row.at_most("x", 0.01, 0.02, unit="%") == bench.Row("x", "<= 1.0%", "2.0%", "", False)


def test_one_that_fails_costs_the_others_nothing(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = importlib.import_module("run")

    class Module:
        @staticmethod
        def rows() -> Any:
            yield bench.Row.at_least("first", 1.0, 2.0)
            raise ValueError("no such file")

    monkeypatch.setitem(sys.modules, "broken_benchmark", Module)
    rows = run.run("broken_benchmark")
    assert [row.measured for row in rows] == ["2.00 times", "failed"]
    assert rows[1].detail == "ValueError: no such file"
    run.show(rows)
    assert "2.00 times" in capsys.readouterr().out


def test_the_table_has_every_module_with_rows(bench: Any) -> None:
    """One that is written and not listed would never run, one that is listed and gone would fail after minutes."""
    modules = [path.stem for path in FOLDER.glob("*.py") if path.stem not in ("bench", "run")]
    with_rows = {name for name in modules if hasattr(importlib.import_module(name), "rows")}
    assert set(importlib.import_module("run").MODULES) == with_rows
