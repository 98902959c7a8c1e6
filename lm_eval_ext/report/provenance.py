"""What was run: models, plans, data versions and hashes; and the commands that do it again.

Local paths are reduced to their last part.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from lm_eval_ext.results.run import short_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_ext.plane.shifts import Plane
    from lm_eval_ext.results.run import Run

RUN_TITLES = ("run", "model", "plan", "evaluated", "software", "settings")
DATA_TITLES = ("task", "version", "documents", "data", "hash of documents and prompts")

_SOFTWARE = (("lm_eval", "lm_eval_version"), ("transformers", "transformers_version"), ("commit", "git_hash"))
_FLAGS = (("limit", "--limit"), ("batch_size", "--batch_size"), ("gen_kwargs", "--gen_kwargs"))


def run_rows(plane: Plane) -> list[list[str]]:
    """One row per run: model, plan, date, software, and all else that tells it apart."""
    return [_run_row(run) for run in (plane.baseline, *plane.runs)]


def data_rows(plane: Plane) -> list[list[str]]:
    """One row per task of the axes, as the baseline was asked; runs with other hashes or versions are named."""
    runs = [plane.baseline, *plane.runs]
    rows = []
    for task in dict.fromkeys((*plane.x.tasks, *plane.y.tasks)):
        having = [run.tasks[task] for run in runs if task in run.tasks]
        first = having[0]
        hashes = list(dict.fromkeys(record.hash for record in having if record.hash))
        also = f", and {len(hashes) - 1} other in other runs" if len(hashes) > 1 else ""
        rows.append(
            [
                task,
                first.version,
                f"{first.n_documents:,}" if first.n_documents else "",
                first.source,
                f"{hashes[0][:16]}{also}" if hashes else "samples were not hashed",
            ]
        )
    return rows


def commands(plane: Plane, arguments: Sequence[str]) -> list[str]:
    """The evaluations of the runs, one line each, and the command of this report (`arguments`)."""
    lines = [evaluation(run) for run in (plane.baseline, *plane.runs)]
    return [*lines, shlex.join(["lm-eval-ext", "report", *arguments])]


def evaluation(run: Run) -> str:
    """The harness's command of one run's newest evaluation; credentials are left out of its arguments."""
    config = run.config
    arguments: dict[str, Any] = config.get("model_args") or {}
    given = ",".join(f"{key}={short_model(str(value))}" for key, value in arguments.items() if value is not None)
    words = ["lm_eval", "--model", str(config.get("model") or "hf")]
    words += ["--model_args", given] if given else []
    words += ["--tasks", ",".join(_asked(run))]
    shots = {record.settings.get("few-shot examples") for record in run.tasks.values()}
    if len(shots) == 1 and (n := next(iter(shots))):
        words += ["--num_fewshot", str(n)]
    for key, flag in _FLAGS:
        if config.get(key):
            words += [flag, _value(config[key])]
    words += ["--apply_chat_template"] if config.get("chat_template_sha") else []
    return shlex.join([*words, "--log_samples", "--output_path", run.folder])


def _run_row(run: Run) -> list[str]:
    software = ", ".join(f"{name} {str(run.config[key])[:12]}" for name, key in _SOFTWARE if run.config.get(key))
    settings = ", ".join(f"{key}={short_model(value)}" for key, value in run.details.items() if key != "steer")
    return [run.name, short_model(run.model), run.plan or "unsteered", run.date.split("T")[0], software, settings]


def _asked(run: Run) -> list[str]:
    """Groups and tasks as they must have been asked for: what no group holds."""
    held = {member for members in run.groups.values() for member in members}
    asked = [name for name in (*run.groups, *run.tasks) if name not in held]
    return list(dict.fromkeys(asked)) or sorted({record.family for record in run.tasks.values()})


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={entry}" for key, entry in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
