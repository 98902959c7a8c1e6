"""A choice of documents by their columns: in the plane and its command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.runs import write_run
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.errors import ResultsError
from lm_eval_ext.plane.shifts import measure
from lm_eval_ext.results import where
from lm_eval_ext.results.runs import load

X, Y = "gmmlu_ko", "blend_decon_ko"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two runs; on the localization task the run gains where `universal` is false and loses where it is true."""
    for name, plan, right in (("base", "", [1, 1, 0, 0]), ("run", "loc@3:2", [0, 0, 1, 1])):
        file = write_run(tmp_path / name, {X: {"acc": [1, 0, 1, 0]}, Y: {"acc": right}}, plan=plan)
        (samples,) = file.parent.glob(f"samples_{Y}_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        for number, line in enumerate(lines):
            line["doc"] |= {"universal": number < 2, "topic": ("Food", "Sport")[number % 2]}
        samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def changes(results: Path, *conditions: str) -> tuple[float, float, int]:
    plane = measure(load(results), "base", x=X, y=Y, where=conditions, resamples=200)
    row = plane.shifts.set_index(["run", "language"]).loc["run", "ko"]
    return row["x_change"], row["y_change"], row["y_n"]


def test_only_documents_with_the_value_count_and_the_other_axis_stays(results: Path) -> None:
    assert changes(results) == (0, 0, 4)
    assert changes(results, "universal=false") == (0, 1, 2)
    assert changes(results, "universal=TRUE") == (0, -1, 2)
    assert changes(results, "topic=Food,Sport") == (0, 0, 4)
    assert changes(results, "topic=Food", "universal=false") == (0, 1, 1)


def test_the_choice_stands_in_the_notes(results: Path) -> None:
    plane = measure(load(results), "base", x=X, y=Y, where=["universal=false"], resamples=200)
    assert "only documents with universal=false" in plane.notes


@pytest.mark.parametrize("text", ["universal", "=false", "universal=", "universal= , "])
def test_a_condition_must_be_a_column_and_values(text: str) -> None:
    with pytest.raises(ResultsError, match=r"invalid condition .* must be COLUMN=VALUE"):
        where.parse([text])


def test_an_unknown_column_or_value_is_answered_with_those_there_are(results: Path) -> None:
    with pytest.raises(
        ResultsError, match=r"no document of run 'base' has the column 'univrsal'; columns: .*universal"
    ):
        changes(results, "univrsal=false")
    with pytest.raises(ResultsError, match="has topic=music; values of topic: Food, Sport"):
        changes(results, "topic=Music")


def test_the_command_takes_conditions(results: Path, tmp_path: Path) -> None:
    arguments = ["plane", str(results), "--baseline", "base", "--x", X, "--y", Y, "--resamples", "200"]
    out = ["--out", str(tmp_path / "plane.html"), "--where", "universal=false"]
    result = CliRunner().invoke(cli.app, [*arguments, *out])
    assert result.exit_code == 0, result.output
    assert "only documents with universal=false" in result.output
    wrong = CliRunner().invoke(cli.app, [*arguments, "--where", "universal"])
    assert wrong.exit_code == 2
    assert "must be COLUMN=VALUE" in wrong.output
