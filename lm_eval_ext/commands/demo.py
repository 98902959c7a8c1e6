"""The command `lm-eval-ext demo`: the whole workflow on the embedded model, in a few minutes on two CPU cores.

Extracts EN and LOC vectors from the packaged pairs, evaluates the model five times through the harness (unsteered, EN, LOC,
both, and a random direction of the same norms as the control) on the packaged questions, and draws the plane. Results of
earlier runs are reused.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from lm_eval_ext.version import __version__

TASKS = ("transfer_mini_cloze", "localization_mini_cloze")

#: The paper's depths and strength (layers 20 and 28 of 48, gamma 2), not tuned on the questions evaluated here.
EN, LOC = "en@42%:2", "loc@58%:2"
CONDITIONS = {
    "unsteered": "",
    "en": EN,
    "loc": LOC,
    "surgical": f"{EN}+{LOC}",
    "random": "en~random@42%:2+loc~random@58%:2",
}


def demo(
    out: Annotated[Path, typer.Option(help="Folder for vectors, results and the plane.")] = Path("results/demo"),
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per forward.")] = 32,
    dtype: Annotated[str, typer.Option(help="auto (the model's own, bfloat16), bfloat16 or float32.")] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Questions per language and task, for a quick look.")] = None,
) -> None:
    """Measure and steer the embedded model, from extraction to the plane.

    Five evaluations through the harness on transfer_mini_cloze and localization_mini_cloze; the plane, its table and
    the conclusions that the intervals support. A second run reuses what exists.

    Examples:

      lm-eval-ext demo

      lm-eval-ext demo --limit 10 --out /tmp/quick
    """
    from lm_eval_ext.commands.extract import extract
    from lm_eval_ext.commands.plane import plane

    vectors = out / "vectors.safetensors"
    if vectors.is_file():
        typer.echo(f"vectors: {vectors} exists")
    else:
        extract(out=vectors, batch_size=batch_size, dtype=dtype)
    for condition, plan in CONDITIONS.items():
        _evaluate(out / condition, plan, vectors, batch_size=batch_size, dtype=dtype, limit=limit)
    plane(out, baseline="unsteered", out=out / "plane.html")


def _evaluate(folder: Path, plan: str, vectors: Path, **options: Any) -> None:
    """One evaluation through the harness; skipped where the folder has the results of the same evaluation."""
    from lm_eval_ext.io import write_file

    stamp = folder / "done.json"
    key = _key(plan, vectors, options)
    if stamp.is_file() and json.loads(stamp.read_text())["key"] == key:
        typer.echo(f"{folder.name}: {folder} exists")
        return
    steering = {"vectors": str(vectors), "steer": plan} if plan else {}
    arguments = {"dtype": options["dtype"], **steering}
    command = ",".join(f"{name}={value}" for name, value in arguments.items())
    typer.echo(f"{folder.name}: lm_eval --model steered-hf --model_args {command} --tasks {','.join(TASKS)}")
    _run(folder, arguments, options["batch_size"], options["limit"])
    write_file(stamp, json.dumps({"key": key, "plan": plan}))


def _run(folder: Path, arguments: dict[str, str], batch_size: int, limit: int | None) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.utils import setup_logging

    from lm_eval_ext import harness
    from lm_eval_ext.errors import ResultsError
    from lm_eval_ext.models.embedded import NAME

    setup_logging("WARNING")
    # It logs a hint for every task with a custom loader.
    logging.getLogger("lm_eval.api.task").setLevel("ERROR")
    harness.install()
    tracker = EvaluationTracker(output_path=str(folder))
    results = simple_evaluate(
        model="steered-hf",
        model_args=arguments,
        tasks=list(TASKS),
        batch_size=batch_size,
        limit=limit,
        evaluation_tracker=tracker,
        bootstrap_iters=0,
    )
    if results is None:  # another process of the same launch writes them
        return
    samples = results.pop("samples")
    # Without pretrained= the harness has no name for the embedded model.
    tracker.general_config_tracker.model_name = NAME
    tracker.general_config_tracker.model_name_sanitized = NAME
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    if not list(folder.rglob("results_*.json")):  # the harness logs a failed save and goes on
        raise ResultsError(f"the results could not be written to {folder}: is the disk full, or the folder read-only?")


def _key(plan: str, vectors: Path, options: dict[str, Any]) -> str:
    """Hash of everything the results of an evaluation depend on."""
    from lm_eval_ext.data.sources import packaged

    digest = hashlib.sha256(json.dumps([__version__, plan, TASKS, options], default=str).encode())
    for file in (vectors, *sorted(packaged("mini").glob("*.jsonl"))):
        digest.update(file.read_bytes())
    return digest.hexdigest()
