"""The command `lm-eval-ext demo`: the whole workflow on the embedded model, within ten minutes on two CPU cores.

Extracts EN and LOC vectors from the packaged pairs, evaluates the model through the harness on the packaged questions, and
draws the plane: unsteered; EN, LOC and both as in the paper, with random directions of the same norms as their control; the
plan that a sweep of this model chose on development splits, with random directions and other languages' vectors in its place
as controls. The runs ask the same questions, so that what they share is computed once; a measurement of seconds says how
many questions the time allows. Results of earlier runs are reused.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from lm_eval_ext.version import __version__

if TYPE_CHECKING:
    from lm_eval_ext.sweep.shared_runs import SharedRuns

TASKS = ("transfer_mini_cloze", "localization_mini_cloze")

#: The paper's depths and strength (layers 20 and 28 of 48, gamma 2), not tuned on the questions evaluated here.
EN, LOC = "en@42%:2", "loc@58%:2"
#: What the sweep in results/sweep-gemma3-270m chose on bmlama_dev and blend_decon_dev_cloze: other questions than these.
CHOSEN = "en@0:0.5+loc@6:4"
CONDITIONS = {
    "unsteered": "",
    "en": EN,
    "loc": LOC,
    "surgical": f"{EN}+{LOC}",
    "random": "en~random@42%:2+loc~random@58%:2",
    "chosen": CHOSEN,
    "chosen_random": "en~random@0:0.5+loc~random@6:4",
    "chosen_other": "en@0:0.5+loc~other@6:4",
}


#: Seconds of all that is not computed with the model: loading it, tasks, the harness's reports, the plane (measured).
_AROUND = 120.0

#: Documents of a task, and the fewest that are asked.
_ALL, _FEWEST = 68, 8

#: Share of the time that the extraction may take, and the fewest pairs of each language and kind.
_EXTRACTION, _FEWEST_PAIRS = 1 / 3, 16

#: Prompts per forward of whatever is not scored ahead.
_BATCH = 32


def demo(
    out: Annotated[Path, typer.Option(help="Folder for vectors, results and the plane.")] = Path("results/demo"),
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward in the extraction.")] = 32,
    dtype: Annotated[
        str, typer.Option(help="auto (bfloat16 where this machine is fast in it), bfloat16 or float32.")
    ] = "auto",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Questions per language and task; by default as many as --minutes allows.")
    ] = None,
    minutes: Annotated[float, typer.Option(min=1, help="How long it may take, without --limit.")] = 8.0,
) -> None:
    """Measure and steer the embedded model, from extraction to the plane.

    Eight evaluations through the harness on transfer_mini_cloze and localization_mini_cloze: the paper's setting and the
    plan that a development split chose, with their controls; the plane, its table and the conclusions that the intervals
    support. Says first how long it will take here. A second run reuses what exists.

    Examples:

      lm-eval-ext demo

      lm-eval-ext demo --limit 10 --out /tmp/quick
    """
    from lm_eval_ext.commands.extract import extract
    from lm_eval_ext.commands.plane import plane

    vectors = out / "vectors.safetensors"
    limit = limit or _earlier_limit(out)
    options: dict[str, Any] = {"batch_size": batch_size, "dtype": dtype, "limit": limit}
    pending = [name for name, plan in CONDITIONS.items() if not _is_done(out / name, plan, vectors, options)]
    begun = None
    if pending:
        typer.echo("loading the model and the questions, and measuring how fast they are answered here ...")
        begun = _begin(out, [CONDITIONS[name] for name in pending], vectors, limit, minutes, dtype)
        options["limit"] = begun.limit
    if vectors.is_file():
        typer.echo(f"vectors: {vectors} exists")
    else:
        extract(out=vectors, batch_size=batch_size, dtype=dtype, max_pairs=begun.max_pairs if begun else None)
    for name in CONDITIONS:
        if name not in pending:
            typer.echo(f"{name}: {out / name} exists")
    if begun:
        _evaluate(begun.runs, out, pending, vectors, options)
    plane(out, baseline="unsteered", out=out / "plane.html")
    typer.echo(f"the picture: {(out / 'plane.html').resolve()}")


class _Begun(NamedTuple):
    """The model with its questions, how many there are of each task, and the pairs that vectors are extracted from."""

    runs: SharedRuns
    limit: int
    max_pairs: int | None


def _earlier_limit(out: Path) -> int | None:
    """The number of questions that an earlier demo in this folder chose."""
    file = out / "demo.json"
    return int(json.loads(file.read_text())["limit"]) if file.is_file() else None


def _begin(out: Path, plans: list[str], vectors: Path, limit: int | None, minutes: float, dtype: str) -> _Begun:
    """Load the model and the questions, measure, and say how long everything will take."""
    from lm_eval.utils import setup_logging

    from lm_eval_ext import backends
    from lm_eval_ext.data.pairs import load_pairs
    from lm_eval_ext.io import write_file
    from lm_eval_ext.models.precision import name_of
    from lm_eval_ext.sweep.questions import Questions
    from lm_eval_ext.sweep.shared_runs import SharedRuns

    setup_logging("WARNING")
    # It logs a hint for every task with a custom loader.
    logging.getLogger("lm_eval.api.task").setLevel("ERROR")
    model = backends.load("steered-hf", dtype=dtype, batch_size=_BATCH)
    questions = Questions(TASKS, limit=limit)
    runs = SharedRuns(model, questions)
    speed = runs.speed()
    extracting, max_pairs = 0.0, None
    if not vectors.is_file():
        sets = [pair_set for kind in ("en", "loc") for pair_set in load_pairs(kind, "mini")]
        texts = [text for pair_set in sets for pair in pair_set.pairs for text in (pair.positive, pair.negative)]
        extracting = runs.text_operations(sum(map(len, model.tokenizer(texts).input_ids))) / speed
        n_pairs = max(len(pair_set.pairs) for pair_set in sets)
        if limit is None and extracting > (allowed := 60 * minutes * _EXTRACTION):
            max_pairs = max(_FEWEST_PAIRS, int(n_pairs * allowed / extracting))
            extracting *= max_pairs / n_pairs
    answering = runs.operations(plans) / speed
    asked = limit or _ALL
    if limit is None:
        left = 60 * minutes - _AROUND - extracting
        asked = max(_FEWEST, min(_ALL, int(_ALL * left / answering)))
        write_file(out / "demo.json", json.dumps({"limit": asked}))
        questions.keep(asked)
        runs = SharedRuns(model, questions)
    seconds = _AROUND + extracting + answering * asked / (limit or _ALL)
    typer.echo(
        f"about {seconds / 60:.0f} minutes here ({speed / 1e9:.0f} GFLOP/s in {name_of(model.model.dtype)}): {asked} of "
        f"{_ALL} questions per language and task"
        + (f", vectors of at most {max_pairs} pairs" if max_pairs else "")
        + ("" if asked == _ALL else f" (--limit {_ALL} asks all)")
    )
    return _Begun(runs, asked, max_pairs)


def _evaluate(runs: SharedRuns, out: Path, names: list[str], vectors: Path, options: dict[str, Any]) -> None:
    """The evaluations: scored together, then each run through the harness."""
    from lm_eval.tasks import TaskManager

    from lm_eval_ext.console import Progress
    from lm_eval_ext.io import write_file
    from lm_eval_ext.paths import tasks_dir
    from lm_eval_ext.steering.vectors import VectorSet

    steering = VectorSet.load(vectors)
    # One for all runs, of our tasks only: reading those of the harness takes seconds each time.
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    plans = [CONDITIONS[name] for name in names]
    with Progress(runs.n_cells(plans), "Scoring", "prompt") as bar:
        runs.score_ahead(steering, plans, out / "cells", bar.update)
    for name, plan in zip(names, plans, strict=True):
        arguments = {"dtype": options["dtype"], **({"vectors": str(vectors), "steer": plan} if plan else {})}
        command = ",".join(f"{key}={value}" for key, value in arguments.items())
        typer.echo(f"{name}: lm_eval --model steered-hf --model_args {command} --tasks {','.join(TASKS)}")
        runs.steer(plan, steering if plan else None)
        _run(runs, out / name, arguments, options["limit"], manager)
        key = _key(plan, vectors, options)
        write_file(out / name / "done.json", json.dumps({"key": key, "plan": plan}))


def _is_done(folder: Path, plan: str, vectors: Path, options: dict[str, Any]) -> bool:
    """Whether a folder has the results of the same evaluation."""
    stamp = folder / "done.json"
    is_comparable = options["limit"] is not None and stamp.is_file() and vectors.is_file()
    return is_comparable and json.loads(stamp.read_text())["key"] == _key(plan, vectors, options)


def _run(runs: SharedRuns, folder: Path, arguments: dict[str, str], limit: int, manager: Any) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    from lm_eval_ext.errors import ResultsError
    from lm_eval_ext.models.embedded import NAME

    tracker = EvaluationTracker(output_path=str(folder))
    results = simple_evaluate(
        model=runs.model,
        model_args=arguments,
        tasks=list(TASKS),
        task_manager=manager,
        batch_size=_BATCH,
        limit=limit if limit < _ALL else None,
        evaluation_tracker=tracker,
        bootstrap_iters=0,
    )
    if results is None:  # another process of the same launch writes them
        return
    # The harness names neither a loaded model nor the embedded one.
    results["config"]["model"] = tracker.general_config_tracker.model_source = "steered-hf"
    samples = results.pop("samples")
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
