"""Real runs of the harness with `hf` and `steered-hf` on our task families and on the shapes of the harness's own tasks."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from support import tiny
from support.scores import assert_same

from lm_eval_ext.paths import tasks_dir
from lm_eval_ext.scoring import prefixes

pytestmark = pytest.mark.transformers4

WORDS = [
    [text[at : at + 4].strip() for at in range(0, 4 * 8, 4)] for text in (2 * text for text in tiny.TEXTS.values())
]

#: Rows of the local files: what each of the harness's data sets calls its columns.
ROWS: dict[str, list[dict[str, Any]]] = {
    "mmlu": [
        {"question": " ".join(words[:6]), "subject": "birds", "choices": [w[:9] for w in words[:4]], "answer": n}
        for n, words in enumerate(WORDS)
    ],
    "arc": [
        {
            "question": " ".join(words[2:7]) + "?",
            "choices": {"text": [" ".join(words[k : k + 1 + k % 3]) for k in range(4)], "label": list("ABCD")},
            "answerKey": "ABCD"[n],
        }
        for n, words in enumerate(WORDS)
    ],
    "hellaswag": [
        {"query": " ".join(words[:5]), "choices": [" ".join(words[5 : 6 + k]) + "." for k in range(1, 5)], "gold": n}
        for n, words in enumerate(WORDS)
    ],
    "lambada": [{"text": " ".join(words)} for words in WORDS],
    "winogrande": [
        {
            "sentence": " ".join(words[:3]) + " _ " + " ".join(words[3:7]),
            "option1": "rice",
            "option2": "bird",
            "answer": "2",
        }
        for words in WORDS
    ],
    "gsm8k": [{"question": " ".join(words[:7]), "answer": f"{words[0]} #### {n}"} for n, words in enumerate(WORDS)],
}

#: As in the harness's YAML of mmlu, arc_easy, hellaswag, lambada_openai, winogrande and gsm8k, but for the data.
SHAPES: dict[str, str] = {
    "mmlu": """
output_type: multiple_choice
description: "The following are multiple choice questions (with answers) about birds.\\n\\n"
doc_to_text: "{{question.strip()}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\nC. {{choices[2]}}\\nD. {{choices[3]}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
fewshot_split: test
fewshot_config: {sampler: first_n}
num_fewshot: 2
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "arc": """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices.label.index(answerKey)}}"
doc_to_choice: "{{choices.text}}"
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_mutual_info}]
""",
    "hellaswag": """
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_target: gold
doc_to_choice: choices
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "lambada": """
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}, {metric: acc}]
""",
    "winogrande": """
output_type: multiple_choice
doc_to_text: !function shapes.winogrande_text
doc_to_target: !function shapes.winogrande_target
doc_to_choice: !function shapes.winogrande_choice
metric_list: [{metric: acc}]
""",
    "gsm8k": """
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
fewshot_split: test
num_fewshot: 1
generation_kwargs: {until: ["Question:", "</s>"], do_sample: false, temperature: 0.0, max_gen_toks: 8}
metric_list: [{metric: exact_match}]
""",
}

_FUNCTIONS = """
def winogrande_text(doc):
    return {"1": 0, "2": 1}[doc["answer"]]


def winogrande_target(doc):
    return doc["sentence"][doc["sentence"].index("_") + 1 :].strip()


def winogrande_choice(doc):
    return [doc["sentence"][: doc["sentence"].index("_")] + option for option in (doc["option1"], doc["option2"])]
"""

OURS = ("transfer_mini", "localization_mini", "localization_mini_ctx")
OUR_TASKS = tuple(f"{family}_{code}{suffix}" for family in OURS for code in ("en", "ko") for suffix in ("", "_cloze"))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "shapes.py").write_text(_FUNCTIONS, encoding="utf-8")
    for name, shape in SHAPES.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]), encoding="utf-8")
        (folder / f"{name}.yaml").write_text(
            f"task: shape_{name}\ndataset_path: json\ntest_split: test\nmetadata: {{version: 1.0}}\n"
            f"dataset_kwargs: {{cache_dir: {folder}, data_files: {{test: {data}}}}}\n{shape}",
            encoding="utf-8",
        )
    return folder


@cache
def manager(folder: Path) -> TaskManager:
    return TaskManager(include_path=str(folder), include_defaults=False)


def evaluate(model: Any, folder: Path, tasks: tuple[str, ...], **arguments: Any) -> dict[str, Any]:
    with mock.patch("lm_eval.evaluator.add_env_info"):
        results: dict[str, Any] = simple_evaluate(
            model, tasks=list(tasks), task_manager=manager(folder), bootstrap_iters=0, log_samples=True, **arguments
        )
    return results


def assert_same_results(found: dict[str, Any], expected: dict[str, Any], tasks: tuple[str, ...]) -> None:
    """Every response, every metric of every sample, every score."""
    for task in tasks:
        for ours, theirs in zip(found["samples"][task], expected["samples"][task], strict=True):
            assert_same(ours, theirs)
        ours, theirs = ({k: v for k, v in run["results"][task].items() if "," in k} for run in (found, expected))
        assert_same(ours, theirs)


@pytest.mark.parametrize("least", [1, prefixes.MIN_SHARED])
@pytest.mark.parametrize("family", ["gemma3", "llama", "gpt2"])
def test_the_harness_s_shapes(family: str, least: int, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "MIN_SHARED", least)
    # 0.5.0.dev1 refuses a `doc_to_text` that gives the number of a context ("Expected doc_to_text to be a string").
    names = [name for name in SHAPES if name != "winogrande" or not tiny.IS_NEXT_HARNESS]
    tasks = tuple(f"shape_{name}" for name in names)
    found = evaluate(tiny.steered(family, batch_size="auto"), shapes, tasks)
    assert_same_results(found, evaluate(tiny.hf(family), shapes, tasks), tasks)


@pytest.mark.parametrize("batch_size", ["auto", 7])
def test_our_own_families(batch_size: Any) -> None:
    arguments = {"limit": 5}
    found = evaluate(tiny.steered("gemma3", batch_size=batch_size), tasks_dir(), OUR_TASKS, **arguments)
    assert_same_results(found, evaluate(tiny.hf("gemma3"), tasks_dir(), OUR_TASKS, **arguments), OUR_TASKS)
