"""`tune` on the model whose layers and directions are planted: it finds them, and never on test questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pandas as pd
import pytest
import yaml
from lm_eval.tasks import TaskManager
from support import planted
from support.planted import CULTURAL, OTHERS, UNIVERSAL, Planted

from lm_eval_ext.backends.hf.model import SteeredHFLM
from lm_eval_ext.errors import UserError
from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.steering import extraction
from lm_eval_ext.steering.plan import Plan
from lm_eval_ext.tune.run import Tune
from lm_eval_ext.tune.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

HALF = planted.DEV + planted.ASKED // 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, its pairs, and its questions: half to choose on, half to confirm on, also with the country named."""
    folder = tmp_path_factory.mktemp("planted")
    model = Planted()
    model.save(folder / "model")
    planted.write_tasks(folder / "tasks", model, range(planted.DEV, HALF))
    asked = range(HALF, planted.DEV + planted.ASKED)
    planted.write_tasks(folder / "tasks", model, asked, "_test", split="test")
    planted.write_tasks(folder / "tasks", model, asked, "_named", split="test", named=True)
    for kind in ("en", "loc"):
        planted.write_pairs(folder / f"{kind}.jsonl", model, kind)
    return folder


@pytest.fixture
def settings(folder: Path, tmp_path: Path) -> Iterator[dict[str, Any]]:
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)

    def tasks(suffix: str = "", subjects: str = "uc") -> tuple[str, ...]:
        return tuple(f"planted_{subject}{suffix}_{language}" for subject in subjects for language in OTHERS)

    with mock.patch("lm_eval.tasks.TaskManager", return_value=manager):
        yield {
            "out": tmp_path / "tuned",
            "dev_tasks": tasks(),
            "test_tasks": tasks("_test"),
            "named_tasks": tasks("_named", "c"),
            "pairs": (("en", str(folder / "en.jsonl")), ("loc", str(folder / "loc.jsonl"))),
            "estimators": (("", "mean_difference"), ("loc", "lda")),
            "poolings": ("last",),
            "layers": "all",
            "gammas": ("0.25", "1"),
            "positions": ("prompt",),
            "languages": OTHERS,
            "n_random": 3,
            "n_shuffled": 2,
            "resamples": 200,
            "model": str(folder / "model"),
            "model_args": "dtype=float32",
            "device": "cpu",
        }


def evaluate(model: SteeredHFLM, task: str, folder: Path) -> dict[str, Any]:
    """The harness's results of a task."""
    from lm_eval import simple_evaluate

    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    results: dict[str, Any] = simple_evaluate(model, tasks=[task], bootstrap_iters=0, task_manager=manager)["results"]
    return results


@pytest.mark.slow
def test_it_finds_the_planted_layers_and_confirms_them(settings: dict[str, Any], folder: Path) -> None:
    parallel = settings["out"].parent / "parallel.tsv"
    lines = [f"{code}\ten u{n} here-0 ?\t{code} u{n} here-0 ?" for code in OTHERS for n in range(6)]
    parallel.write_text("\n".join(["language\tpositive\tnegative", *lines]) + "\n", encoding="utf-8")
    result = Tune(Settings(**settings, side_effects=str(parallel))).run()
    en, loc = result.plan.interventions
    assert (en.kind, loc.kind) == ("en", "loc")
    assert en.layers(planted.LAYERS)[0] < UNIVERSAL
    assert loc.layers(planted.LAYERS)[0] < CULTURAL
    assert result.outcome.transfer is not None
    assert result.outcome.localization is not None
    assert min(result.outcome.transfer.change, result.outcome.localization.change) > 0.3
    assert result.confirmation is not None
    rows = result.confirmation.of_plan()
    averages = rows[rows["language"] == AVERAGE].set_index("family")
    for subject in "uc":
        row = averages.loc[f"planted_{subject}_test"]
        assert row["score"] == 1
        assert row["low"] > 0.1
        assert row["null_high"] < 0.3
        assert row["shuffled_high"] < 0.3
        assert (row["null_n"], row["shuffled_n"]) == (3, 2)
    closed = result.confirmation.closed.set_index(["metric", "language"]).loc["acc", AVERAGE]
    assert closed["gap"] == pytest.approx(0.5, abs=0.1)
    assert closed["closed"] == pytest.approx(1)

    out = settings["out"]
    record = yaml.safe_load((out / "plan.yaml").read_text())
    assert record["chosen_on"] == {"transfer": "planted_u_dev", "localization": "planted_c_dev"}
    assert record["candidates"] == result.n_tried > 30
    assert {"plan.yaml", "vectors.safetensors", "tune.html", "tune.json", "tried.csv", "confirmation.csv"} <= {
        path.name for path in out.iterdir()
    }
    assert "100% [" in (out / "tune.html").read_text(encoding="utf-8")
    assert "What else it changes" in (out / "tune.html").read_text(encoding="utf-8")
    effects = json.loads((out / "side_effects.json").read_text())["summary"]
    assert {"perplexity", "kl"} <= {row["measure"] for row in effects}
    assert all(row["value"] > 0 for row in effects if row["measure"] == "kl")
    spent = json.loads((out / "tune.json").read_text())["cells"]
    assert spent < Settings(**settings).cells

    # A run of the harness with these files answers as the confirmation did.
    steered = SteeredHFLM(
        settings["model"],
        vectors=str(out / "vectors.safetensors"),
        steer=str(out / "plan.yaml"),
        dtype="float32",
        device="cpu",
    )
    results = evaluate(steered, "planted_c_test_ko", folder)
    rows = rows[(rows["family"] == "planted_c_test") & (rows["language"] == "ko")]
    assert results["planted_c_test_ko"]["acc,none"] == pytest.approx(rows["score"].iloc[0])
    with pytest.raises(
        UserError, match="task planted_c_ko asks questions that were seen: the plan was chosen on planted_c_dev"
    ):
        evaluate(steered, "planted_c_ko", folder)


