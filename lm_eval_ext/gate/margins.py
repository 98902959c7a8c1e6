"""Changes of scores by margins: how sure a right or wrong answer is, beside whether it is right.

Many answers flip between two models although neither is better: their margins (of the right option over the best other
one) are near zero. A flip counts 1 then, although it says little, and many flips hide a small loss. Here an answer counts
what it would be right with if its margin moved once more as margins did between the two runs: Phi(margin / s), where s is
the standard deviation of these movements in its task (from their mean size, as of normal ones). The movements' sizes do
not depend on which run is called the candidate, so a permutation of these scores within questions is as exact as that of
right and wrong (`pooled`). What is tested is a little more than accuracy: a candidate that is as often right and less
sure of it loses too (`benchmarks/pooled_power.py` prints how often that is called a loss).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import special

from lm_eval_ext.errors import GateError
from lm_eval_ext.results.answers import MARGIN_METRICS, margin
from lm_eval_ext.results.samples import read_documents

if TYPE_CHECKING:
    from collections.abc import Container

    from numpy.typing import ArrayLike, NDArray

    from lm_eval_ext.gate.measuring import Side
    from lm_eval_ext.results.run import Run


def change_by_margins(before: ArrayLike, after: ArrayLike) -> NDArray[np.float64]:
    """The change of each answer of one task, between -1 and 1.

    Args:
        before, after: [documents] margins of the right option over the best other one.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    moved = math.sqrt(math.pi / 2) * float(np.abs(second - first).mean())
    if moved == 0:
        return np.zeros(first.shape)
    change: NDArray[np.float64] = special.ndtr(second / moved) - special.ndtr(first / moved)
    return change


def by_margins(documents: pd.DataFrame, baseline: Side, candidate: Side) -> pd.DataFrame:
    """The documents with their change by margins, where both runs hold the margin; `flip` keeps that of the score.

    Args:
        documents: of `pooled.pooled_documents`.
        baseline, candidate: whose samples are read.

    Raises:
        GateError: no document has a margin in both.
        ResultsError: damaged samples.
    """
    parts = []
    for (task, metric, of_filter), rows in documents.groupby(["task", "metric", "filter"], sort=False, dropna=False):
        wanted = set(rows["doc_hash"]) if metric in MARGIN_METRICS else set()
        before, after = (
            rows["doc_hash"].map(_margins(side, str(task), str(metric), str(of_filter), wanted)).astype(float)
            for side in (baseline, candidate)
        )
        both = before.notna() & after.notna()
        change = rows["change"].copy()
        if both.any():
            change[both] = change_by_margins(before[both], after[both])
        parts.append(rows.assign(flip=rows["change"], change=change, has_margin=both))
    changed: pd.DataFrame = pd.concat(parts)
    if not changed["has_margin"].any():
        lacking = [side for side in (baseline, candidate) if not _has_margins(side, documents)]
        where = " and ".join(f"{side.run.name!r} ({side.role})" for side in lacking) or "no document of both runs"
        raise GateError(
            f"pooled: scores are margins, and there are none in {where}: log-likelihoods of options, with the right one "
            f"named (metrics {', '.join(MARGIN_METRICS)}). A committed baseline keeps margins where "
            "`lm-eval-ext gate renew` writes it with this gate; else write `scores: answers`"
        )
    return changed


def read_margins(run: Run, task: str, metric: str, of_filter: str, wanted: Container[str]) -> dict[str, float]:
    """Margins by document, of those that hold one.

    Raises:
        ResultsError: damaged samples.
    """
    found = {}
    for sample in read_documents(run, task, wanted):
        if sample.get("filter") == of_filter and (value := margin(sample, metric)) is not None:
            found[str(sample["doc_hash"])] = value
    return found


def _margins(side: Side, task: str, metric: str, of_filter: str, wanted: Container[str]) -> dict[str, float]:
    """The same of a side, averaged over its reruns."""
    runs = [one.run for one in (side, *side.reruns)]
    of_run = [read_margins(run, task, metric, of_filter, wanted) if wanted else {} for run in runs]
    return {key: float(np.mean([one[key] for one in of_run])) for key in of_run[0] if all(key in one for one in of_run)}


def _has_margins(side: Side, documents: pd.DataFrame) -> bool:
    keys = documents.groupby(["task", "metric", "filter"])["doc_hash"]
    return any(
        _margins(side, str(task), str(metric), str(of_filter), set(hashes))
        for (task, metric, of_filter), hashes in keys
        if metric in MARGIN_METRICS
    )
