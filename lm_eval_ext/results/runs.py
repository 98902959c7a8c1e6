"""Which runs a folder of the harness's result files holds.

Such a folder has `results_DATE.json` and `samples_TASK_DATE.jsonl`, as `lm_eval --output_path --log_samples` writes them,
at any depth. A run is one model under one steering in one folder; evaluations of several dates belong to one run and the
newest of each task counts. Runs of every model type can be read: one that says nothing of steering is unsteered.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext.data import axes
from lm_eval_ext.errors import ResultsError
from lm_eval_ext.results.run import COMMITTED, Run, TaskResults, damage, find_run, short_model, some

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    import pandas as pd

_DATE = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?"
_RESULTS_FILE = re.compile(rf"(?P<stem>.+)_(?P<date>{_DATE})\.json")

#: What a results file says of when and by what it was written.
_VERSIONS = ("date", "lm_eval_version", "transformers_version", "git_hash", "chat_template_sha", "max_length")

#: Model arguments that say how, not what, was evaluated.
_EXECUTION_ARGS = frozenset({"batch_size", "max_batch_size", "device", "device_map", "parallelize"})


@dataclass(frozen=True)
class Runs:
    """The runs of a folder of result files.

    Attributes:
        root: the folder.
        runs: sorted by name.
        notes: what a reader of the results should know.

    Example:
        >>> runs = lx.load("results")
        >>> runs["loc"].plan, len(runs)
        ('loc@58%:2', 5)
        >>> frame = runs.samples(runs=["loc"], metrics=["acc"])
        >>> sorted(frame["value"].unique().tolist())
        [0.0, 1.0]
    """

    root: Path
    runs: tuple[Run, ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, name: str) -> Run:
        """The run that a name means; see `find_run`."""
        return find_run(self.runs, name)

    def samples(
        self,
        *,
        runs: Collection[str] | None = None,
        tasks: Collection[str] | None = None,
        metrics: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """Every document's scores as a tidy frame: one row per run, task, document, filter and metric.

        Columns:
            run, model, plan: name of the run, its model, its steering plan ("" if unsteered).
            task, version: name and version of the task.
            language: code from an axis file, else from the document, else the task's metadata or name; missing where none
                says.
            question_id: the id that a question shares over languages, else the document's hash.
            doc_id, doc_hash, prompt_hash: as the harness saved them.
            filter, metric: names, "none" being the harness's word for no filter.
            value: the score of this document (0 or 1 for accuracies); NaN where the harness saved none.

        Args:
            runs, tasks, metrics: read only these, by name; all if None.

        Raises:
            ResultsError: nothing matches, a damaged file, or a task without samples.
        """
        from lm_eval_ext.results.samples import read_all

        return read_all(self.runs, runs=runs, tasks=tasks, metrics=metrics)

    def table(self) -> pd.DataFrame:
        """One row per run and task.

        Columns: run, model, plan ("" if unsteered), control ("" for a plan that is none), label, date, task, family,
        axis ("" where nothing says it), split, language, version, n_documents.
        """
        import pandas as pd

        rows = [
            {
                **{
                    "run": run.name,
                    "model": run.model,
                    "plan": run.plan,
                    "control": run.control or "",
                    "label": run.label,
                },
                **{"date": record.date, "task": record.task, "family": record.family, "axis": record.axis or ""},
                **{"split": record.split, "language": record.language, "version": record.version},
                "n_documents": record.n_documents,
            }
            for run in self.runs
            for record in run.tasks.values()
        ]
        frame: pd.DataFrame = pd.DataFrame(rows)
        return frame


def load(root: Path | str) -> Runs:
    """Find the runs under a folder. Samples are not read yet.

    Args:
        root: any folder with `results_DATE.json` and `samples_TASK_DATE.jsonl`, at any depth, of runs of any model type.

    Raises:
        ResultsError: the folder does not exist, holds no results, or holds a damaged results file.

    Example:
        >>> runs = lx.load("results")
        >>> [run.name for run in runs]
        ['en', 'loc', 'random', 'surgical', 'unsteered']
    """
    root = Path(root)
    if not root.is_dir():
        raise ResultsError(f"{root} is not a folder; give the folder that was --output_path of lm_eval")
    notes: list[str] = []
    evaluations: dict[str, list[Run]] = {}
    for path in sorted(root.rglob("*.json")):
        match = _RESULTS_FILE.fullmatch(path.name)
        if match is None:
            if path.name.startswith("results"):
                notes.append(f"ignored {path.relative_to(root)}: its name has no date, so its samples cannot be found")
            continue
        content = _read_results(path, must=match["stem"] == "results")
        if content is not None:
            try:
                evaluation = _evaluation(root, path, match["date"], content)
            except (AttributeError, TypeError) as error:
                raise ResultsError(f"{path} is not a results file of the harness: {error}") from None
            evaluations.setdefault(_identity(evaluation), []).append(evaluation)
    if not evaluations:
        raise ResultsError(
            f"no results in {root}: there is no results_DATE.json in it or below it; "
            "run lm_eval with --output_path and --log_samples"
        )
    runs = _name_runs([_newest(same) for same in evaluations.values()])
    for run, same in zip(runs, evaluations.values(), strict=True):
        notes += _superseded(run, same)
    return Runs(root, tuple(sorted(runs, key=lambda run: run.name)), tuple(notes))


def _read_results(path: Path, *, must: bool) -> dict[str, Any] | None:
    """The content of a results file; None for other JSON, if it need not be one."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ResultsError(f"{path}{damage(error)}; delete the file or evaluate again") from None
    if isinstance(content, dict) and all(isinstance(content.get(key), dict) for key in ("results", "configs")):
        return content
    if must:
        raise ResultsError(f"{path} is not a results file of the harness: it has no 'results' and 'configs'")
    return None


