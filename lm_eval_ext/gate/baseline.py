"""A baseline small enough to commit: the scores of a run by document, without the documents' texts.

It is a result tree like any other, which the reader, the plane and the report understand: ids, languages, hashes and
scores of the documents that the gate's rules speak of, without prompts, options or answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lm_eval_ext.errors import GateError, ResultsError
from lm_eval_ext.gate.margins import read_margins
from lm_eval_ext.io import write_folder
from lm_eval_ext.results.axes import Axis, find_axis
from lm_eval_ext.results.pairing import Paired
from lm_eval_ext.results.run import COMMITTED, short_model
from lm_eval_ext.results.runs import load
from lm_eval_ext.results.samples import read_samples
from lm_eval_ext.version import __version__

if TYPE_CHECKING:
    import pandas as pd

    from lm_eval_ext.gate.measuring import Side
    from lm_eval_ext.gate.rules import Gate
    from lm_eval_ext.results.run import Run


class Move(NamedTuple):
    """What renewing a baseline changes in one language of an axis.

    Attributes:
        axis, metric, language: where.
        before, after: scores; `before` is NaN without an old baseline that can be compared.
        gained, lost: ids of the questions whose score rose and fell.
        note: why nothing can be compared, else "".
    """

    axis: str
    metric: str
    language: str
    before: float
    after: float
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    note: str


def moves(gate: Gate, old: Side | None, new: Side) -> list[Move]:
    """What moved between an old baseline, if there is one, and the run that is to replace it."""
    moved = []
    for axis in _axes(gate, new.run):
        axis, after = new.scores(axis)
        before, note = _old_scores(old, new, axis)
        for language in after["language"].unique():
            rows = after[after["language"] == language]
            level = float(rows["value"].mean())
            pair = Paired.of(before, rows, "value", resamples=1, seed=[0]) if before is not None else None
            if pair is None:
                moved.append(Move(axis.name, axis.score, language, float("nan"), level, (), (), note or "new"))
                continue
            ids = pair.frame["question"].str.partition("/")[2]
            gained, lost = (tuple(ids[sign * pair.frame["change"] > 0]) for sign in (1, -1))
            unpaired = len(rows) - len(pair.frame)
            unpaired_note = f"{unpaired} of {len(rows)} items are new" if unpaired else ""
            moved.append(
                Move(
                    axis.name,
                    axis.score,
                    language,
                    float(pair.frame["before"].mean()),
                    level,
                    gained,
                    lost,
                    unpaired_note,
                )
            )
    return moved


def read_old(folder: Path, side: type[Side]) -> Side | None:
    """The baseline that is to be replaced; None where there is none.

    Raises:
        GateError: the folder holds something else, which renewing would destroy.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        tree = load(folder)
    except ResultsError as error:
        raise GateError(f"{folder} exists and is no committed baseline ({error}); nothing was written") from None
    if len(tree.runs) != 1 or not tree.runs[0].is_committed:
        raise GateError(
            f"{folder} holds results that `lm-eval-ext gate renew` did not write; nothing was written. "
            "Give --baseline a folder of its own"
        )
    return side.read("baseline", folder)


def write(gate: Gate, run: Run, folder: Path) -> int:
    """Replace a baseline by what the gate needs of a run, whole or not at all; returns its size in bytes.

    Raises:
        OutputError: the folder cannot be written; what was there stays.
    """
    wanted: dict[str, set[str]] = {}
    for axis in _axes(gate, run):
        for task in axis.tasks:
            if task in run.tasks:
                wanted.setdefault(task, set()).add(axis.metric)
    frames = {task: _wanted_samples(run, task, metrics) for task, metrics in sorted(wanted.items())}
    has_margins = gate.pooled.scores == "margins"
    with write_folder(folder, replace=True) as fresh:
        for task, frame in frames.items():
            (fresh / f"samples_{task}_{run.date}.jsonl").write_text(
                _lines(frame, _margins(run, task, frame) if has_margins else {}), encoding="utf-8"
            )
        results = json.dumps(_results(run, frames), indent=1, sort_keys=True) + "\n"
        (fresh / f"results_{run.date}.json").write_text(results, encoding="utf-8")
    return sum(path.stat().st_size for path in folder.iterdir())


def _axes(gate: Gate, run: Run) -> list[Axis]:
    """Axes of the rules, each once."""
    return list(dict.fromkeys(find_axis(rule.axis, (run,), rule.metric) for rule in gate.rules))


