"""`gap`: what naming the country adds, on the model where it is known."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from lm_eval.tasks import TaskManager
from support import planted
from support.planted import OTHERS, Planted
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.errors import UserError
from lm_eval_ext.tune import confirmation, gap


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    model = Planted()
    model.save(folder / "model")
    planted.write_tasks(folder / "tasks", model)
    planted.write_tasks(folder / "tasks", model, suffix="_named", named=True)
    return folder


def test_the_planted_gap_is_found(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda *_, **__: manager)
    pairs = [
        f"--pairs=planted_{subject}_{code}/planted_{subject}_named_{code}" for subject in "uc" for code in OTHERS[:2]
    ]
    arguments = ["gap", "--out", str(tmp_path / "gap"), "--model", str(folder / "model"), "--device", "cpu", *pairs]
    done = CliRunner().invoke(cli.app, [*arguments, "--model-args", "dtype=float32"])
    assert done.exit_code == 0, done.output
    gaps = pd.read_csv(tmp_path / "gap" / "gap.csv").set_index("task")
    for code in OTHERS[:2]:
        cultural, universal = gaps.loc[f"planted_c_{code}"], gaps.loc[f"planted_u_{code}"]
        assert (cultural["score"], cultural["named"], cultural["gap"]) == (0.5, 1, 0.5)
        assert cultural["low"] > 0.2
        assert cultural["n"] == planted.ASKED
        assert cultural["chance"] == 0.25
        assert universal["gap"] == universal["low"] == 0
    assert "2 of 4 settings have a gap whose interval is above zero" in done.output
    assert "In the other 2 naming the country adds nothing" in done.output


def test_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (["--num-fewshot", "a"], "--num-fewshot 'a': numbers joined by commas"),
        (["--chat-template", "yes"], "--chat-template 'yes' is unknown, valid: off, on, both"),
        (["--pairs", "blend_decon"], "'blend_decon': write PLAIN/NAMED"),
        (["--model-args", "steer=loc@1:1"], "--model-args steer: the gap is of the unsteered model"),
    ):
        done = CliRunner().invoke(cli.app, ["gap", "--out", str(tmp_path / "gap"), *arguments])
        assert done.exit_code != 0
        assert message in " ".join((done.output + str(done.exception)).split())
    with pytest.raises(UserError, match="write PLAIN/NAMED"):
        gap.parse_pair("a/b/c")


def test_the_share_that_is_closed_is_undefined_without_a_gap() -> None:
    def items(condition: str, scores: list[float]) -> pd.DataFrame:
        names = [f"q{n}" for n in range(len(scores))]
        return pd.DataFrame(
            {"condition": condition, "family": "f", "language": "ko", "question_id": names, "id": names}
            | {"acc": scores, "probability": scores}
        )

    plain = items("", [0.0, 1.0] * 20)
    steered = items("loc@1:1", [0.0, 1.0, 1.0, 1.0] * 10)
    both = pd.concat([plain, steered])
    closed = confirmation.gap_closed(both, items("", [1.0] * 40), "loc@1:1", 500).set_index(["metric", "language"])
    row = closed.loc["acc", "ko"]
    assert (row["gap"], row["regained"], row["closed"]) == (0.5, 0.25, 0.5)
    assert 0.1 < row["low"] < 0.5 < row["high"] < 0.9
    none = confirmation.gap_closed(both, items("", [0.0, 1.0] * 20), "loc@1:1", 500)
    assert set(none["reason"]) == {"nothing was lost"}
