"""Many languages and many checks: all are judged, and where an output has a limit it says how many there are."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.gates import NEWER, OLDER, write_gate
from support.runs import write_run

from lm_eval_ext.data.prompts import PROMPTS
from lm_eval_ext.gate import judge, measure, outputs, read_gate
from lm_eval_ext.gate.measuring import Side, left_out_notes
from lm_eval_ext.gate.rules import Gate, Rule
from lm_eval_ext.gate.verdicts import Check, GateResult, Measured
from lm_eval_ext.results.legacy_names import families_of


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Side, Side]:
    root = tmp_path_factory.mktemp("gate")
    scores = {f"qa_{code}": {"acc": [1.0, 0.0, 1.0, 1.0]} for code in PROMPTS}
    for name, date in (("base", OLDER), ("new", NEWER)):
        write_run(root / name, scores, model=f"org/{name}", date=date)
    return Side.read("baseline", root / "base"), Side.read("candidate", root / "new")


def test_every_language_of_a_family_is_judged(sides: tuple[Side, Side], tmp_path: Path) -> None:
    assert len(PROMPTS) >= 42
    measured = measure(read_gate(write_gate(tmp_path, "axis: qa, max_changed: 0")), *sides)
    assert {one.language for one in measured} == {*PROMPTS, "average"}
    assert judge(measured).passed


def test_tasks_that_may_belong_to_a_family_are_named(tmp_path: Path) -> None:
    tasks = {f"qa_{code}": {"acc": [1.0, 0.0]} for code in ("es", "el", "xx", "qqq")}
    write_run(tmp_path / "base", tasks)
    side = Side.read("baseline", tmp_path / "base")
    (note,) = left_out_notes(read_gate(write_gate(tmp_path, "axis: qa")), side)
    assert note.startswith("qa: not judged, as nothing says that they belong to it: qa_qqq, qa_xx;")


def test_two_letters_that_may_be_a_word_are_no_language() -> None:
    assert families_of(["arc_is", "arc_it", "mmlu_no"]) == {}
    assert families_of(["arc", "arc_is", "arc_it", "arc_no"]) == {}  # `arc` is a task of its own
    assert families_of(["arc_is", "arc_it", "arc_ko", "gmmlu_cs"]) == {"arc_is": ("arc", "is"), "arc_it": ("arc", "it")}
    assert families_of(["x_fr_cloze", "x_de_cloze", "x_ukr_cloze"])["x_ukr_cloze"] == ("x_cloze", "uk")


def many(n: int, verdict: str = "fail", detail: str = "a loss is shown") -> GateResult:
    numbers = {"n": 9, "questions": 9, "gains": 0, "losses": 9}
    shares = dict.fromkeys(("baseline", "candidate", "change", "low", "high", "p", "smallest"), 0.1)
    return GateResult(
        tuple(
            Check(Measured(Rule("qa"), f"l{number}", **numbers, **shares), verdict, detail, 0.01)  # type: ignore[arg-type]
            for number in range(n)
        )
    )


def test_annotations_say_how_many_there_are() -> None:
    lines = outputs.github_annotations(GateResult((*many(540).checks, *many(30, "inconclusive").checks)))
    errors = [line for line in lines if line.startswith("::error")]
    assert len(errors) == 10
    assert len(lines) == 20
    assert "540 checks fail" in errors[0]
    assert "9 of 540 are annotated" in errors[0]
    assert len(outputs.github_annotations(many(10))) == 10
    assert "checks" not in outputs.github_annotations(many(10))[0]


def test_a_summary_stays_under_a_mebibyte(sides: tuple[Side, Side]) -> None:
    text = outputs.to_markdown(many(3000, detail="ä" * 500), *sides)
    assert len(text.encode()) < 2**20
    shown = text.count("loses less than")
    assert f"{3000 - shown} of 3000 checks are left out here" in text
    again = outputs.to_markdown(many(3000, detail="ä" * 500), *sides, written=len(text.encode()))
    assert len(text.encode()) + len(again.encode()) < 2**20
    assert "left out" not in outputs.to_markdown(many(540), *sides)


def test_the_gate_of_python_needs_no_file(sides: tuple[Side, Side]) -> None:
    gate = Gate((Rule("qa", kind="unchanged", languages=("sw",)),), {})
    assert [one.language for one in measure(gate, *sides)] == ["sw"]
