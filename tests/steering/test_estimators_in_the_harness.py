"""Every estimator of the package, from pairs to `lm_eval --model steered-hf`: its runs equal its cells of a sweep."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.sweeps import TASKS, given_settings, sweep, tiny_tasks

from lm_eval_ext.data.pairs import Pair, PairSet
from lm_eval_ext.steering import registry
from lm_eval_ext.steering.extraction import extract
from lm_eval_ext.steering.vectors import VectorSet
from lm_eval_ext.sweep.run import Sweep
from lm_eval_ext.sweep.store import Store

LAYER = 1

#: Something for all: six pairs of each language, with answers.
PAIRS = [
    PairSet(
        "loc",
        code,
        "test",
        tuple(Pair(text[n : 20 + n], text[3 + n : 12 + 2 * n], code, answer=text[n : 2 + n]) for n in range(6)),
    )
    for code, text in tiny.TEXTS.items()
]

FEW = {name: {"epochs": 3, "patience": 3} for name in ("trained", "affine")}


def fitted(name: str, family: str = "llama", **options: Any) -> VectorSet:
    estimator = registry.make_estimator(name, FEW.get(name))
    return extract(tiny.load(family), tiny.load_tokenizer(family), PAIRS, estimator, [LAYER], **options)


@pytest.mark.parametrize("name", registry.names())
def test_runs_of_the_harness_equal_cells_of_a_sweep(name: str, tmp_path: Path) -> None:
    vectors = tmp_path / "v.safetensors"
    made = fitted(name, shuffled=2)
    made.save(vectors)
    loaded = VectorSet.load(vectors)
    for key, entry in made.vectors.items():
        assert loaded.vectors[key].info == entry.info
        assert all(torch.equal(loaded.vectors[key].tensors[tensor], value) for tensor, value in entry.tensors.items())
    assert (loaded.kinds, loaded.n_shuffled("loc")) == (["loc"], 2)

    positions = ("prompt", "last")
    asked = given_settings(
        *("llama", tmp_path / "sweep"),
        **{"vectors": vectors, "kinds": ("loc",), "layers": str(LAYER), "gammas": ("0.7",), "positions": positions},
        **{"n_random": 1, "controls": True},
    )
    items = sweep(asked)
    with tiny_tasks():
        run = Sweep(asked)
        model = tiny.steered("llama", vectors=str(vectors))
        trees = run.questions.trees(model.encode(run.questions.instances), model.max_length, likelihoods=True)
    store = Store(asked.cells, _identity(asked.cells))
    cells = {plan: _likelihoods(store, plan, run, trees) for plan in items["condition"].unique()}
    store.close()
    plan = f"loc@{LAYER}:0.7"
    names = [f"{plan}/prompt", f"{plan}/last", f"loc~shuffled1@{LAYER}:0.7/prompt", f"loc~random0@{LAYER}:0.7/last"]
    for condition in names:
        results = tiny.evaluate(tiny.steered("llama", condition, vectors=str(vectors)), *TASKS)
        for question in run.questions.questions:
            sample = results["samples"][question.task][question.doc_id]
            theirs = [response[0][0] for response in sample["resps"]]
            assert [cells[condition][index] for index in question.instances] == pytest.approx(theirs, abs=2e-4)
    different = [cells[condition] for condition in ("", *names)]
    is_still = [
        name for name, one in zip(names, different[1:], strict=True) if one == pytest.approx(different[0], abs=1e-4)
    ]
    assert not is_still or name in FEW  # training keeps its start where the held-out pairs gain nothing


def _likelihoods(store: Store, plan: str, run: Sweep, trees: Any) -> list[float]:
    values = [math.nan] * len(run.questions.instances)
    for tree in trees:
        for indices, value in zip(tree.requests, store.get(plan, tree.key) or [], strict=True):
            for index in indices:
                values[index] = value
    return values


def _identity(cells: Path) -> dict[str, str]:
    with sqlite3.connect(cells / "cells-0.sqlite") as connection:
        return dict(connection.execute("select name, value from identity"))