@pytest.mark.slow
def test_the_same_seed_chooses_the_same_plan_and_another_budget_tries_fewer(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    few = {**settings, "test_tasks": (), "named_tasks": (), "cells": 800}
    first, second = (Tune(Settings(**{**few, "out": tmp_path / name, "seed": 3})).run() for name in ("first", "second"))
    assert first.plan == second.plan
    pd.testing.assert_frame_equal(first.tried, second.tried)
    assert first.cells <= 800 + 2 * 3 * 12  # and the unsteered model
    assert first.n_tried < 36
    again = Tune(Settings(**{**few, "out": tmp_path / "first", "seed": 3})).run()
    assert (again.plan, again.cells) == (first.plan, 0)  # an interrupted run goes on from its cells
    assert "It was not confirmed" in " ".join(first.sentences())


def test_each_estimator_is_confirmed_with_controls_of_its_own(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    estimators = ("mean_difference", "lda", "logistic_probe")
    settings |= {
        "dev_tasks": tuple(task for task in settings["dev_tasks"] if "_c_" in task),
        "test_tasks": tuple(task for task in settings["test_tasks"] if "_c_" in task),
        "pairs": settings["pairs"][1:],
        "estimators": tuple(("loc", name) for name in estimators),
        "cells": 1500,
    }
    read: list[int] = []
    run = extraction.Capture.run
    monkeypatch.setattr(
        extraction.Capture,
        "run",
        lambda self, model, ids, *rest: (read.append(len(ids)), run(self, model, ids, *rest))[1],
    )
    tune = Tune(Settings(**settings, compare=True))
    n_texts = sum(2 * len(pair_set.pairs) for pair_set in tune.candidates[0].pairs)
    result = tune.run()
    assert sum(read) <= n_texts * (
        1 + len(estimators)
    )  # once for all estimators, and for shuffled fits at their layers
    assert result.compared is not None
    table = result.compared.table()
    averages = table[(table["language"] == AVERAGE) & (table["metric"] == "acc")].set_index("kinds")
    assert set(averages.index) == {f"loc_{name}" for name in estimators}
    assert (averages[["null_n", "shuffled_n"]] == [3, 2]).all(axis=None)
    assert averages.loc["loc_mean_difference", "change"] > 0.3
    assert averages.loc["loc_mean_difference", "closed"] == pytest.approx(1)
    page = (settings["out"] / "tune.html").read_text(encoding="utf-8")
    assert "The best plan of each kind of vectors" in page
    assert (settings["out"] / "compared.csv").is_file()


def test_choosing_on_test_questions_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"chosen on development questions only, and planted_u_test_ko.*test split"):
        Tune(Settings(**{**settings, "dev_tasks": settings["test_tasks"]})).run()
    with pytest.raises(UserError, match="--test: planted_c_dev, planted_u_dev is what the plan is chosen on"):
        Tune(Settings(**{**settings, "test_tasks": settings["dev_tasks"]})).run()
    assert not settings["out"].exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "f1"}, "--metric 'f1' is unknown, valid: probability, acc"),
        ({"pairs": (), "estimators": ()}, "nothing to choose from: give --pairs"),
        ({"estimators": (("en", "lda"),)}, "kind 'loc' has no estimator: add --estimator loc=mean_difference"),
        ({"estimators": (("", "lda"), ("own", "lda"))}, "--estimator own=...: name its pairs too"),
        ({"model_args": "steer=loc@1:1"}, "--model_args steer: tune has"),
    ],
)
def test_mistakes_are_named_before_the_model_is_loaded(
    settings: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        Tune(Settings(**{**settings, **changes})).run()


def test_questions_that_make_vectors_do_not_choose(settings: dict[str, Any]) -> None:
    """Pairs of the tasks on which the plan is chosen: half of the questions for each."""
    from lm_eval_ext.data.task_questions import question_id
    from lm_eval_ext.tune.candidates import FOR_CHOICE, half

    pairs = (("loc", "task:planted_c_ko/planted_c_ko"),)
    tune = Tune(Settings(**{**settings, "pairs": pairs, "estimators": (("", "lda"),), "languages": ("ko",)}))
    (candidate,) = tune.candidates
    assert candidate.divided == {"planted_c_dev"}
    used = {str(pair.asked[1].document["id"]) for s in candidate.pairs for pair in s.pairs if pair.asked}
    chooses = {q.question_id for q in tune.dev.questions if half(q.question_id) == FOR_CHOICE}
    assert used
    assert chooses
    assert not used & chooses
    assert question_id({"id": "c1"}, mock.Mock(question_id=None)) == "c1"


def test_a_plan_reads_as_one() -> None:
    assert str(Plan.parse("en_lda@1:1+loc_trained_2@3:2/last")) == "en_lda@1:1+loc_trained_2@3:2/last"
