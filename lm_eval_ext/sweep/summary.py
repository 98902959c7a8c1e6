"""The tables of a sweep: items, and each condition's change with its interval and its rank among the controls."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.results.axes import METRIC
from lm_eval_ext.stats import Interval, cluster_bootstrap, null_band, paired_difference
from lm_eval_ext.sweep.grid import UNSTEERED, Condition
from lm_eval_ext.sweep.questions import Question, Questions, margin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lm_eval_ext.steering.controls import Control
    from lm_eval_ext.sweep.questions import ScoredTree
    from lm_eval_ext.sweep.store import Store

#: Resamples of each interval (our default; few, as a grid has many intervals).
RESAMPLES = 2_000

ENGLISH = "en"

#: A score besides the tasks' own: the right option's share of the likelihood of all options. It changes by less than a whole
#: answer, and so shows more on few questions.
PROBABILITY = "probability"

#: Columns of `items.parquet`; the tasks' own metrics follow, NaN where a task lacks one.
ITEM_COLUMNS = {
    "condition": "the steering plan, with its positions; empty for the unsteered model",
    "task": "name of the harness's task",
    "family": "common name of the task and its counterparts in other languages",
    "language": "code of the question's language",
    "question_id": "the id that the question has in every language",
    "doc_id": "number of the document in its task",
    "margin": "log-likelihood of the right option minus that of the best other one, in nats",
    "chosen": "index of the option of highest log-likelihood",
}


def items(
    questions: Questions,
    trees: Sequence[ScoredTree],
    conditions: Sequence[Condition],
    store: Store,
    progress: Callable[[int], object] = lambda done: None,
) -> pd.DataFrame:
    """One row per condition and question: `ITEM_COLUMNS`, `PROBABILITY`, and a column for each metric (0 or 1)."""
    question_columns = pd.DataFrame(
        {
            "task": [question.task for question in questions.questions],
            "family": [question.family for question in questions.questions],
            "language": [question.language for question in questions.questions],
            "question_id": [question.question_id for question in questions.questions],
            "doc_id": [question.doc_id for question in questions.questions],
        }
    )
    frames = []
    for condition in conditions:
        values = np.full(len(questions.instances), np.nan)
        for tree in trees:
            tree_values = store.get(condition.name, tree.key)
            assert tree_values is not None  # the engine has run
            for indices, value in zip(tree.requests, tree_values, strict=True):
                values[list(indices)] = value
        scores = [
            _scores(questions, question, values[list(question.instances)].tolist()) for question in questions.questions
        ]
        frames.append(pd.concat([question_columns, pd.DataFrame(scores)], axis=1).assign(condition=condition.name))
        progress(1)
    frame = pd.concat(frames, ignore_index=True)
    metrics = [name for name in frame if name not in ITEM_COLUMNS]
    names = ["condition", "task", "family", "language", "question_id"]
    tidy: pd.DataFrame = frame[[*ITEM_COLUMNS, *metrics]].astype(dict.fromkeys(names, "category"))
    return tidy


def _scores(questions: Questions, question: Question, values: list[float]) -> dict[str, float]:
    return {
        "margin": margin(question, values),
        "chosen": int(np.argmax(values[: question.n_options])),
        PROBABILITY: probability(question, values),
        **questions.score(question, values),
    }


def probability(question: Question, values: Sequence[float]) -> float:
    """Of the right option among the options, by their log-likelihoods; NaN where no option is right."""
    if question.gold is None:
        return math.nan
    likelihoods = np.exp(np.asarray(values[: question.n_options]) - max(values[: question.n_options]))
    return float(likelihoods[question.gold] / likelihoods.sum())


def summarise(
    frame: pd.DataFrame,
    conditions: Iterable[Condition],
    *,
    metric: str = METRIC,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """One row per condition, family and language (and the average over all but English), against the unsteered model.

    Columns: `condition`, `kinds`, `layer` and `gamma` (of a plan of one vector), `position`, `control`, `of` (what it is a
    control of), `family`, `language`, `metric`, `n`, `score`, `unsteered`, `change` with `low` and `high` (shares; the
    interval is of a bootstrap clustered by question id), `margin_change` (nats); then, where a plan has random controls,
    `null_low`, `null_high`, `null_coverage`, `null_n` and `null_p` (see `stats.nulls.null_band`), the same with `shuffled_`
    where the vector file has fits of shuffled pairs, and the changes of the controls `other_language` and `negated`.

    Args:
        frame: of `items`.
        conditions: of the grid.
        metric: what is compared; families that lack it are left out.
        level, resamples: of the intervals.
    """
    rows: list[dict[str, Any]] = []
    by_name = {condition.name: condition for condition in conditions}
    for family, part in frame.groupby("family", observed=True, sort=False):
        if metric not in part or part[metric].isna().all():
            continue
        by_condition = dict(list(part.groupby("condition", observed=True, sort=False)))
        base = by_condition[UNSTEERED]
        for name, steered in by_condition.items():
            rows += _changes(base, steered, by_name[str(name)], str(family), metric, level, resamples)
    summary = pd.DataFrame(rows)
    return _with_controls(summary) if len(summary) else summary


def _changes(
    base: pd.DataFrame,
    steered: pd.DataFrame,
    condition: Condition,
    family: str,
    metric: str,
    level: float,
    resamples: int,
) -> list[dict[str, Any]]:
    languages = steered["language"].astype(str).to_numpy()
    drawn = cluster_bootstrap(
        paired_difference(base[metric], steered[metric]),
        steered["question_id"].astype(str),
        languages,
        resamples=resamples,
    )
    means = pd.DataFrame(
        {
            "language": languages,
            "score": steered[metric].to_numpy(),
            "unsteered": base[metric].to_numpy(),
            "margin_change": steered["margin"].to_numpy() - base["margin"].to_numpy(),
        }
    ).groupby("language", sort=False)
    by_language, counts = means.mean(), means.size()
    term = condition.plan.interventions[0] if len(condition.plan.interventions) == 1 else None
    shared = {
        "condition": condition.name,
        "kinds": condition.kinds,
        "layer": int(term.first.value) if term else None,
        "gamma": term.gamma.value if term else None,
        "position": "+".join(str(part.position) for part in condition.plan.interventions),
        "control": condition.control,
        "of": condition.of,
        "family": family,
        "metric": metric,
    }
    rows = []
    non_english = [name for name in by_language.index if name != ENGLISH]
    for name, codes in [
        *((name, [name]) for name in by_language.index),
        *([(AVERAGE, non_english)] if non_english else []),
    ]:
        ends = drawn.interval(codes, level) if condition.plan else Interval(0.0, 0.0, 0.0)
        rows.append(
            {
                **shared,
                "language": name,
                "n": int(counts[codes].sum()),
                **by_language.loc[codes].mean().to_dict(),  # languages have equal weight
                **dict(zip(("change", "low", "high"), ends, strict=True)),
            }
        )
    return rows


def _with_controls(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary with the columns that place each plan's change among those of its controls."""
    keys = ["of", "family", "language"]
    controls = summary[summary["control"].notna()]
    for prefix, name in _BANDS.items():
        of_kind = controls[controls["control"] == name]
        if name == "random" or len(of_kind):
            summary = pd.concat([summary, _places(summary, of_kind, keys, prefix)], axis=1)
    for name in ("other_language", "negated"):
        changes = controls[controls["control"] == name].set_index(keys)["change"]
        index = pd.MultiIndex.from_frame(summary[keys])
        summary[name] = changes.reindex(index).to_numpy() if len(changes) else np.nan
        summary.loc[summary["control"].notna(), name] = np.nan
    return summary


#: Columns of the bands, and the kind of control that they are of.
_BANDS: dict[str, Control] = {"null": "random", "shuffled": "shuffled"}


def _places(summary: pd.DataFrame, controls: pd.DataFrame, keys: list[str], prefix: str) -> pd.DataFrame:
    """Where the change of each plan lies among those of its controls of one kind; see `summarise`."""
    bands = {key: group["change"].tolist() for key, group in controls.groupby(keys)}
    names = ["low", "high", "coverage", "n", "p"]
    rows: list[dict[str, float]] = []
    for *key, change, control in zip(
        *(summary[key] for key in keys), summary["change"], summary["control"], strict=True
    ):
        values = None if isinstance(control, str) else bands.get(tuple(key))
        band = null_band(values, change) if values else None
        rows.append({} if band is None else {f"{prefix}_{name}": getattr(band, name) for name in names})
    columns = [f"{prefix}_{name}" for name in names]
    placed: pd.DataFrame = pd.DataFrame(rows, index=summary.index, columns=columns)
    return placed