def _evaluation(root: Path, path: Path, date: str, content: dict[str, Any]) -> Run:
    """One results file as a run that has no name yet."""
    config = content.get("config") or {}
    arguments = _parse_args(config.get("model_args"))
    steering = config.get("steering") or {}
    model_type = str(config.get("model") or "")
    model_name = str(content.get("model_name") or "")
    # Where no argument names the model, the harness invents a new name at every run.
    if model_name not in map(str, arguments.values()):
        model_name = str(steering.get("pretrained") or model_type)
    place = path.parent.relative_to(root)
    if place.name == content.get("model_name_sanitized"):
        place = place.parent
    vectors = steering.get("vectors") or {}
    details = {
        "type": model_type,
        **{key: value for key, value in arguments.items() if key not in _EXECUTION_ARGS},
        "positions": steering.get("positions"),
        "vectors_sha256": str(vectors["sha256"])[:12] if "sha256" in vectors else None,
        "chat_template_sha": content.get("chat_template_sha"),
        "system_instruction_sha": content.get("system_instruction_sha"),
    }
    return Run(
        name="",
        folder=place.as_posix(),
        home=root / place,
        path=path.parent,
        model=model_name,
        # The harness's own `steered` model names a file where ours has a plan.
        plan=str(steering.get("plan") or arguments.get("steer_path") or ""),
        label=str(steering.get("label") or ""),
        details={key: str(value) for key, value in details.items() if value is not None},
        date=date,
        tasks={task: _task_results(task, path, date, content) for task in content["configs"]},
        groups={
            group: tuple(map(str, members))
            for group, members in (content.get("group_subtasks") or {}).items()
            if members
        },
        is_committed=bool(content.get(COMMITTED)),
        config={**config, **{key: content[key] for key in _VERSIONS if content.get(key)}},
    )


def _task_results(task: str, path: Path, date: str, content: dict[str, Any]) -> TaskResults:
    samples = path.with_name(f"samples_{task}_{date}.jsonl")
    config = content.get("config") or {}
    said = content["configs"][task].get("metadata") or {}
    own = said if isinstance(said, dict) else {}
    return TaskResults(
        task=task,
        results=path,
        samples=samples if samples.is_file() else None,
        date=date,
        version=str((content.get("versions") or {}).get(task)),
        n_documents=((content.get("n-samples") or {}).get(task) or {}).get("effective"),
        settings={
            "limit": config.get("limit"),
            "few-shot examples": (content.get("n-shot") or {}).get(task),
            "few-shot seed": config.get("fewshot_seed"),
            "random seed": config.get("random_seed"),
        },
        higher_is_better=(content.get("higher_is_better") or {}).get(task) or {},
        source=_source(content["configs"][task]),
        hash=str((content.get("task_hashes") or {}).get(task) or ""),
        dtype=str(config.get("model_dtype") or "").removeprefix("torch."),
        metadata=axes.metadata(task, own),
        documents_language=axes.document_language(task, own),
    )