def _old_scores(old: Side | None, new: Side, axis: Axis) -> tuple[pd.DataFrame | None, str]:
    """The old baseline on one axis, or why it cannot be compared."""
    if old is None:
        return None, ""
    held = [task for task in axis.tasks if task in old.run.tasks]
    if not held:
        return None, ""
    if other := [task for task in held if old.run.tasks[task].version != new.run.tasks[task].version]:
        task = other[0]
        return None, f"version {old.run.tasks[task].version} -> {new.run.tasks[task].version}"
    try:
        return old.scores(axis)[1], ""
    except ResultsError:  # an old baseline without this metric
        return None, ""


def _wanted_samples(run: Run, task: str, metrics: set[str]) -> pd.DataFrame:
    frame = read_samples(run, task)
    wanted: pd.DataFrame = frame[frame["metric"].isin(metrics)]
    return wanted


def _margins(run: Run, task: str, frame: pd.DataFrame) -> dict[tuple[str, str], dict[str, float]]:
    """Margins of the right options by document and filter."""
    kept: dict[tuple[str, str], dict[str, float]] = {}
    for (metric, of_filter), rows in frame.groupby(["metric", "filter"]):
        metric, of_filter = str(metric), str(of_filter)
        for doc_hash, value in read_margins(run, task, metric, of_filter, set(rows["doc_hash"])).items():
            kept.setdefault((doc_hash, of_filter), {})[metric] = round(value, 4)
    return kept


def _lines(frame: pd.DataFrame, margins: dict[tuple[str, str], dict[str, float]]) -> str:
    """Samples as the harness writes them, without texts; with margins where they are kept."""
    lines = []
    for _, rows in frame.groupby(["doc_id", "filter"], sort=True):
        first = rows.iloc[0]
        language = {} if first["language"] is None else {"language": first["language"]}
        # A question's id, unless it is only the hash of its text again.
        identity = {} if first["question_id"] == first["doc_hash"] else {"id": first["question_id"]}
        sample: dict[str, Any] = {"doc_id": int(first["doc_id"]), "doc": identity | language}
        sample |= {"filter": first["filter"], "doc_hash": first["doc_hash"], "prompt_hash": first["prompt_hash"]}
        if kept := margins.get((first["doc_hash"], first["filter"])):
            sample["margins"] = kept
        scores = {row["metric"]: _number(row["value"]) for _, row in rows.iterrows()}
        lines.append(json.dumps(sample | {"metrics": list(scores)} | scores, separators=(",", ":"), ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines)


def _number(value: float) -> float | int | None:
    return None if value != value else int(value) if value == int(value) else value


def _results(run: Run, frames: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """The results file: what decides whether another run can be compared, and where the scores come from."""
    tasks = {task: run.tasks[task] for task in frames}
    means = {
        task: {f"{metric},{name}": rows.mean() for (metric, name), rows in frame.groupby(["metric", "filter"])["value"]}
        for task, frame in frames.items()
    }
    settings = next(iter(tasks.values())).settings
    dtype = next(iter(tasks.values())).dtype
    model = short_model(run.model)  # without folders of the machine that evaluated
    return {
        COMMITTED: __version__,
        "results": means,
        "group_subtasks": {
            group: [member for member in members if member in tasks or member in run.groups]
            for group, members in run.groups.items()
            if set(members) & (tasks.keys() | run.groups.keys())
        },
        "configs": {
            task: {"task": task, "metadata": {"version": record.version, "language": record.language}}
            for task, record in tasks.items()
        },
        "versions": {task: record.version for task, record in tasks.items()},
        "n-shot": {task: record.settings["few-shot examples"] for task, record in tasks.items()},
        "n-samples": {task: {"effective": int(frame["doc_id"].nunique())} for task, frame in frames.items()},
        "higher_is_better": {task: record.higher_is_better for task, record in tasks.items()},
        "config": {
            "model": run.details.get("type", ""),
            "model_args": {"pretrained": model},
            **({"model_dtype": dtype} if dtype else {}),
            "limit": settings["limit"],
            "fewshot_seed": settings["few-shot seed"],
            "random_seed": settings["random seed"],
            "steering": {"plan": run.plan, "label": run.label},
        },
        "model_name": model,
        "model_name_sanitized": "",
    }
