"""Result files in the harness's format, written without a model (test_plane_results checks them against real ones)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

DATE = "2026-01-02T03-04-05.678901"
LANGUAGES = ("en", "es", "id", "el", "ko", "zh", "ar")


def document(task: str, language: str | None, number: int) -> dict[str, Any]:
    """One document; the question id is the same in every language."""
    doc = {"id": f"q{number}", "question": f"{task} {number}"}
    return doc if language is None else {**doc, "language": language}


def write_run(
    folder: Path,
    scores: dict[str, dict[str, Any]],
    *,
    model: str = "tiny/model",
    plan: str | None = None,
    label: str = "",
    model_type: str = "steered-hf",
    date: str = DATE,
    limit: int | None = None,
    versions: dict[str, Any] | None = None,
    groups: dict[str, list[str]] | None = None,
    languages: dict[str, str] | None = None,
    n_shot: int = 0,
    samples: bool = True,
    **config: Any,
) -> Path:
    """Write `results_*.json` and `samples_*.jsonl` as the harness does, and return the results file.

    `scores` holds, per task, lists of per-document values by metric: `{"transfer_mini_ko_cloze": {"acc": [0, 1]}}`.
    """
    place = folder / model.replace("/", "__")
    place.mkdir(parents=True, exist_ok=True)
    args = {"pretrained": model} | ({"steer": plan} if plan else {})
    content = {
        "results": {task: {"alias": task} for task in scores},
        "group_subtasks": groups or {},
        "configs": {task: {"task": task, "metadata": {"version": 1.0}} for task in scores},
        "versions": {task: (versions or {}).get(task, 1.0) for task in scores},
        "n-shot": dict.fromkeys(scores, n_shot),
        "n-samples": {},
        "config": {"model": model_type, "model_args": args, "limit": limit, "fewshot_seed": 1234, **config},
        "model_name": model,
        "model_name_sanitized": place.name,
    }
    if plan is not None:
        content["config"]["steering"] = {"plan": plan, "positions": "prompt", "label": label}
    for task, metrics in scores.items():
        n = len(next(iter(metrics.values())))
        content["n-samples"][task] = {"original": n, "effective": n}
        language = (languages or {}).get(task) or next((part for part in task.split("_") if part in LANGUAGES), None)
        lines = []
        for number in range(n):
            doc = document(task, language, number)
            digest = hashlib.sha256(json.dumps(doc).encode()).hexdigest()
            line = {"doc_id": number, "doc": doc, "target": "0", "filter": "none", "metrics": list(metrics)}
            line |= {"doc_hash": digest, "prompt_hash": f"{n_shot}{digest}", "target_hash": "t"}
            lines.append(json.dumps(line | {name: values[number] for name, values in metrics.items()}))
        if samples:
            (place / f"samples_{task}_{date}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    path = place / f"results_{date}.json"
    path.write_text(json.dumps(content, indent=2))
    return path


def random_scores(seed: int, up: dict[str, float] | None = None, *, n: int = 60, flips: float = 0.1) -> dict[str, Any]:
    """Cloze scores of both mini families: a fixed baseline (seed-independent) with answers flipped at random.

    `up` raises the chance of a right answer by family ("transfer", "localization").
    """
    scores = {}
    for family in ("transfer", "localization"):
        for column, code in enumerate(LANGUAGES):
            fixed = np.random.default_rng([len(family), column])
            right = fixed.random(n) < 0.4
            bias = ~right & (fixed.random(n) < 0.5)
            rng = np.random.default_rng([seed, len(family), column])
            gain = (up or {}).get(family, 0.0)
            becomes_right = rng.random(n) < flips / 2 + max(gain, 0)
            becomes_wrong = rng.random(n) < flips / 2 + max(-gain, 0)
            after = np.where(right, ~becomes_wrong, becomes_right) if seed else right
            scores[f"{family}_mini_{code}_cloze"] = {
                "acc": after.astype(float).tolist(),
                "english_bias": (bias & ~after).astype(float).tolist(),
            }
    return scores


def write_demo(root: Path, n: int = 60) -> Path:
    """The five conditions of the demo."""
    conditions: dict[str, tuple[str, int, dict[str, float]]] = {
        "unsteered": ("", 0, {}),
        "en": ("en@42%:2", 1, {"transfer": 0.04, "localization": -0.03}),
        "loc": ("loc@58%:2", 2, {"transfer": -0.03, "localization": 0.09}),
        "surgical": ("en@42%:2+loc@58%:2", 3, {"transfer": 0.04, "localization": 0.08}),
        "random": ("en~random1@42%:2+loc~random2@58%:2", 4, {"transfer": -0.06, "localization": -0.04}),
    }
    for name, (plan, seed, up) in conditions.items():
        write_run(root / name, random_scores(seed, up, n=n), plan=plan)
    return root
