"""No cell of a CSV becomes a formula; numbers stay; every CSV is written in one place."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.runs import random_scores, write_run

import lm_eval_ext
from lm_eval_ext.leaderboard.collect import collect
from lm_eval_ext.leaderboard.tables import to_csv
from lm_eval_ext.spreadsheets import cell, frame_to_csv, rows_to_csv

FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", " =1", "＝1", "-"]


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_are_text(text):
    assert cell(text) == f"'{text}"
    assert next(csv.reader(io.StringIO(rows_to_csv([[text, -1.5]])))) == [f"'{text}", "-1.5"]
    frame = pd.DataFrame({"=name": pd.Series([text, None], dtype="category"), "value": [-0.25, np.nan]})
    assert next(csv.reader(io.StringIO(frame_to_csv(frame, "%.2f").split("\n", 1)[0]))) == ["'=name", "value"]
    read = pd.read_csv(io.StringIO(frame_to_csv(frame, "%.2f")))
    assert read["'=name"][0].strip("\r") == f"'{text}"
    assert read["value"][0] == -0.25


@pytest.mark.parametrize("text", ["-1.5", "+2", "-1e-05", "-inf", "nan", "", "loc@58%:2", "a-b", "−1"])
def test_numbers_and_other_text_stay(text):
    assert cell(text) == text


def test_a_run_called_like_a_formula(tmp_path):
    write_run(tmp_path / "=HYPERLINK(1)", random_scores(0, n=4))
    text = to_csv(collect([tmp_path], resamples=100))
    assert "'=HYPERLINK(1)" in text
    assert not re.search(r'(^|,|")=', text, re.MULTILINE)


def test_every_csv_is_written_here():
    package = Path(lm_eval_ext.__file__).parent
    # `derived.py` writes a data set back in its own form.
    known = {"spreadsheets.py", "derived.py"}
    writing = {
        path.name
        for path in package.rglob("*.py")
        if re.search(r"\.to_csv\(|csv\.(writer|DictWriter)\(", path.read_text(encoding="utf-8"))
    }
    assert writing == known
