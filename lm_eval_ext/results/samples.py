"""What each run scored on every document: the harness's samples as a tidy frame."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pandas as pd

from lm_eval_ext import json_text
from lm_eval_ext.data.task_questions import id_columns, question_id
from lm_eval_ext.errors import ResultsError
from lm_eval_ext.languages import normalise
from lm_eval_ext.results.columns import read_columns
from lm_eval_ext.results.run import Run, TaskResults, list_runs

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterator, Sequence
    from pathlib import Path

#: Bytes from which a file is first read as columns, ten times as fast as line by line.
_LARGE = 50_000

COLUMNS = (
    "run",
    "model",
    "plan",
    "task",
    "version",
    "language",
    "question_id",
    "doc_id",
    "doc_hash",
    "prompt_hash",
    "filter",
    "metric",
    "value",
)


def read_all(
    of_runs: Sequence[Run],
    *,
    runs: Collection[str] | None = None,
    tasks: Collection[str] | None = None,
    metrics: Collection[str] | None = None,
) -> pd.DataFrame:
    """`Runs.samples`, which says what the frame holds."""
    frames = [
        read_samples(run, task)
        for run in of_runs
        if runs is None or run.name in runs
        for task in run.tasks
        if tasks is None or task in tasks
    ]
    if not frames:
        raise ResultsError(f"no run or task matches; the runs are:\n{list_runs(of_runs)}")
    frame = pd.concat(frames, ignore_index=True)
    if metrics is not None:
        frame = frame[frame["metric"].isin(list(metrics))].reset_index(drop=True)
    names = ["run", "model", "plan", "task", "version", "language", "filter", "metric"]
    tidy: pd.DataFrame = frame.astype(dict.fromkeys(names, "category"))
    return tidy


def read_samples(run: Run, task: str, columns: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """The scores of one task of one run.

    Args:
        run, task: whose.
        columns: of those of `Runs.samples`, all by default; text that repeats in every row takes its time.

    Raises:
        ResultsError: the samples are missing, damaged, or fewer or more than were evaluated.
    """
    record = run.tasks[task]
    if record.samples is None:
        raise ResultsError(
            f"run {run.name!r} has no samples of {task} beside {record.results}; "
            "documents cannot be paired without them: run lm_eval again with --log_samples"
        )
    large = record.samples.stat().st_size >= _LARGE
    frame, n_documents = (_as_columns(run, record, columns) if large else None) or _line_by_line(run, record, columns)
    if n_documents < (record.n_documents or 1) and not _were_chosen(run, record):
        raise ResultsError(
            f"{record.samples} holds {n_documents} documents, {record.results.name} says {record.n_documents}: "
            "the file was cut off; run lm_eval again with --log_samples"
        )
    return frame


def _were_chosen(run: Run, record: TaskResults) -> bool:
    """Whether these documents are all that were asked (`lm_eval --samples`), although the results file counts the others.

    Older releases of the harness count all documents of the task. The scores in the results file must be the means of
    these documents, and the documents not the first ones, which a file that was cut off would hold.
    """
    frame, n_documents = _line_by_line(run, record, ["doc_id", "filter", "metric", "value"])
    if record.settings["limit"] is not None or frame.empty or int(frame["doc_id"].max()) < n_documents:
        return False
    means = frame.groupby(["metric", "filter"])["value"].mean()
    told = {key: record.scores[",".join(key)] for key in means.index if ",".join(key) in record.scores}
    return bool(told) and all(abs(means[key] - value) < 1e-6 for key, value in told.items())


def _as_columns(run: Run, record: TaskResults, wanted: Sequence[str]) -> tuple[pd.DataFrame, int] | None:
    """The scores of a file that has the same form in every line, and the number of documents; None where it has not."""
    assert record.samples is not None
    columns = read_columns(record.samples, record.task, id_columns(record.metadata))
    if columns is None:
        return None
    if not columns["doc_id"].is_unique and columns.duplicated(["doc_id", "filter"]).any():
        return None
    language: Any = record.language
    codes = columns["language"].unique().tolist()
    if any(codes) and not record.documents_language:
        language = columns["language"]
        if any(not code or code != normalise(code) for code in codes):
            language = language.map({code: normalise(code) if code else record.language for code in codes})
    shared = {
        **{"run": run.name, "model": run.model, "plan": run.plan, "task": record.task, "version": record.version},
        **{name: columns[name] for name in ("doc_id", "doc_hash", "prompt_hash", "filter")},
        "language": language,
        "question_id": columns["doc_hash"] if columns["question"].isna().all() else columns["question"],
    }
    metrics = [name for name in columns if name not in {"question", *COLUMNS}]
    parts = [
        pd.DataFrame({**shared, "metric": metric, "value": columns[metric]}, columns=list(wanted)) for metric in metrics
    ]
    frame: pd.DataFrame = pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]
    return frame, columns["doc_id"].nunique()


def _line_by_line(run: Run, record: TaskResults, wanted: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """The same line by line: whatever the harness allows, and a message that names the line where it does not."""
    assert record.samples is not None
    rows: list[tuple[Any, ...]] = []
    seen: set[tuple[int, str]] = set()
    for line, sample in _read_lines(record.samples):
        try:
            key = int(sample["doc_id"]), str(sample["filter"])
            document = sample["doc"] if isinstance(sample["doc"], dict) else {}
            spoken = None if record.documents_language else document.get("language")
            language = normalise(str(spoken)) if spoken else record.language
            doc_hash = str(sample["doc_hash"])
            question = question_id(document, record.metadata) or doc_hash
            scores = [(metric, sample[metric]) for metric in sample["metrics"]]
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise ResultsError(
                f"{record.samples}, line {line}: not a sample of the harness ({type(error).__name__}: {error}); "
                "run lm_eval 0.4.13 or newer with --log_samples"
            ) from None
        if key in seen:
            raise ResultsError(f"{record.samples}, line {line}: document {key[0]} stands here twice; evaluate again")
        seen.add(key)
        for metric, value in scores:
            if isinstance(value, (int, float)) and not json_text.is_finite(value):
                raise ResultsError(
                    f"{record.samples}, line {line}: {metric} of {record.task} is {_shown(value)}, not a finite number; "
                    "where the model's log-likelihoods are NaN, evaluate in bfloat16 or float32"
                )
        identity = (record.version, language, question, key[0], doc_hash, str(sample.get("prompt_hash", "")), key[1])
        rows += [
            (run.name, run.model, run.plan, record.task, *identity, metric, value)
            for metric, value in scores
            if value is None or isinstance(value, (bool, int, float))
        ]
    frame: pd.DataFrame = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"value": float})
    return frame[list(wanted)], len({doc_id for doc_id, _ in seen})


def document_columns(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Hash and columns of every document of a samples file, no lists."""
    for line, sample in _read_lines(path):
        try:
            document = sample["doc"] if isinstance(sample["doc"], dict) else {}
            yield (
                str(sample["doc_hash"]),
                {name: value for name, value in document.items() if not isinstance(value, (list, dict))},
            )
        except (KeyError, TypeError) as error:
            raise ResultsError(f"{path}, line {line}: not a sample of the harness ({error})") from None


