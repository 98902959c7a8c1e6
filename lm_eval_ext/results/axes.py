"""What an axis of the plane is: the tasks of one family, and the score that is read from their samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_eval_ext.errors import ResultsError
from lm_eval_ext.results import legacy_names

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from lm_eval_ext.results.run import Run, TaskResults
    from lm_eval_ext.results.where import Condition

#: Our default; every figure and table names the score that was used.
METRIC = "acc"

#: The English bias of the choices that a metric makes.
BIAS_OF = {"acc": "english_bias", "acc_norm": "english_bias_norm"}

_RULES = {
    ("texts", "acc"): "option text with the highest log-likelihood",
    ("texts", "acc_norm"): "option text with the highest log-likelihood per character",
    ("texts", "acc_bytes"): "option text with the highest log-likelihood per byte",
    ("texts", "acc_prior"): "option text with the highest log-likelihood without a question (a control)",
    ("texts", "acc_mutual_info"): "option text whose log-likelihood the question raises most",
    ("letters", "acc"): "most likely letter",
}


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        name: the family, group or task that was asked for.
        tasks: its tasks, sorted.
        metric: the per-document score.
        filter: the harness filter whose score is read; None until the samples say which one there is.
        subject: what the tasks say that they measure, `transfer` or `localization`; None where they do not say one.
        form: `letters` or `texts`, where they say it.
        where: conditions on the documents; all are read where there are none.
    """

    name: str
    tasks: tuple[str, ...]
    metric: str
    filter: str | None = None
    subject: str | None = None
    form: str | None = None
    where: tuple[Condition, ...] = ()

    @property
    def title(self) -> str:
        """The subject, or the name where the tasks say none."""
        return self.subject or self.name

    @property
    def score(self) -> str:
        """The metric, with its filter where there is one (the harness calls none `none`)."""
        return self.metric if self.filter in (None, "none") else f"{self.metric},{self.filter}"

    @property
    def rule(self) -> str:
        """How the score decides, in words where they are known."""
        rule = _RULES.get((self.form or "", self.metric))
        return f"{self.score}: {rule}" if rule else self.score


def find_axis(name: str, runs: Collection[Run], score: str | None = None) -> Axis:
    """The axis that a name means: a task, the tasks of a group, or of a family with a task per language.

    `transfer_mini` also finds `transfer_mini_ko`, where the languages were evaluated one by one. `score` is a metric, or
    `metric,filter` as in the harness's tables; by default what all the tasks say, else `METRIC`.

    Raises:
        ResultsError: nothing in the results has this name.
        DataError: a task's metadata is not valid.
    """
    records = [run.tasks[task] for run in runs for task in _members(name, run)]
    if not records:
        raise ResultsError(f"no results for {name!r}; an axis is a task, group or family, here:\n{list_tasks(runs)}")
    usual = _common(((record.task, record.metadata.metric) for record in records), METRIC)
    metric, _, score_filter = (score or usual or METRIC).partition(",")
    return Axis(
        name,
        tuple(sorted({record.task for record in records})),
        metric,
        score_filter or None,
        subject=_common(((record.task, record.metadata.axis) for record in records), legacy_names.axis(name)),
        form=_common(((record.task, record.metadata.form) for record in records), legacy_names.form(name)),
    )


def default_axis(option: str, subject: str, runs: Collection[Run]) -> str:
    """The one family of an axis that the results hold.

    Test questions go before development ones, and a family before its variants (such as the country named).

    Args:
        option: what to write where there is none, or a choice: `--x`.
        subject: `transfer` or `localization`.
        runs: where to look.

    Raises:
        ResultsError: there is none, or a choice.
        DataError: a task's metadata is not valid.
    """
    ranks: dict[str, tuple[bool, bool]] = {}
    for record in (record for run in runs for record in run.tasks.values()):
        if record.axis == subject:
            ranks.setdefault(record.family, (record.variant_of is not None, record.split == "dev"))
    best = min(ranks.values(), default=None)
    present = sorted(family for family, rank in ranks.items() if rank == best)
    if len(present) == 1:
        return present[0]
    held = (
        f"the {subject} families {' and '.join(present)}" if present else f"no task with the metadata axis: {subject}"
    )
    raise ResultsError(f"the axis {option} must be named: the results hold {held}. There are:\n{list_tasks(runs)}")


def find_variant(family: str, variant: str, runs: Collection[Run]) -> str | None:
    """The family that asks the questions of another one in a way such as `explicit_context`; None where there is none."""
    families = {
        record.family
        for run in runs
        for record in run.tasks.values()
        if record.variant_of == family and record.variant == variant
    }
    return min(families, default=None)


def list_tasks(runs: Collection[Run]) -> str:
    """One line per family of tasks and per group, with the runs that have it, for messages."""
    holders: dict[str, set[str]] = {}
    for run in runs:
        for name in {*(record.family for record in run.tasks.values()), *run.groups}:
            holders.setdefault(name, set()).add(run.name)
    return "\n".join(
        f"  {name}: {'every run' if len(names) == len(runs) else ', '.join(sorted(names))}"
        for name, names in sorted(holders.items())
    )


def records_of(family: str, run: Run) -> list[TaskResults]:
    """The tasks of a family, or the task of this name, in one run."""
    return [record for record in run.tasks.values() if family in (record.task, record.family)]


def _common(said: Iterable[tuple[str, str | None]], otherwise: str | None) -> str | None:
    """What all tasks say alike in any run; `otherwise` where none says anything."""
    of_task: dict[str, str | None] = {}
    for task, value in said:
        of_task[task] = value or of_task.get(task)
    values = set(of_task.values())
    if values == {None}:
        return otherwise
    return values.pop() if len(values) == 1 else None


def _members(name: str, run: Run) -> set[str]:
    """Tasks of one run that a name means."""
    if name in run.tasks:
        return {name}
    declared = {task for task, record in run.tasks.items() if record.metadata.family == name}
    if name not in run.groups:
        named = legacy_names.tasks(name)
        return declared | {task for task, record in run.tasks.items() if task in named and not record.metadata.family}
    # `seen` guards against a group that, in a damaged file, holds itself.
    pending, seen = [name], set[str]()
    while pending:
        group = pending.pop()
        if group not in seen:
            seen.add(group)
            pending += run.groups.get(group, ())
    return declared | (seen & run.tasks.keys())