def _source(task: dict[str, Any]) -> str:
    """Where the documents of a task come from."""
    if path := task.get("dataset_path"):
        parts = (short_model(str(path)), task.get("dataset_name"))
        revision = (task.get("dataset_kwargs") or {}).get("revision")
        return "/".join(str(part) for part in parts if part) + (f"@{revision}" if revision else "")
    file = (task.get("metadata") or {}).get("config_source")
    return Path(str(file)).name if file else ""


def _parse_args(model_args: Any) -> dict[str, Any]:
    """Model arguments, which the harness saves as it was given them: a dictionary or `key=value,key=value`."""
    if isinstance(model_args, dict):
        return model_args
    pairs = (part.partition("=") for part in str(model_args or "").split(","))
    return {key.strip(): value.strip() for key, _, value in pairs if key.strip()}


def _identity(run: Run) -> str:
    return json.dumps([run.folder, run.model, run.plan, run.details], sort_keys=True)


def _newest(evaluations: list[Run]) -> Run:
    """Several dates of one run as one: of each task, the newest."""
    ordered = sorted(evaluations, key=lambda run: run.date)
    tasks = {task: record for run in ordered for task, record in run.tasks.items()}
    groups = {group: members for run in ordered for group, members in run.groups.items()}
    older = [record for run in ordered for task, record in run.tasks.items() if record is not tasks[task]]
    return replace(ordered[-1], tasks=tasks, groups=groups, older=tuple(older))


def _superseded(run: Run, evaluations: list[Run]) -> list[str]:
    """A note on every older evaluation whose results no longer count."""
    notes = []
    for older in sorted(evaluations, key=lambda evaluation: evaluation.date):
        replaced = [record for task, record in older.tasks.items() if run.tasks[task] != record]
        if not replaced:
            continue
        newer = [run.tasks[record.task] for record in replaced]
        changed = {
            f"{key} {old.settings[key]} -> {new.settings[key]}"
            for old, new in zip(replaced, newer, strict=True)
            for key in old.settings
            if old.settings[key] != new.settings[key]
        }
        changed |= {
            f"dtype {old.dtype} -> {new.dtype}"
            for old, new in zip(replaced, newer, strict=True)
            if old.dtype and new.dtype and old.dtype != new.dtype
        }
        newest = max(record.date for record in newer)
        notes.append(
            f"run {run.name!r}: {some(record.task for record in replaced)} evaluated on {older.date} and again on "
            f"{newest}; the newest counts" + "".join(f"; {text}" for text in sorted(changed))
        )
    return notes


def _name_runs(runs: list[Run]) -> list[Run]:
    """Each run's folder as its name; where several share it also model, steering, and what else differs."""
    named = [replace(run, name=short_model(run.model) if run.folder == "." else run.folder) for run in runs]
    for longer in (_with_model, _with_steering, _with_details):
        sharing: dict[str, list[Run]] = {}
        for run in named:
            sharing.setdefault(run.name, []).append(run)
        named = [longer(run, sharing[run.name]) if len(sharing[run.name]) > 1 else run for run in named]
    return named


def _with_model(run: Run, sharing: list[Run]) -> Run:
    if len({other.model for other in sharing}) == 1:
        return run
    return replace(run, name=f"{run.name}/{short_model(run.model)}" if run.folder != "." else run.name)


def _with_steering(run: Run, sharing: list[Run]) -> Run:
    labels = [other.label for other in sharing]
    steering = run.label if run.label and labels.count(run.label) == 1 else run.plan
    return replace(run, name=f"{run.name} [{steering}]") if steering else run


def _with_details(run: Run, sharing: list[Run]) -> Run:
    keys = {key for other in sharing for key in other.details}
    differing = {key for key in keys if len({other.details.get(key) for other in sharing}) > 1}
    return replace(run, name=f"{run.name} ({', '.join(f'{key}={run.details.get(key)}' for key in sorted(differing))})")
