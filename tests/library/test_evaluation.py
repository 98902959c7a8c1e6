"""`lx.evaluate` with what a notebook has at hand: models that are loaded already, task files of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from transformers import AutoModelForCausalLM

import lm_eval_ext as lx
from lm_eval_ext.errors import UserError


def evaluate(pretrained: Any, output: Path, **options: Any) -> dict[str, Any]:
    given = {"task_manager": tiny.task_manager(), "device": "cpu", "limit": 2, **options}
    return lx.evaluate("steered-hf", tasks=["tiny_letters"], pretrained=pretrained, output=output, **given)


def test_a_loaded_model_is_saved_under_its_name(tmp_path: Path) -> None:
    evaluate(tiny.load("llama"), tmp_path / "unsteered")
    evaluate(tiny.load("llama"), tmp_path / "steered", vectors=tiny.vector_set("llama"), plan="loc@1:2")
    runs = lx.load(tmp_path)
    assert {run.name: run.plan for run in runs} == {"steered": "loc@1:2", "unsteered": ""}
    assert {run.model for run in runs} == {str(tiny.folder("llama"))}


def test_a_model_made_on_the_spot_is_called_by_its_class(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(tiny.config("llama"))
    evaluate(model, tmp_path / "made", model_args={"tokenizer": tiny.tokenizer("llama")})
    assert [run.model for run in lx.load(tmp_path)] == ["LlamaForCausalLM"]


def test_a_folder_may_be_a_path(tmp_path: Path) -> None:
    run = evaluate(tiny.folder("llama"), tmp_path / "run", model_args={"dtype": "float32"})
    assert run["config"]["model_args"]["pretrained"] == str(tiny.folder("llama"))


def test_a_missing_task_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(lx.UserError, match="nowhere is not a folder; give the folder"):
        evaluate(tiny.folder("llama"), tmp_path / "run", include_path=tmp_path / "nowhere")
    with pytest.raises(lx.UserError, match="unknown task riddles"):
        lx.evaluate(tasks=["riddles"], task_manager=tiny.task_manager())


def test_a_loaded_model_keeps_no_hook(tmp_path: Path) -> None:
    model = tiny.load("llama")
    run = evaluate(model, tmp_path / "steered", vectors=tiny.vector_set("llama"), plan="loc@1:2")
    assert tiny.hooks(model) == []
    assert (run["config"]["model"], run["config"]["steering"]["plan"]) == ("steered-hf", "loc@1:2")
    with pytest.raises(UserError, match="layer 9 does not exist"):
        evaluate(model, tmp_path / "mistake", vectors=tiny.vector_set("llama"), plan="loc@9:2")
    assert tiny.hooks(model) == []
