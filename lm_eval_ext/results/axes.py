"""What an axis of the plane is: the tasks of one family, and the score that is read from their samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_eval_ext.errors import ResultsError
from lm_eval_ext.languages import LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Collection

    from lm_eval_ext.results.runs import Run

_CLOZE = "_cloze"
TRANSFER = ("transfer_mini", "gmmlu", "gmmlu_ca", "gmmlu_cs", "gmmlu_dev", "bmlama", "bmlama_dev")
LOCALIZATION = (
    "localization_mini",
    "localization_mini_ctx",
    "blend_decon",
    "blend_decon_core",
    "blend_decon_dev",
    "blend_ctx",
)

#: Families that score texts without the suffix that says so.
_TEXTS = ("bmlama", "bmlama_dev")

#: Our default; every figure and table names the score that was used.
METRIC = "acc"

#: The English bias of the choices that a metric makes.
BIAS_OF = {"acc": "english_bias", "acc_norm": "english_bias_norm"}

_RULES = {
    (True, "acc"): "option text with the highest log-likelihood",
    (True, "acc_norm"): "option text with the highest log-likelihood per character",
    (True, "acc_bytes"): "option text with the highest log-likelihood per byte",
    (True, "acc_prior"): "option text with the highest log-likelihood without a question (a control)",
    (True, "acc_mutual_info"): "option text whose log-likelihood the question raises most",
    (False, "acc"): "most likely letter",
}


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        name: the family, group or task that was asked for.
        tasks: its tasks, sorted.
        metric: the per-document score.
        filter: the harness filter whose score is read; None until the samples say which one there is.
    """

    name: str
    tasks: tuple[str, ...]
    metric: str
    filter: str | None = None

    @property
    def subject(self) -> str | None:
        """What one of our own families measures: transfer or localization."""
        family = self.name.removesuffix(_CLOZE)
        return "transfer" if family in TRANSFER else "localization" if family in LOCALIZATION else None

    @property
    def title(self) -> str:
        """The subject, or the name of a task that is not ours."""
        return self.subject or self.name

    @property
    def score(self) -> str:
        """The metric, with its filter where there is one (the harness calls none `none`)."""
        return self.metric if self.filter in (None, "none") else f"{self.metric},{self.filter}"

    @property
    def rule(self) -> str:
        """How the score decides, in words where they are known."""
        texts = self.name.endswith(_CLOZE) or self.name in _TEXTS
        rule = _RULES.get((texts, self.metric)) if self.subject else None
        return f"{self.score}: {rule}" if rule else self.score


def find_axis(name: str, runs: Collection[Run], score: str = METRIC) -> Axis:
    """The axis that a name means: a task, the tasks of a group, or of a family with a task per language.

    `transfer_mini` also finds `transfer_mini_ko`, and `transfer_mini_cloze` finds `transfer_mini_ko_cloze`, where the
    languages were evaluated one by one. `score` is a metric, or `metric,filter` as in the harness's tables.

    Raises:
        ResultsError: nothing in the results has this name.
    """
    tasks = {task for run in runs for task in _members(name, run)}
    if not tasks:
        raise ResultsError(f"no results for {name!r}; an axis is a task, group or family, here:\n{list_tasks(runs)}")
    metric, _, score_filter = score.partition(",")
    return Axis(name, tuple(sorted(tasks)), metric, score_filter or None)


def default_axis(option: str, families: Collection[str], runs: Collection[Run]) -> str:
    """The one known family that the results hold; `option` is what to write where there is none, or a choice.

    Raises:
        ResultsError: there is none, or a choice.
    """
    names = [name for family in families for name in (family, family + _CLOZE)]
    present = [name for name in names if any(_members(name, run) for run in runs)]
    if len(present) == 1:
        return present[0]
    raise ResultsError(
        f"the axis {option} must be named: of {', '.join(families)} (each also with {_CLOZE}) the results hold "
        f"{' and '.join(present) or 'none'}. There are:\n{list_tasks(runs)}"
    )


def family_of(task: str) -> str:
    """A task's name without its language: `blend_decon_ko_cloze` is of `blend_decon_cloze`."""
    return "_".join(token for token in task.split("_") if token not in LANGUAGES)


def list_tasks(runs: Collection[Run]) -> str:
    """One line per family of tasks and per group, with the runs that have it, for messages."""
    holders: dict[str, set[str]] = {}
    for run in runs:
        for name in {*map(family_of, run.tasks), *run.groups}:
            holders.setdefault(name, set()).add(run.name)
    return "\n".join(
        f"  {name}: {'every run' if len(names) == len(runs) else ', '.join(sorted(names))}"
        for name, names in sorted(holders.items())
    )


def _members(name: str, run: Run) -> set[str]:
    """Tasks of one run that a name means."""
    if name in run.tasks:
        return {name}
    if name in run.groups:
        # `seen` guards against a group that, in a damaged file, holds itself.
        pending, seen = [name], set[str]()
        while pending:
            group = pending.pop()
            if group not in seen:
                seen.add(group)
                pending += run.groups.get(group, ())
        return seen & run.tasks.keys()
    base, suffix = (name.removesuffix(_CLOZE), _CLOZE) if name.endswith(_CLOZE) else (name, "")
    return {task for code in LANGUAGES if (task := f"{base}_{code}{suffix}") in run.tasks}
