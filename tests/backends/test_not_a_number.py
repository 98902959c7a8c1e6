"""A model that answers NaN: no result, and no cached answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support import tiny
from support.sweeps import given_settings, sweep

from lm_eval_ext.backends.hf.model import SteeredHFLM
from lm_eval_ext.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path


def damaged(**arguments: Any) -> SteeredHFLM:
    """A model with one weight that is not a number."""
    model = tiny.load("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = torch.nan
    return SteeredHFLM(model, tokenizer=tiny.load_tokenizer("llama"), **arguments)


@pytest.mark.parametrize("task", ["tiny_letters", "tiny_cloze", "tiny_rolling", "tiny_generate", "tiny_beams"])
def test_a_damaged_weight(task: str, tmp_path: Path) -> None:
    asked = (
        rf"task {task} \(document \d\): the model's output in float32 is not a number .*: check whether the weights are"
    )
    for _ in range(2):  # nothing of it is cached
        with pytest.raises(ModelError, match=asked):
            tiny.evaluate(damaged(), task, use_cache=str(tmp_path / "cache"))


def test_a_sampled_generation() -> None:
    sampled = [("Which bird", {"until": [], "max_gen_toks": 3, "do_sample": True, "temperature": 0.5})]
    with pytest.raises(ModelError, match=r"task tiny .document 0.: the model's output in float32 is not a number"):
        damaged().generate_until(tiny.requests("generate_until", sampled))


def test_a_vector_beyond_float16() -> None:
    plan = "loc@1:1000000"
    advice = rf"use dtype=bfloat16 or dtype=float32 \(.*\), lower the strength of {plan}"
    for task in ("tiny_letters", "tiny_generate"):
        with pytest.raises(ModelError, match=advice):
            tiny.evaluate(tiny.steered("llama", plan, dtype="float16"), task)
        tiny.evaluate(tiny.steered("llama", plan), task, limit=1)


def test_a_sweep_names_the_plan_and_the_task(tmp_path: Path) -> None:
    settings = given_settings("llama", tmp_path, model_args="dtype=float16", gammas=("1", "1000000"), kinds=("loc",))
    with pytest.raises(
        ModelError, match=r"task tiny_\w+, plan loc@1:1000000.*not a number.*lower the strength of loc@1"
    ):
        sweep(settings)
