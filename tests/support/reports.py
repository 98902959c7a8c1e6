"""Result trees with whole documents (our mini questions), as the harness saves them, from simulated models."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_ext.data.metrics import cloze
from lm_eval_ext.data.mini import localization, transfer

LANGUAGES = ("en", "es", "id", "el", "ko", "zh", "ar")
DATE = "2026-01-02T03-04-05.678901"
CONDITIONS: dict[str, tuple[str, float, float]] = {
    # name: plan, pull towards the right answer of universal questions, of cultural ones (log-likelihood)
    "unsteered": ("", 0.0, 0.0),
    "en": ("en@42%:2", 1.2, -0.9),
    "loc": ("loc@58%:2", -0.4, 1.4),
    "surgical": ("en@42%:2+loc@58%:2", 0.9, 1.2),
    "random": ("en~random1@42%:2+loc~random2@58%:2", -0.5, -0.3),
}


def write_tree(
    root: Path, conditions: dict[str, Any] = CONDITIONS, *, n: int | None = None, context: bool = True
) -> Path:
    """The five conditions of the demo on all mini questions (or the first n), also with the country named."""
    for number, (name, (plan, x, y)) in enumerate(conditions.items()):
        families = {"transfer_mini": (x, False), "localization_mini": (y, False)}
        if context:
            families["localization_mini_ctx"] = (y + 0.8, True)
        tasks = {
            f"{family}_{code}_cloze": _samples(family, code, number, pull, named, n)
            for family, (pull, named) in families.items()
            for code in LANGUAGES
        }
        write_results(root / name, "gemma-3-270m", plan, tasks)
    return root


def write_results(folder: Path, model: str, plan: str, tasks: dict[str, list[dict[str, Any]]], **config: Any) -> Path:
    place = folder / model.replace("/", "__")
    place.mkdir(parents=True, exist_ok=True)
    args = {"pretrained": model} | ({"steer": plan, "vectors": "/home/me/vectors.safetensors"} if plan else {})
    groups: dict[str, list[str]] = {}
    for task in tasks:
        groups.setdefault("_".join(part for part in task.split("_") if part not in LANGUAGES), []).append(task)
    content = {
        "results": {
            task: {"alias": task, "acc,none": np.mean([line.get("acc", 0) for line in tasks[task]])} for task in tasks
        },
        "group_subtasks": groups,
        "configs": {
            task: {"task": task, "metadata": {"version": 1.0, "config_source": f"/home/me/tasks/{task}.yaml"}}
            for task in tasks
        },
        "versions": dict.fromkeys(tasks, 1.0),
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": {task: {"acc": True, "english_bias": False} for task in tasks},
        "n-samples": {task: {"original": len(lines), "effective": len(lines)} for task, lines in tasks.items()},
        "config": {
            "model": "steered-hf",
            "model_args": args,
            "limit": None,
            "fewshot_seed": 1234,
            "steering": {
                "plan": plan,
                "positions": "prompt",
                "vectors": {"path": "/home/me/vectors.safetensors", "sha256": "5e" * 32} if plan else None,
            },
            **config,
        },
        "model_name": model,
        "model_name_sanitized": place.name,
        "lm_eval_version": "0.4.13",
        "transformers_version": "5.23.0",
        "date": 1767322800.0,
        "task_hashes": {task: hashlib.sha256(task.encode()).hexdigest() for task in tasks},
    }
    for task, lines in tasks.items():
        (place / f"samples_{task}_{DATE}.jsonl").write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
        )
    path = place / f"results_{DATE}.json"
    path.write_text(json.dumps(content))
    return path


def _samples(family: str, code: str, seed: int, pull: float, named: bool, n: int | None) -> list[dict[str, Any]]:
    rows = (localization(code, named=named) if family != "transfer_mini" else transfer(code))["test"]
    documents = [dict(row) for row in rows][:n]
    score = _accuracy if family == "transfer_mini" else cloze
    lines = []
    for number, document in enumerate(documents):
        shared = np.random.default_rng([len(family.removesuffix("_ctx")), LANGUAGES.index(code), number])
        own = np.random.default_rng([seed, len(family), LANGUAGES.index(code), number])
        options = len(document["options"])
        given = shared.normal(-12, 2, options) + own.normal(0, 0.5, options)
        given[document["gold"]] += 0.6 + pull
        results = [(float(value), False) for value in (*given, *shared.normal(-14, 1, options))]
        lines.append(sample(number, document, results, score(document, results)))
    return lines


def _accuracy(document: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    given = [value for value, _ in results][: len(document["options"])]
    return {"acc": float(given.index(max(given)) == document["gold"])}


def sample(
    number: int, document: dict[str, Any], results: list[tuple[float, bool]], metrics: dict[str, float]
) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    responses = [[str(value), str(greedy)] for value, greedy in results]
    line = {"doc_id": number, "doc": document, "target": str(document["gold"]), "arguments": {}, "resps": [responses]}
    line |= {"filtered_resps": responses, "filter": "none", "metrics": list(metrics), "doc_hash": digest}
    return {**line, "prompt_hash": digest[::-1], "target_hash": "t", **metrics}
