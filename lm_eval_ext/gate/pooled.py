"""One test over everything that the rules speak of: does the candidate lose anything at all?

A loss of half a point is too small for any single rule; the flips of all tasks together show it (Kübler et al. 2026). The
documents that changed are counted as gained or lost and held against a coin: the one-sided exact McNemar test. Languages
of one question change together, so a question's gains and losses are summed and it is the sum's sign that is tossed; the
p-value stays exact. Scores other than 0 and 1 are permuted by Monte Carlo instead, as are margins, where the gate asks for
them (`margins`).

The test is hierarchical: all together, then each axis, then each language of an axis, a part being looked at only where
the whole lost. A part with k of the K languages of all axes has its p-value multiplied by K / k and no p-value is below
that of the whole, which keeps the false alarms over all parts below alpha (Meinshausen 2008, Biometrika 95(2)).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from lm_eval_ext.gate.margins import by_margins
from lm_eval_ext.gate.verdicts import PooledResult, PooledTest
from lm_eval_ext.stats import sign_flip, smallest_difference

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lm_eval_ext.gate.measuring import RulePair, Side
    from lm_eval_ext.gate.rules import Gate, Waiver


def pool(gate: Gate, paired: Iterable[RulePair], baseline: Side, candidate: Side) -> PooledResult:
    """The pooled test over the documents of all rules, but for those in which a loss is waived.

    Args:
        gate: what is asked of it.
        paired: the scores.
        baseline, candidate: whose margins are read where the gate asks for them.

    Raises:
        GateError: margins are asked for and there are none.
        ResultsError: damaged samples.
    """
    documents = pooled_documents(paired)
    is_waived = _waived(gate.waivers, documents)
    if not is_waived.all():
        documents = documents[~is_waived]
    if gate.pooled.scores == "margins":
        documents = by_margins(documents, baseline, candidate)
    pooled = pool_changes(gate, documents)
    return replace(pooled, n_waived=0 if is_waived.all() else int(is_waived.sum()))


def _waived(waivers: Iterable[Waiver], documents: pd.DataFrame) -> pd.Series[bool]:
    """Documents in which a loss is known and waived: that loss is not shown again in the whole."""
    waived: pd.Series[bool] = pd.Series(False, index=documents.index)
    for waiver in waivers:
        is_meant = (documents["axis"] == waiver.axis) & documents["named_metric"].isin(
            [waiver.metric] if waiver.metric else documents["named_metric"]
        )
        waived |= is_meant & (documents["language"].isin(waiver.languages) if waiver.languages else True)
    return waived


def pooled_documents(paired: Iterable[RulePair]) -> pd.DataFrame:
    """The documents of all rules with the columns of `pool_changes`; each once, with the metric that is named first."""
    metrics: dict[str, str] = {}
    frames = []
    for one in paired:
        if one.rule.kind == "must-pass":  # a choice of items, not what the suite measures
            continue
        rows = one.pair.frame
        for task in rows["task"].unique():
            metrics.setdefault(task, one.axis.score)
        rows = rows[rows["task"].map(metrics) == one.axis.score]
        named = {"axis": one.rule.axis, "named_metric": one.rule.metric, "filter": one.axis.filter}
        # Where less is better, the score is another one than that of the margin.
        named["metric"] = "" if one.is_lower else one.axis.metric
        frames.append(rows[["task", "doc_hash", "copy", "language", "question", "change"]].assign(**named))
    documents: pd.DataFrame = pd.concat(frames, ignore_index=True).drop_duplicates(["task", "doc_hash", "copy"])
    return documents


def pool_changes(gate: Gate, documents: pd.DataFrame) -> PooledResult:
    """The pooled test on changes of scores.

    Args:
        gate: what is asked of the pooled test, and the resamples and the seed of a permutation.
        documents: one row per document: axis, language, question (the cluster) and change, positive is better; with those
            of `by_margins` also `flip`, the change of the score itself, and `has_margin`.
    """
    suite = _test(gate, documents, "all")
    of_axis = {str(axis): documents[documents["axis"] == axis] for axis in documents["axis"].unique()}
    leaves = {
        axis: {str(code): rows[rows["language"] == code] for code in rows["language"].unique()}
        for axis, rows in of_axis.items()
    }
    total = sum(map(len, leaves.values()))
    parts = []
    for axis, rows in of_axis.items():
        n_languages = len(leaves[axis])
        whole = _test(gate, rows, axis, total / n_languages, suite.p)
        parts.append(whole)
        if n_languages > 1:
            parts += [_test(gate, leaf, f"{axis} {code}", total, whole.p) for code, leaf in leaves[axis].items()]
    squared = documents["change"] ** 2
    discordant = float(squared.mean())
    # Variance of the sum of all changes, by question and as if documents were independent.
    by_question = float((documents.groupby("question")["change"].sum() ** 2).sum())
    n = suite.n / (by_question / float(squared.sum())) if by_question else suite.questions
    smallest = smallest_difference(
        min(max(n, suite.questions), suite.n), discordant, alpha=gate.pooled.alpha, power=gate.pooled.power
    )
    n_margins = int(documents["has_margin"].sum()) if "has_margin" in documents else 0
    return PooledResult(gate.pooled, suite, tuple(parts), smallest, n_margins=n_margins)


def _test(gate: Gate, rows: pd.DataFrame, name: str, factor: float = 1.0, at_least: float = 0.0) -> PooledTest:
    """One level of the hierarchy; `factor` and `at_least` correct its p-value."""
    changed = rows[rows["change"] != 0]
    sums = changed.groupby("question")["change"].sum()
    flips = rows["flip" if "flip" in rows else "change"]
    p = sign_flip(sums, "less", resamples=gate.resamples, seed=gate.seed, exact=True)
    return PooledTest(
        name=name,
        n=len(rows),
        questions=int(rows["question"].nunique()),
        gains=int((flips > 0).sum()),
        losses=int((flips < 0).sum()),
        change=float(rows["change"].mean()),
        p=min(1.0, max(p * factor, at_least)),
    )
