"""Evaluating a steered model from Python: what `lm_eval --model steered-hf` does, with vectors that need no file."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext import backends, harness
from lm_eval_ext.errors import ResultsError, UserError
from lm_eval_ext.redaction import redact
from lm_eval_ext.steering.plan import DEFAULT_POSITION
from lm_eval_ext.steering.vectors import VectorSet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lm_eval_ext.steering.plan import Plan, Position


def evaluate(
    model_type: str = "steered-hf",
    *,
    tasks: Sequence[str],
    pretrained: Any = None,
    vectors: VectorSet | Path | str | None = None,
    plan: str | Plan = "",
    language: str | None = None,
    position: Position = DEFAULT_POSITION,
    model_args: Mapping[str, Any] | None = None,
    output: Path | str | None = None,
    include_path: Path | str | None = None,
    task_manager: Any = None,
    batch_size: int | str = "auto",
    device: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Run tasks of the harness on a model, steered or not.

    Args:
        model_type: what `lm_eval --model` takes: `steered-hf`, or any model type of the harness without vectors and plan.
        tasks: names of tasks or groups.
        pretrained: model name, folder or loaded model; of `steered-hf` the embedded model where left out.
        vectors: a vector set, or a vector file.
        plan: steering plan such as `en@42%:2+loc@58%:2`, or the path of a sweep's `plan.yaml`; empty for plain evaluation.
        language: of requests whose document and task name none.
        position: tokens to steer where the plan does not say: `prompt`, `last`, `last3`, `all`, ...
        model_args: whatever else `lm_eval --model_args` takes, such as `{"dtype": "float32", "peft": "runs/mist"}`.
        output: folder for the results and samples that `lm_eval --output_path --log_samples` writes, for `load`.
        include_path: folder with task files of your own.
        task_manager: the harness's, where several evaluations share one; else a new one, which takes some seconds.
        batch_size: prompts per forward; `auto` for what the free memory allows.
        device: `cpu`, `cuda`, ...; the harness's choice where left out.
        options: what else `lm_eval.simple_evaluate` takes: `limit`, `num_fewshot`, `log_samples`, `apply_chat_template`, ...

    Returns:
        what `lm_eval.simple_evaluate` returns: `results`, `samples`, `configs`, ...; nothing in all processes of a launch
        but the first.

    Raises:
        UserError: a plan, vector file, language or model that does not fit, an unknown task, results that cannot be written.

    Example:
        >>> run = lx.evaluate(
        ...     "steered-hf",
        ...     tasks=["localization_mini_ko_cloze"],
        ...     pretrained=model,
        ...     vectors=vectors,
        ...     plan="loc@58%:2",
        ...     limit=2,
        ... )
        >>> run["config"]["steering"]["plan"], len(run["samples"]["localization_mini_ko_cloze"])
        ('loc@58%:2', 2)
    """
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.utils import sanitize_model_name

    manager = harness.task_manager(tasks, include_path, task_manager)
    plain = {key: value for key, value in (model_args or {}).items() if value is not None}
    steering = {
        "vectors": vectors if isinstance(vectors, VectorSet | None) else str(vectors),
        "steer": str(plan) or None,
        "lang": language,
        "positions": position if position != DEFAULT_POSITION else None,
    }
    arguments = {
        "pretrained": str(pretrained) if isinstance(pretrained, Path) else pretrained,
        **plain,
        **{key: value for key, value in steering.items() if value is not None},
    }
    if pretrained is None and model_type in harness.MODELS:
        del arguments["pretrained"]
    if model_type not in harness.MODELS and (vectors is not None or plan):
        raise UserError(
            f"the model type {model_type!r} cannot be steered; valid with vectors and a plan: {', '.join(harness.MODELS)}"
        )
    tracker = EvaluationTracker(output_path=None if output is None else str(output))
    told = redact({key: _told(value) for key, value in arguments.items()})
    with _model(model_type, arguments, batch_size, device) as model:
        results: dict[str, Any] | None = simple_evaluate(
            model=model,
            model_args=arguments,
            tasks=list(tasks),
            task_manager=manager,
            batch_size=batch_size,
            device=device,
            evaluation_tracker=tracker,
            **options,
        )
    if results is None:  # in all processes of a launch but the first
        return {}
    results["config"] |= {"model": model_type, "model_args": told}
    if output is not None:
        # The harness takes a loaded model for one of its users' own and invents a name for it.
        general = tracker.general_config_tracker
        name = str(told.get("pretrained") or results["config"].get("steering", {}).get("pretrained") or model_type)
        general.model_source, general.model_name = model_type, name
        general.model_name_sanitized = sanitize_model_name(name)
        _save(tracker, results, Path(output))
    return results


@contextmanager
def _model(model_type: str, arguments: dict[str, Any], batch_size: int | str, device: str | None) -> Iterator[Any]:
    """What the harness evaluates. A steered model leaves no hook behind on a model that it was given."""
    if model_type not in harness.MODELS:
        yield model_type
        return
    given = {"batch_size": batch_size, **({} if device is None else {"device": device}), **arguments}
    backend = backends.load(model_type, given.pop("pretrained", None), **given)
    try:
        yield backend
    finally:
        backend.close()


def _told(value: Any) -> Any:
    """An argument as it is saved: objects by their names."""
    if isinstance(value, VectorSet):
        return str(value.path) if value.path else f"in memory, sha256 {value.digest}"
    if isinstance(value, str | int | float | bool):
        return value
    return str(getattr(value, "name_or_path", value)) or type(value).__name__


def _save(tracker: Any, results: dict[str, Any], output: Path) -> None:
    samples = results.get("samples")
    kept = {key: value for key, value in results.items() if key != "samples"}
    before = set(output.rglob("results_*.json"))
    tracker.save_results_aggregated(results=kept, samples=samples)
    for task, of_task in (samples or {}).items():
        tracker.save_results_samples(task_name=task, samples=of_task)
    if set(output.rglob("results_*.json")) == before:  # the tracker only logs what goes wrong
        raise ResultsError(f"the results could not be written to {output}: see the harness's log above")
