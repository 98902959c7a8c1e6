"""Two runs on the same documents.

Documents are paired by task and content (the harness's document hash), never by position. Nothing incomparable is
averaged in silence: another task version is an error; documents that only one run has, other prompts and missing
languages are named.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd

from lm_eval_ext.errors import ResultsError
from lm_eval_ext.results import where
from lm_eval_ext.results.axes import BIAS_OF, Axis
from lm_eval_ext.results.run import Run, some
from lm_eval_ext.results.samples import read_samples
from lm_eval_ext.stats import ClusterBootstrap, JointShift, cluster_bootstrap, paired_difference, sign_flip

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

#: The stratum of documents that have no language.
NO_LANGUAGE = "all"

_KEY = ["task", "doc_hash", "copy"]


@dataclass(frozen=True)
class Scores:
    """Both axes of one run, one row per document.

    Columns: task, doc_hash and copy (the key), language, question, prompt_hash, value, bias (NaN where not scored).
    """

    run: Run
    axes: tuple[Axis, Axis]
    frames: tuple[pd.DataFrame, pd.DataFrame]

    @classmethod
    def read(cls, run: Run, axes: tuple[Axis, Axis]) -> Scores:
        """Read the samples of both axes; the axes come back with the filter that was read.

        Raises:
            ResultsError: missing or damaged samples, no such score, or languages for some documents only.
        """
        (x, x_frame), (y, y_frame) = (read_axis(run, axis) for axis in axes)
        return cls(run, (x, y), (x_frame, y_frame))


def read_ahead(runs: Iterable[Run], axes: tuple[Axis, Axis]) -> Iterator[Scores]:
    """The scores of many runs in turn; the next one is read while the caller works on this one."""
    with ThreadPoolExecutor(1) as reader:
        pending: deque[Future[Scores]] = deque()
        try:
            for run in runs:
                pending.append(reader.submit(Scores.read, run, axes))
                if len(pending) > 1:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


@dataclass(frozen=True)
class Paired:
    """One score of two runs on the documents that both have, with its bootstrap."""

    frame: pd.DataFrame
    bootstrap: ClusterBootstrap

    @classmethod
    def of(
        cls, before: pd.DataFrame, after: pd.DataFrame, score: str, *, resamples: int, seed: Sequence[int]
    ) -> Paired | None:
        """Pair the column `score` of two frames of `Scores`; None where no document has it in both."""
        merged = _side_by_side(
            before[[*_KEY, "language", "question", score]].rename(columns={score: "before"}),
            after[[*_KEY, score]].rename(columns={score: "after"}),
        ).dropna(subset=["before", "after"])
        if merged.empty:
            return None
        change = paired_difference(merged["before"], merged["after"])
        bootstrap = cluster_bootstrap(change, merged["question"], merged["language"], resamples=resamples, seed=seed)
        return cls(merged.assign(change=change), bootstrap)

    def summary(self, strata: Sequence[str], level: float) -> dict[str, float] | None:
        """What is said of the macro average over some languages; None where one of them has no document."""
        strata = self.strata(strata)
        if not set(strata) <= set(self.bootstrap.strata):
            return None
        rows = self._by_language.loc[strata]
        interval = self.bootstrap.interval(strata, level)
        return {
            "baseline": float(rows["before"].mean()),
            "run": float(rows["after"].mean()),
            "change": interval.value,
            "low": interval.low,
            "high": interval.high,
            "n": self.bootstrap.n_documents(strata),
            "questions": self.bootstrap.n_clusters(strata),
            "gains": int(rows["gains"].sum()),
            "losses": int(rows["losses"].sum()),
            "changed": self.bootstrap.n_changed(strata),
            "p": sign_flip(self.bootstrap.contributions(strata)),
        }

    @cached_property
    def _by_language(self) -> pd.DataFrame:
        """Mean scores before and after, and numbers of documents that gained and lost, per language."""
        change = self.frame["change"]
        counted = self.frame[["language", "before", "after"]].assign(gains=change > 0, losses=change < 0)
        kinds = {"before": "mean", "after": "mean", "gains": "sum", "losses": "sum"}
        by_language: pd.DataFrame = counted.groupby("language").agg(kinds)
        return by_language

    def strata(self, languages: Sequence[str]) -> list[str]:
        """The strata of some languages: the only one there is where documents have no language."""
        return [code if code in self.bootstrap.strata else NO_LANGUAGE for code in languages]

    def contributions(self, languages: Sequence[str]) -> pd.Series[float] | None:
        """What each question adds to the change of the macro average; None where a language has no document."""
        strata = self.strata(languages)
        if not set(strata) <= set(self.bootstrap.strata):
            return None
        return pd.Series(self.bootstrap.contributions(strata), index=self.bootstrap.clusters)


def joint_shifts(
    x: Paired, y: Paired, views: dict[str, tuple[str, ...]], *, resamples: int, seed: Sequence[int]
) -> dict[str, JointShift]:
    """Both axes together, for each view that both have.

    Two question sets are independent. Where the axes share questions (a group and one of its tasks) these are drawn
    once for both.
    """
    boots, prefixes = (x.bootstrap, y.bootstrap), ("", "")
    if not set(x.bootstrap.clusters).isdisjoint(y.bootstrap.clusters):
        both = pd.concat([x.frame.assign(axis="x/"), y.frame.assign(axis="y/")])
        drawn = cluster_bootstrap(
            both["change"], both["question"], both["axis"] + both["language"], resamples=resamples, seed=seed
        )
        boots, prefixes = (drawn, drawn), ("x/", "y/")
    joint = {}
    for view, languages in views.items():
        strata = x.strata(languages), y.strata(languages)
        if set(strata[0]) <= set(x.bootstrap.strata) and set(strata[1]) <= set(y.bootstrap.strata):
            named = [[prefix + code for code in codes] for prefix, codes in zip(prefixes, strata, strict=True)]
            joint[view] = JointShift.of(*boots, *named)
    return joint


class Difference(NamedTuple):
    """What keeps two runs from being compared, or limits it."""

    kind: Literal["version", "language", "nothing", "documents", "prompts", "scores", "dtype"]
    text: str


def compare(before: Scores, after: Scores, languages: Collection[str]) -> list[str]:
    """What differs between two runs besides the model, as notes.

    Raises:
        ResultsError: another task version, or no document in common.
    """
    notes = []
    for axis, frame, other in zip(before.axes, before.frames, after.frames, strict=True):
        for kind, text in differences((before.run, after.run), axis, (frame, other), languages):
            if kind in ("version", "nothing"):
                raise ResultsError(text)
            notes.append(text)
    return list(dict.fromkeys(notes))


def differences(
    runs: tuple[Run, Run], axis: Axis, frames: tuple[pd.DataFrame, pd.DataFrame], languages: Collection[str]
) -> list[Difference]:
    """What differs between two runs on one axis; nothing more is looked for where nothing can be paired."""
    before, after = runs
    shared = [task for task in axis.tasks if task in before.tasks and task in after.tasks]
    if other := [task for task in shared if before.tasks[task].version != after.tasks[task].version]:
        return [
            Difference(
                "version",
                f"other versions of {some(other)}: {before.tasks[other[0]].version} in the baseline {before.name!r}, "
                f"{after.tasks[other[0]].version} in {after.name!r}; evaluate both with one version, or choose the "
                "runs to draw with --run",
            )
        ]
    kept = {*languages, NO_LANGUAGE}
    before_frame, after_frame = (
        frame if set(frame["language"].unique()) <= kept else frame[frame["language"].isin(kept)] for frame in frames
    )
    differing = [Difference("dtype", text) for text in dtype_differences(runs, shared)]
    who = f"run {after.name!r}, {axis.name}"
    if missing := sorted(set(before_frame["language"].unique()) - set(after_frame["language"].unique())):
        differing.append(Difference("language", f"{who}: no results in {', '.join(missing)}, so it has no average"))
        before_frame = before_frame[~before_frame["language"].isin(missing)]
    compared = [*_KEY, "prompt_hash", "value"]
    both = _side_by_side(before_frame[compared], after_frame[compared])
    settings = sorted(
        f"{key} {before.tasks[task].settings[key]} and {after.tasks[task].settings[key]}"
        for task in shared[:1]
        for key in before.tasks[task].settings
        if before.tasks[task].settings[key] != after.tasks[task].settings[key]
    )
    because = f" ({'; '.join(settings)})" if settings else ""
    if not len(both):
        return [Difference("nothing", f"{who}: not one document is the same as in {before.name!r}{because}")]
    if len(both) < max(len(before_frame), len(after_frame)):
        differing.append(
            Difference(
                "documents",
                f"{who}: paired on the {len(both)} documents that both have, of {len(before_frame)} in the baseline and "
                f"{len(after_frame)} in the run{because}",
            )
        )
    if n_prompts := int((both["prompt_hash_x"] != both["prompt_hash_y"]).sum()):
        differing.append(
            Difference("prompts", f"{who}: the prompts of {n_prompts} documents differ from the baseline's{because}")
        )
    if empty := int(both[["value_x", "value_y"]].isna().any(axis=1).sum()):
        differing.append(Difference("scores", f"{who}: {empty} documents without a score in one of the runs: left out"))
    return differing


def dtype_differences(runs: tuple[Run, Run], tasks: Iterable[str]) -> list[str]:
    """A sentence for each pair of dtypes that two runs were computed in, where their results say it and it differs."""
    before, after = runs
    used = dict.fromkeys((before.tasks[task].dtype, after.tasks[task].dtype) for task in tasks)
    return [
        f"run {after.name!r} was computed in {new}, {before.name!r} in {old}: rounding alone may change answers"
        for old, new in used
        if old and new and old != new
    ]


def read_axis(run: Run, axis: Axis) -> tuple[Axis, pd.DataFrame]:
    """The documents of one axis, and the axis with the filter that was read.

    Raises:
        ResultsError: missing or damaged samples, no such score, or languages for some documents only.
    """
    columns = [*("task", "doc_id", "doc_hash", "language", "question_id", "prompt_hash", "filter", "metric", "value")]
    samples = pd.concat(
        [read_samples(run, task, columns) for task in axis.tasks if task in run.tasks], ignore_index=True
    )
    if axis.where:
        kept = {task: where.kept(axis.where, run, task) for task in axis.tasks if task in run.tasks}
        is_kept = [key in kept[task] for task, key in zip(samples["task"], samples["doc_hash"], strict=True)]
        samples = samples[is_kept].reset_index(drop=True)
    is_asked = samples["metric"] == axis.metric
    scored = samples if is_asked.all() else samples[is_asked]
    filters = list(scored["filter"].unique())
    if axis.filter is not None:
        is_filtered = scored["filter"] == axis.filter
        scored = scored if is_filtered.all() else scored[is_filtered]
    if scored.empty:
        scores = sorted({f"{metric},{name}" for metric, name in zip(samples["metric"], samples["filter"], strict=True)})
        raise ResultsError(
            f"the samples of {axis.name} in run {run.name!r} have no score {axis.score!r}; "
            f"there are: {', '.join(scores).replace(',none', '') or 'none'}"
        )
    if axis.filter is None and len(filters) > 1:
        raise ResultsError(
            f"{axis.name} has {axis.metric!r} under several filters; name one: "
            + ", ".join(f"{axis.metric},{name}" for name in filters)
        )
    axis = replace(axis, filter=axis.filter or filters[0])
    bias = samples[(samples["metric"] == BIAS_OF.get(axis.metric)) & (samples["filter"] == axis.filter)]
    frame = scored.reset_index(drop=True).assign(bias=np.nan)
    if len(bias):
        places = pd.MultiIndex.from_frame(scored[["task", "doc_id"]])
        frame["bias"] = bias.set_index(["task", "doc_id"])["value"].reindex(places).to_numpy()
    frame["language"] = _fill_language(frame, axis, run)
    families = {task: f"{run.tasks[task].family}/" for task in axis.tasks if task in run.tasks}
    frame["question"] = frame["task"].map(families) + frame["question_id"]
    frame["copy"] = 0
    # The same document may stand in a task twice.
    if not frame["doc_hash"].is_unique and frame.duplicated(["task", "doc_hash"]).any():
        frame["copy"] = frame.groupby(["task", "doc_hash"]).cumcount()
    return axis, frame[["task", "doc_hash", "copy", "language", "question", "prompt_hash", "value", "bias"]]


def _side_by_side(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """The documents of two frames by their key, as `merge` pairs them; at once where both are in the same order."""
    left, right = (frame.reset_index(drop=True) for frame in (before, after))
    if not left[_KEY].equals(right[_KEY]):
        merged: pd.DataFrame = left.merge(right, on=_KEY)
        return merged
    right = right.drop(columns=_KEY)
    both = left.columns.intersection(right.columns)
    left = left.rename(columns={name: f"{name}_x" for name in both})
    aligned: pd.DataFrame = pd.concat([left, right.rename(columns={name: f"{name}_y" for name in both})], axis=1)
    return aligned


def _fill_language(frame: pd.DataFrame, axis: Axis, run: Run) -> pd.Series[str]:
    """Languages as text. An axis has one for every document, or for none."""
    is_missing = frame["language"].isna()
    if is_missing.any() and not is_missing.all():
        raise ResultsError(
            f"axis {axis.name!r} of run {run.name!r} mixes documents with and without a language: "
            f"{some(frame.loc[is_missing, 'task'].unique())}; a document says it in its column 'language', a task in "
            "its metadata or its name (_ko)"
        )
    return frame["language"].fillna(NO_LANGUAGE).astype(str)
