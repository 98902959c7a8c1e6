"""Runs that are scored together: each equals a run of its own, results file included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import torch
from support import tiny
from support.sweeps import TASKS, tiny_tasks

from lm_eval_ext.scoring.shared_forward import SweepModel
from lm_eval_ext.scoring.token_trees import Packed, Tree
from lm_eval_ext.steering.vectors import VectorSet
from lm_eval_ext.sweep.questions import Questions
from lm_eval_ext.sweep.shared_runs import SharedRuns, _WithGreedy

if TYPE_CHECKING:
    from pathlib import Path

PLANS = ("", "en@1:2", "loc@2:2", "en@1:2+loc@2:2", "en~random@1:2+loc~random@2:2/last")
LIMIT = 3

pytestmark = pytest.mark.transformers4


def shared(family: str, cells: Path) -> SharedRuns:
    with tiny_tasks():
        questions = Questions(TASKS)
    questions.keep(LIMIT)
    model = tiny.steered(family, vectors=None)
    model._scorer.verdict = None
    runs = SharedRuns(model, questions)
    runs.score_ahead(VectorSet.load(tiny.vector_file(family)), PLANS, cells)
    return runs


def evaluated(model: Any) -> dict[str, Any]:
    return tiny.evaluate(model, *TASKS, limit=LIMIT)


@pytest.mark.parametrize("family", ["gemma3", "llama", "gpt2"])
def test_each_run_equals_one_of_its_own(family: str, tmp_path: Path) -> None:
    runs = shared(family, tmp_path / "cells")
    for plan in PLANS:
        runs.steer(plan, VectorSet.load(tiny.vector_file(family)) if plan else None)
        with mock.patch.object(runs.model, "score", side_effect=AssertionError("a forward of its own")):
            found = evaluated(runs.model)
        alone = tiny.steered(family, plan, **({} if plan else {"vectors": None}))
        expected = evaluated(alone)
        alone.close()
        assert found["config"]["steering"] == expected["config"]["steering"]
        assert found["config"].keys() == expected["config"].keys() - {"scoring"}  # nothing is scored by the run itself
        for task in TASKS:
            assert found["results"][task] == pytest.approx(expected["results"][task])
            for ours, theirs in zip(found["samples"][task], expected["samples"][task], strict=True):
                assert ours.keys() == theirs.keys()
                for (one,), (other,) in zip(ours["resps"], theirs["resps"], strict=True):
                    assert one[0] == pytest.approx(other[0], abs=1e-4)
                    assert one[1] is other[1]
                texts = {"resps", "filtered_resps"}
                assert {key: ours[key] for key in ours.keys() - texts} == {
                    key: theirs[key] for key in theirs.keys() - texts
                }


def test_greedy_options_are_known() -> None:
    model, prompt = tiny.load("llama"), (3, 4, 5, 6)
    best: list[int] = []
    for _ in range(3):
        with torch.inference_mode():
            best.append(int(model(input_ids=torch.tensor([[*prompt, *best]])).logits[0, -1].argmax()))
    other = best[0] + 1
    tree = Tree.grow(prompt, [(best[0],), tuple(best), (other,), (best[0], other if best[1] != other else other + 1)])
    (values,) = _WithGreedy(model).base(Packed([tree]), [], [True]).values
    assert values[1::2] == [1, 1, 0, 0]
    (plain,) = SweepModel(model).base(Packed([tree]), [], [True]).values
    assert values[::2] == pytest.approx(plain)


def test_an_interrupted_scoring_goes_on(tmp_path: Path) -> None:
    shared("llama", tmp_path / "cells")
    with mock.patch.object(SweepModel, "base", side_effect=AssertionError("computed again")):
        runs = shared("llama", tmp_path / "cells")
    assert runs._scores.keys() == set(PLANS)


def test_a_model_without_trees_scores_run_by_run(tmp_path: Path) -> None:
    with mock.patch.object(SweepModel, "check", return_value="it cannot"):
        runs = shared("llama", tmp_path / "cells")
    runs.steer("loc@2:2", VectorSet.load(tiny.vector_file("llama")))
    found, expected = evaluated(runs.model), evaluated(tiny.steered("llama", "loc@2:2"))
    assert tiny.answers(found) == tiny.answers(expected)


def test_shared_work_is_counted(tmp_path: Path) -> None:
    """A plan costs the layers above its own and the LM head, less than a run."""
    runs = shared("llama", tmp_path / "cells")
    one, low, high = (runs.operations([*plans]) for plans in ([""], ["", "en@0:1"], ["", "en@3:1"]))
    assert one < high < low < 2 * one
    assert runs.speed(4) > 0
