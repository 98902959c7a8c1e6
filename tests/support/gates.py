"""Runs for the gate: a question-answering family in three languages, right or wrong as asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from lm_eval_ext import cli
from support.runs import write_run

LANGUAGES = ("en", "es", "el")
OLDER, NEWER = "2026-01-01T00-00-00", "2026-02-01T00-00-00"


def answers(n: int = 400, *, lose: dict[str, float] | None = None, flips: float = 0.0, seed: int = 0) -> dict[str, Any]:
    """Scores of `qa_*`: always the same answers, of which some are lost per language and some flip at random."""
    scores = {}
    for number, code in enumerate(LANGUAGES):
        right = np.random.default_rng(number).random(n) < 0.6
        rng = np.random.default_rng([seed, number])
        after = right.copy()
        for answer in (True, False):  # as many one way as the other
            after[rng.permutation(np.flatnonzero(right == answer))[: round(flips * n / 2)]] = not answer
        lost = np.flatnonzero(right & after)[: round((lose or {}).get(code, 0.0) * n)]
        after[lost] = False
        scores[f"qa_{code}"] = {"acc": after.astype(float).tolist(), "english_bias": (~after).astype(float).tolist()}
    return scores


def write_pair(root: Path, before: dict[str, Any], after: dict[str, Any], **options: Any) -> tuple[Path, Path]:
    """A baseline and a candidate that was evaluated later."""
    write_run(root / "base", before, model="org/base", date=OLDER)
    write_run(root / "new", after, **{"model": "org/new", "date": NEWER, **options})
    return root / "base", root / "new"


def write_gate(root: Path, *rules: str, head: str = "") -> Path:
    path = root / "gate.yaml"
    path.write_text("\n".join([head, "rules:", *(f"  - {{{rule}}}" for rule in rules)]), encoding="utf-8")
    return path


def run(*arguments: object) -> Any:
    """The result of `lm-eval-ext gate`, outside GitHub's actions."""
    result = CliRunner(env={"GITHUB_ACTIONS": "", "GITHUB_STEP_SUMMARY": ""}).invoke(
        cli.app, ["gate", *map(str, arguments)]
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def words(text: str) -> str:
    """A text without its line breaks."""
    return " ".join(text.split())
