"""Words that YAML takes for truth values, numbers or dates, where a language, a version or a name is meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from support import tiny

from lm_eval_ext.data.task_metadata import TaskMetadata
from lm_eval_ext.errors import DataError, LanguageError
from lm_eval_ext.gate.config import read_gate
from lm_eval_ext.steering.plan import Plan
from lm_eval_ext.steering.registry import parse_estimator

QUESTION = {"question": "Which bird", "options": [" one", " rice"], "gold": 1}


def evaluate(folder: Path, language: str, **arguments: str) -> list[float]:
    """The log-likelihoods of a question whose task has these words in its metadata, steered by language."""
    data = folder / "question.json"
    data.write_text(json.dumps(QUESTION) + "\n")
    (folder / "question.yaml").write_text(
        f"task: question\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: options\ndoc_to_target: gold\n"
        f"metadata: {{version: 2024-05-01, language: {language}}}\n"
    )
    vectors = tiny.vector_set("llama", languages=("ko", "no"))
    results = simple_evaluate(
        tiny.steered("llama", "loc@1:3", vectors=vectors, **arguments),
        tasks=["question"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    (sample,) = results["samples"]["question"]
    return [response[0][0] for response in sample["resps"]]


@pytest.mark.parametrize("written", ["no", "2024-05-01"])
def test_a_language_that_yaml_takes_for_something_else_is_not_another_one_s(written: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task question: its metadata has language: .*'no'"):
        evaluate(tmp_path, written, lang="ko")


def test_the_same_language_in_quotes(tmp_path: Path) -> None:
    assert evaluate(tmp_path, "'no'", lang="ko") == evaluate(tmp_path, "'nob_Latn'")
    assert evaluate(tmp_path, "'no'") != evaluate(tmp_path, "ko")


def test_a_language_among_the_arguments() -> None:
    with pytest.raises(LanguageError, match="lang=False is no code of a language"):
        tiny.steered("llama", "loc@1:3", lang=False)


@pytest.mark.parametrize("value", [False, True, 7, ["ko"]])
def test_results_that_exist(value: object) -> None:
    with pytest.raises(DataError, match="language"):
        TaskMetadata("t", {"language": value}).language  # noqa: B018


def test_names_in_a_plan_and_an_estimator_keep_their_characters(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("steer: loc@1:2\nchosen_on: {transfer: 1e5, localization: 2024-05-01, prior: no}\n")
    assert Plan.read(str(file)).chosen_on == ("1e5", "2024-05-01", "no")
    name, parameters = parse_estimator("x:alpha=1e-3,language=no,day=2024-05-01,exact=true")
    assert (name, parameters["alpha"], parameters["language"], parameters["day"]) == ("x", 1e-3, "no", "2024-05-01")
    assert parameters["exact"] is True


def test_languages_of_a_gate(tmp_path: Path) -> None:
    file = tmp_path / "gate.yaml"
    file.write_text("rules:\n  - {axis: transfer, languages: [no, ko], margin: 0.05}\n")
    assert read_gate(file).rules[0].languages == ("no", "ko")
