"""The plan that a sweep recommends, and the rule that chose it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.steering.plan import Plan
from lm_eval_ext.sweep.settings import PAIR_LAYERS

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    import pandas as pd

    from lm_eval_ext.sweep.questions import Question

#: The kinds of a surgical plan: which axis chooses each.
SURGICAL = {"en": "transfer", "loc": "localization"}

RULE = (
    "Of each kind the layers with the largest average change on its axis (en: transfer, loc: localization), each at its "
    "best gamma; of their combinations with EN no deeper than LOC the one with the largest sum of both average changes; "
    "of equals the first in the grid. Averages are over all languages but English, on development splits only. Our "
    "default: the paper chooses layers on a development split too, its rule is not known."
)


@dataclass(frozen=True)
class Axes:
    """The families of a sweep on the transfer and on the localization axis; None where there is none."""

    transfer: str | None
    localization: str | None

    @classmethod
    def of(cls, questions: Iterable[Question], families: Container[str]) -> Axes:
        """The first family of each axis among development questions: a plan is never chosen on test questions.

        Args:
            questions: of the sweep; their tasks say axis, split and family.
            families: those that were scored.
        """
        first: dict[str | None, str] = {}
        for question in questions:
            if question.split == "dev" and question.family in families:
                first.setdefault(question.axis, question.family)
        return cls(first.get("transfer"), first.get("localization"))

    def __getitem__(self, subject: str) -> str | None:
        return self.transfer if subject == "transfer" else self.localization


def best_by_layer(summary: pd.DataFrame, kind: str, family: str, n: int = PAIR_LAYERS) -> list[Plan]:
    """The plans of one vector with the largest average change: each of the `n` best layers at its best gamma."""
    plans = summary[
        (summary["kinds"] == kind)
        & summary["control"].isna()
        & (summary["family"] == family)
        & (summary["language"] == AVERAGE)
    ]
    ordered = plans.sort_values("change", ascending=False, kind="stable").drop_duplicates("layer")
    return [Plan.parse(name) for name in ordered["condition"].head(n)]


def reported(summary: pd.DataFrame, axes: Axes) -> list[Plan]:
    """The plans that are reported: the best of each family and kind, and the chosen one."""
    average = summary[(summary["language"] == AVERAGE) & summary["control"].isna() & (summary["condition"] != "")]
    best_plans = average.loc[average.groupby(["family", "kinds"], sort=False)["change"].idxmax(), "condition"].tolist()
    chosen = choose(summary, axes) if axes.transfer and axes.localization else None
    return [Plan.parse(name) for name in dict.fromkeys([*best_plans, *([chosen["steer"]] if chosen else [])])]


def choose(summary: pd.DataFrame, axes: Axes) -> dict[str, Any] | None:
    """The pair with the largest sum of both average changes, with its numbers; None where no pair was evaluated.

    Its change is biased upwards, as it is the largest of many on these questions: evaluate the plan on the test split.
    """
    average = summary[(summary["language"] == AVERAGE) & summary["control"].isna()]
    pairs = average[average["kinds"] == "+".join(SURGICAL)]
    changes = {subject: pairs[pairs["family"] == axes[subject]].set_index("condition") for subject in SURGICAL.values()}
    together = changes["transfer"]["change"] + changes["localization"]["change"]
    together = together.reindex(changes["transfer"].index).dropna()
    if together.empty:
        return None
    name = str(together.idxmax())
    return {
        "steer": name,
        "rule": RULE,
        "candidates": len(together),
        "chosen_on": {subject: axes[subject] for subject in SURGICAL.values()},
        "changes": {subject: _numbers(of_axis.loc[name]) for subject, of_axis in changes.items()},
    }


def _numbers(row: pd.Series[Any]) -> dict[str, Any]:
    names = ["metric", "n", "unsteered", "score", "change", "low", "high", "null_low", "null_high", "null_n"]
    return {
        name: value if isinstance(value, str) else int(value) if name in ("n", "null_n") else round(float(value), 4)
        for name in names
        if (value := row[name]) == value
    }
