"""Confirming a chosen plan, once, on questions that chose nothing: its change, its controls, its share of the gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lm_eval_ext.console import notes
from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.stats import cluster_bootstrap, recovery, resample_together
from lm_eval_ext.steering.plan import Plan
from lm_eval_ext.sweep.cells import Cells
from lm_eval_ext.sweep.grid import Condition
from lm_eval_ext.sweep.summary import ENGLISH, PROBABILITY, summarise

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lm_eval_ext.backends.base import SteeredBackend
    from lm_eval_ext.steering.vectors import VectorSet
    from lm_eval_ext.sweep.grid import Grid
    from lm_eval_ext.sweep.processes import Processes
    from lm_eval_ext.sweep.questions import Questions

#: The scores that are confirmed.
METRICS = ("acc", PROBABILITY)


@dataclass(frozen=True)
class Confirmation:
    """The result on the test split.

    Attributes:
        summary: changes of the plan and of its controls (`sweep.summary.summarise`), for both of `METRICS`.
        closed: share of the gap between the questions without and with the country that a plan closes, by plan, family,
            metric and language: `gap`, `closed` with `low` and `high`, and `reason` where it is undefined. Empty where no
            questions with the country were given.
    """

    summary: pd.DataFrame
    closed: pd.DataFrame

    def of_plan(self, metric: str = "acc") -> pd.DataFrame:
        """The rows of the plans themselves, averages over languages first."""
        rows = self.summary[
            (self.summary["metric"] == metric) & self.summary["control"].isna() & (self.summary["condition"] != "")
        ]
        ordered: pd.DataFrame = pd.concat([rows[rows["language"] == AVERAGE], rows[rows["language"] != AVERAGE]])
        return ordered

    def table(self) -> pd.DataFrame:
        """The rows of the plans with the share of the gap that they close: `gap`, `closed`, its ends and `reason`."""
        rows = pd.concat([self.of_plan(metric) for metric in METRICS])
        if not len(self.closed):
            return rows
        share = self.closed.rename(columns={"plan": "condition", "low": "closed_low", "high": "closed_high"})
        keys = ["condition", "family", "metric", "language"]
        joined: pd.DataFrame = rows.merge(share.drop(columns=["n", "regained"]), on=keys, how="left")
        return joined


def confirm(
    model: SteeredBackend,
    questions: Questions,
    named: Questions | None,
    vectors: VectorSet,
    plans: Sequence[Plan],
    grid: Grid,
    *,
    folder: Path,
    prefix: str,
    processes: Processes,
    resamples: int,
) -> Confirmation:
    """Score plans, their controls and the unsteered model on test questions.

    Args:
        model: of the questions.
        questions: that chose nothing.
        named: the same questions with the country named; None without.
        vectors, plans: to confirm.
        grid: says which controls each plan has.
        folder, prefix: for what is computed, in folders whose names begin so.
        processes: of the launch.
        resamples: of the bootstrap.
    """
    console = notes()
    conditions = [Condition(Plan())]
    for plan in plans:
        conditions += [Condition(plan, of=str(plan)), *grid.controls(plan)]
    cells = Cells(model, questions, vectors, folder / f"{prefix}test", processes, console)
    cells.compute(conditions, "Confirming")
    frame = cells.items(conditions).assign(id=questions.ids() * len(conditions))
    cells.store.close()
    summaries = [
        summarise(frame, conditions, metric=metric, resamples=resamples) for metric in METRICS if metric in frame
    ]
    closed = pd.DataFrame()
    if named is not None:
        cells = Cells(model, named, vectors, folder / f"{prefix}named", processes, console)
        cells.compute(conditions[:1], "With the country named")
        upper = cells.items(conditions[:1]).assign(id=named.ids())
        cells.store.close()
        closed = pd.concat([gap_closed(frame, upper, str(plan), resamples) for plan in plans], ignore_index=True)
    return Confirmation(pd.concat(summaries, ignore_index=True), closed)


def gap_closed(items: pd.DataFrame, named: pd.DataFrame, plan: str, resamples: int) -> pd.DataFrame:
    """(steered - unsteered) / (named - unsteered), with its interval: the share of the gap that a plan closes.

    Args:
        items: of the plan and of the unsteered model on the questions without the country (`sweep.summary.items`, and a
            column `id`).
        named: of the unsteered model on the questions with it, likewise.
        plan: the condition.
        resamples: of the bootstrap, which draws questions.
    """
    keys = ["language", "id"]
    columns = [*keys, *METRICS]
    text = dict.fromkeys(keys, str)
    base = items[items["condition"] == ""].astype({**text, "question_id": str})[["family", "question_id", *columns]]
    steered = items[items["condition"] == plan].astype(text)[columns]
    joined = base.merge(steered, on=keys, suffixes=("", "_steered")).merge(
        named.astype(text)[columns], on=keys, suffixes=("", "_named")
    )
    rows: list[dict[str, Any]] = []
    for family, part in joined.groupby("family", observed=True, sort=False):
        languages = list(dict.fromkeys(part["language"]))
        others = [code for code in languages if code != ENGLISH]
        for metric in METRICS:
            lost, regained = (
                cluster_bootstrap(part[f"{metric}_{suffix}"] - part[metric], part["question_id"], part["language"])
                for suffix in ("named", "steered")
            )
            groups = [*([(AVERAGE, others)] if others else []), *((code, [code]) for code in languages)]
            for name, codes in groups:
                parts = np.column_stack([drawn.contributions(codes) for drawn in (lost, regained)])
                draws = resample_together(parts, resamples=resamples)
                gap, back = (float(drawn.interval(codes).value) for drawn in (lost, regained))
                share = recovery(gap, back, draws[:, 0], draws[:, 1])
                rows.append(
                    {
                        "plan": plan,
                        "family": family,
                        "metric": metric,
                        "language": name,
                        "n": int(part["language"].isin(codes).sum()),
                        "gap": gap,
                        "regained": back,
                        "closed": share.value,
                        "low": share.low,
                        "high": share.high,
                        "reason": share.reason,
                    }
                )
    closed: pd.DataFrame = pd.DataFrame(rows)
    return closed
