"""One run of the harness: a model under one steering, its tasks and where their samples are."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext.data.task_metadata import EXPLICIT_CONTEXT, TaskMetadata
from lm_eval_ext.errors import ResultsError
from lm_eval_ext.results import legacy_names
from lm_eval_ext.steering.controls import Control, control_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


#: Key of a results file that `lm-eval-ext gate renew` wrote.
COMMITTED = "lm_eval_ext_baseline"


@dataclass(frozen=True)
class TaskResults:
    """One task of one run: where its samples are, and the settings that decide what it can be compared with.

    Attributes:
        task: name of the task.
        results: the `results_*.json` file that lists it.
        samples: the `samples_*.jsonl` file, or None if none was written.
        date: as in the file names; sorts as text.
        version: the task's version.
        n_documents: how many documents were evaluated, as the results file says; None if it does not.
        settings: limit, number of few-shot examples and seeds.
        higher_is_better: by metric; only metrics of which the task says it.
        source: the data set, with its configuration and revision, or the task's file where it is made by code.
        dtype: in which the model ran; "" where the results file does not say.
        hash: the harness's hash over documents, prompts and targets; "" where samples were not logged.
        metadata: what the task's YAML says of it, or an axis file.
        documents_language: of all documents, whatever they say, where an axis file says it.
    """

    task: str
    results: Path
    samples: Path | None
    date: str
    version: str
    n_documents: int | None
    settings: dict[str, Any]
    higher_is_better: dict[str, bool] = field(default_factory=dict)
    source: str = ""
    hash: str = ""
    dtype: str = ""
    metadata: TaskMetadata = field(default_factory=lambda: TaskMetadata(""), repr=False)
    documents_language: str | None = None

    @property
    def language(self) -> str | None:
        """From the task's metadata or its name; a document's own `language` goes first."""
        return self.metadata.language or legacy_names.language(self.task)

    @property
    def family(self) -> str:
        """What this task and those in other languages are called together.

        Raises:
            DataError: metadata that is not valid; so do `axis` and `split`.
        """
        return self.metadata.family or legacy_names.family(self.task)

    @property
    def axis(self) -> str | None:
        """The axis of the plane: `transfer`, `localization`, or None where nothing says it."""
        return self.metadata.axis or legacy_names.axis(self.family)

    @property
    def split(self) -> str:
        """`dev` for questions that choose layers, `test` for all others."""
        return self.metadata.split or legacy_names.split(self.family)

    @property
    def variant_of(self) -> str | None:
        """The family whose questions this task asks in another way."""
        return self.metadata.variant_of or legacy_names.explicit_context_of(self.family)

    @property
    def variant(self) -> str | None:
        """In which way."""
        named = EXPLICIT_CONTEXT if legacy_names.explicit_context_of(self.family) else None
        return self.metadata.variant or named


@dataclass(frozen=True)
class Run:
    """One model under one steering.

    Attributes:
        name: how the run is called: its folder, with more only where two runs would share a name.
        folder: path inside the folder that was read ("." for itself), without the last part where that repeats the model's
            name.
        home: the same folder as a path.
        path: the folder that holds the newest results file.
        model: name of the model.
        plan: the steering plan, "" if unsteered.
        label: a short name given with the steering, or "".
        details: everything else that tells two runs apart (model arguments, vectors, chat template).
        date: of the newest evaluation.
        tasks: newest results by task.
        older: results that newer ones of the same task replaced.
        is_committed: whether the folder is a baseline that a gate renewed, not an evaluation.
        groups: members of each group that was asked for.
        config: the harness's configuration of the newest evaluation, as it saved it, and the versions of its parts.
    """

    name: str
    folder: str
    home: Path
    path: Path
    model: str
    plan: str
    label: str
    details: dict[str, str]
    date: str
    tasks: dict[str, TaskResults] = field(repr=False)
    groups: dict[str, tuple[str, ...]] = field(repr=False)
    older: tuple[TaskResults, ...] = field(default=(), repr=False)
    is_committed: bool = False
    config: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def control(self) -> Control | None:
        """Which kind of control the plan is; None for a plan in its own right and for an unsteered run."""
        return control_of(self.plan)

    @property
    def is_control(self) -> bool:
        """Whether the plan is a control of any kind."""
        return self.control is not None

    @property
    def aliases(self) -> frozenset[str]:
        """What the run may be called besides its name and its model."""
        names = {self.folder, Path(self.folder).name, self.path.name, str(self.path), str(self.home), self.label}
        return frozenset(names - {""} | {self.plan})


def list_runs(runs: Iterable[Run]) -> str:
    """One line per run, for messages."""
    return "\n".join(
        f"  {run.name}: model {short_model(run.model)}, "
        f"{f'plan {run.plan}' if run.plan else 'unsteered'}, {len(run.tasks)} tasks"
        for run in runs
    )


def find_run(runs: Collection[Run], name: str) -> Run:
    """The run that a name means: its own name, else its folder, label, plan ("" is unsteered) or model.

    A model's name means its unsteered run, if it has exactly one.

    Raises:
        ResultsError: no run, or more than one, is meant.
    """
    name = name.rstrip("/")
    readings = (
        [run for run in runs if run.name == name],
        [run for run in runs if name in run.aliases],
        [run for run in runs if name in (run.model, short_model(run.model)) and not run.plan],
        [run for run in runs if name in (run.model, short_model(run.model))],
    )
    meant = next(filter(None, readings), [])
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise ResultsError(f"{name!r} is ambiguous, it may mean any of these runs:\n{list_runs(meant)}")
    raise ResultsError(
        f"no run is called {name!r}; a run is named by its folder, label, plan or model:\n{list_runs(runs)}"
    )


def short_model(model: str) -> str:
    """A model's name without the folders of a local path; hub names stay whole."""
    return Path(model).name if model.startswith(("/", ".", "~")) else model


def damage(error: ValueError, line: int | None = None) -> str:
    """Where and how JSON is damaged, to follow a file's name in a message."""
    if isinstance(error, json.JSONDecodeError):
        return f", line {line or error.lineno}, column {error.colno}: not valid JSON ({error.msg})"
    return f"{f', line {line}' if line else ''}: not text in UTF-8"


def some(names: Iterable[str], n_shown: int = 3) -> str:
    """A list that stays short: `a, b, c and 4 more`."""
    listed = list(names)
    rest = len(listed) - n_shown
    return ", ".join(listed[:n_shown]) + (f" and {rest} more" if rest > 0 else "")
