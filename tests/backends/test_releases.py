"""What other releases of the harness and of transformers name or ask otherwise."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import tiny
from support.scores import PAIRS, ask

from lm_eval_ext import harness
from lm_eval_ext.data.task_questions import document_metrics, option_count, requests_by_document
from lm_eval_ext.errors import UserError
from lm_eval_ext.scoring.kv_cache import cache_kinds, cache_name

FORMS = ("tiny_letters", "tiny_meta_cloze_ko")


@pytest.mark.transformers4
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_scoring_uses_no_deprecated_name(family: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model = tiny.steered(family, "loc@1:3/last")
        assert not cache_kinds(model.model)
        ask(model, PAIRS["letters"], ["ko"] * len(PAIRS["letters"]))  # prompts shared by options, from the KV cache


def test_the_name_of_the_cache_is_that_of_the_forward() -> None:
    class Before(torch.nn.Module):
        def forward(self, input_ids: Any, past_key_values: Any = None) -> None: ...

    class Since(torch.nn.Module):
        def forward(self, input_ids: Any, cache: Any = None) -> None: ...

    adapted: Any = SimpleNamespace(get_base_model=Since)
    names = [cache_name(model) for model in (Before(), Since(), adapted)]  # type: ignore[arg-type]
    assert names == ["past_key_values", "cache", "cache"]


@pytest.mark.parametrize("name", FORMS)
def test_metrics_of_a_document_are_the_harness_s(name: str) -> None:
    results = tiny.evaluate(tiny.steered("llama"), name, log_samples=True)
    task = tiny.task_manager().load([name])["tasks"][name]
    task.set_config(key="num_fewshot", value=0)
    requests = requests_by_document(task)
    for sample in results["samples"][name]:
        asked = requests[sample["doc_id"]]
        values = [response[0][0] for response in sample["resps"]]
        expected = {metric: sample[metric] for metric in sample["metrics"]}
        assert document_metrics(task, asked, values) == expected
        n_options = option_count(task, asked)
        assert n_options == 4
        without_prior = {metric: value for metric, value in expected.items() if metric != "acc_mutual_info"}
        assert document_metrics(task, asked, values[:n_options]) == without_prior


class Renamed:
    """A task manager of 0.5: the index has another name, and a name that matches nothing comes back."""

    all_tasks = ("mine",)

    def __init__(self, index: str) -> None:
        self.metadata = {"language": "xx", "pretrained": "m"}
        setattr(self, index, {"mine": SimpleNamespace(cfg={"metadata": {"language": "ko"}})})

    def match_tasks(self, names: list[str]) -> list[str]:
        return names


@pytest.mark.parametrize(("index", "language"), [("task_index", "ko"), ("_task_index", "ko"), ("entries", None)])
def test_the_language_of_metadata_whatever_the_index_is_called(index: str, language: str | None) -> None:
    merged = {"version": 1, "language": "xx", "pretrained": "m"}
    harness._note_metadata(
        Renamed(index), {"mine": SimpleNamespace(config=SimpleNamespace(metadata=merged, task="mine"))}
    )
    assert (harness.task_metadata("mine") or {}).get("language") == language
    assert (harness.task_metadata("mine") or {})["version"] == 1


def test_an_unknown_task_is_told_by_every_release() -> None:
    manager = Renamed("_task_index")
    assert harness.task_manager(["mine", "mine@cloze"], manager=manager) is manager
    with pytest.raises(UserError, match="unknown task nonesuch"):
        harness.task_manager(["mine", "nonesuch"], manager=manager)