def _read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered samples of a JSON-lines file."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                sample = json_text.parse(line)
            except ValueError as error:
                raise ResultsError(
                    f"{path}{json_text.why(error, number)}; damaged or cut off: run lm_eval again with --log_samples"
                ) from None
            yield number, sample


def _shown(value: float) -> str:
    return "a number beyond a float" if isinstance(value, int) else str(value)


_HASH = re.compile(rb'"doc_hash": *"([^"\\]*)"')


def read_documents(run: Run, task: str, wanted: Container[str]) -> Iterator[dict[str, Any]]:
    """Whole samples (question, options, answers) of the documents with these hashes, as the harness saved them.

    Raises:
        ResultsError: a damaged line.
    """
    record = run.tasks[task]
    if record.samples is None:
        return
    with record.samples.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            # Most lines of a large file are not wanted: those are not parsed.
            match = _HASH.search(line)
            if match and match[1].decode("ascii", "replace") not in wanted:
                continue
            try:
                sample = json_text.parse(line)
                if str(sample["doc_hash"]) in wanted:
                    yield sample
            except (ValueError, KeyError, TypeError) as error:
                raise ResultsError(f"{record.samples}, line {number}: not a sample of the harness ({error})") from None


def log_likelihoods(responses: Sequence[Any]) -> list[float] | None:
    """Of (log-likelihood, whether it is the greedy answer) pairs, a sample's responses; None where text was generated."""
    pairs = [response for response in responses if isinstance(response, (list, tuple)) and len(response) == 2]
    if len(pairs) < len(responses):
        return None
    try:
        return [float(score) for score, _ in pairs]
    except (TypeError, ValueError):
        return None
