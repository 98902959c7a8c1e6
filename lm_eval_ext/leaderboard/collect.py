"""Scores of every run in every language, and which of them may be compared.

A score is a level with its interval, not a change: runs may come from anywhere. What was asked decides whether two stand in
one ranking: the same task versions, documents and prompts. Of each family the set that most runs were asked is ranked; a
run that was asked otherwise is listed and marked, never ranked among them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lm_eval_ext.errors import ResultsError
from lm_eval_ext.languages import AVERAGE, KNOWN
from lm_eval_ext.results.axes import METRIC, Axis, find_axis
from lm_eval_ext.results.pairing import NO_LANGUAGE, Paired, read_axis
from lm_eval_ext.results.run import Run, short_model
from lm_eval_ext.results.runs import load
from lm_eval_ext.stats import LEVEL, cluster_bootstrap

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

#: Our default: levels need fewer resamples than the small differences of a plane.
RESAMPLES = 1_000

COLUMNS = (
    *("run", "tree", "model", "plan", "type", "is_control", "date", "family", "metric", "language"),
    *("score", "low", "high", "bias", "bias_low", "bias_high", "n", "questions"),
    *("change", "change_low", "change_high", "version", "items", "comparable"),
)


@dataclass(frozen=True)
class Board:
    """What the leaderboard shows.

    Attributes:
        scores: one row per run, family and language, `average` (the macro average over all languages but English) first.
            Columns: `run`, `tree`, `model`, `plan`, `type` (of the harness's model), `is_control` (of any kind), `date`,
            `family`, `metric`, `language`, `score` with `low` and `high`, `bias` (English bias of the choices, missing
            where not scored) with its ends, `n` (documents), `questions`, `change` with its ends (paired, against the
            unsteered run of the same model in the same tree, asked the same; missing elsewhere), `version`, `items` (hash of
            documents and prompts), `comparable` (whether most runs were asked the same). Shares lie between 0 and 1.
        runs: by name.
        axes: by family.
        languages: that any score has; English last.
        level, resamples, seed: of the intervals.
        notes: what a reader should know.
    """

    scores: pd.DataFrame = field(repr=False)
    runs: dict[str, Run] = field(repr=False)
    axes: dict[str, Axis]
    languages: tuple[str, ...]
    level: float
    resamples: int
    seed: int
    notes: tuple[str, ...]


def collect(
    roots: Sequence[Path],
    *,
    metric: str | None = None,
    families: Collection[str] = (),
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Board:
    """Read the scores of some result trees.

    Args:
        roots: folders of result files.
        metric: the score of every family, `metric` or `metric,filter`; by default what its tasks say, else `acc`. A family
            without it is left out, with a note.
        families: only these families of tasks (all if empty).
        level, resamples, seed: of the intervals.

    Raises:
        ResultsError: no results, missing or damaged samples, an unknown family, or no family with the metric.
    """
    runs, notes = _runs(roots)
    present = _families(runs.values())
    if unknown := sorted(set(families) - set(present)):
        raise ResultsError(f"no results for {', '.join(unknown)}; there are: {', '.join(sorted(present))}")
    rows: list[dict[str, Any]] = []
    axes: dict[str, Axis] = {}
    for family in [name for name in present if not families or name in families]:
        try:
            axis, scored = _family(family, find_axis(family, runs.values(), metric), runs, level, resamples, seed)
        except _NoScoreError as error:
            notes.append(f"{family}: {error}: left out")
            continue
        axes[family] = axis
        rows += scored
    if not rows:
        raise ResultsError(
            f"no family of tasks has the score {metric or METRIC!r}; name another with --metric:\n" + "\n".join(notes)
        )
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    notes += _mark_comparable(frame)
    order = [*(code for code in KNOWN if code != "en"), "en"]
    spoken = set(frame["language"]) - {AVERAGE, NO_LANGUAGE}
    languages = sorted(spoken, key=lambda code: (order.index(code) if code in order else 99, code))
    return Board(frame, runs, axes, tuple(languages), level, resamples, seed, tuple(notes))


def _families(runs: Iterable[Run]) -> list[str]:
    """The families that any run was asked: transfer, localization, then everything else."""
    axes: dict[str, str] = {}
    for record in (record for run in runs for record in run.tasks.values()):
        axes[record.family] = axes.get(record.family) or record.axis or ""
    return sorted(axes, key=lambda family: (("transfer", "localization", "").index(axes[family]), family))


class _NoScoreError(Exception):
    """A family that has no such score."""


def _runs(roots: Sequence[Path]) -> tuple[dict[str, Run], list[str]]:
    """All runs by name; with several trees, each name begins with its tree's."""
    runs: dict[str, Run] = {}
    notes: list[str] = []
    for root in roots:
        tree = load(root)
        prefix = f"{root.resolve().name}/" if len(roots) > 1 else ""
        notes += [f"{prefix}{note}" if prefix else note for note in tree.notes]
        for run in tree.runs:
            name = f"{prefix}{run.name}"
            if name in runs:
                raise ResultsError(f"two result trees hold a run {name!r}; rename one of the folders {root.name!r}")
            runs[name] = replace(run, name=name)
    return runs, notes


def _family(
    family: str, axis: Axis, runs: dict[str, Run], level: float, resamples: int, seed: int
) -> tuple[Axis, list[dict[str, Any]]]:
    """Every run's scores on one family, and the axis with the filter that was read."""
    having = [run for run in runs.values() if run.tasks.keys() & set(axis.tasks)]
    steered = {(_tree(run), run.model) for run in having if run.plan}
    # An unsteered run comes before the steered ones of its model, which are compared with it.
    having.sort(key=lambda run: bool(run.plan))
    origins: dict[tuple[Path, str], tuple[str, pd.DataFrame]] = {}
    last: tuple[str, pd.DataFrame, str] | None = None
    rows: list[dict[str, Any]] = []
    for run in having:
        try:
            axis, frame = read_axis(run, axis)
        except ResultsError as error:
            if "no score" in str(error) and not rows:
                raise _NoScoreError(str(error).partition("\n")[0]) from None
            raise
        asked = frame[["task", "doc_hash", "prompt_hash"]]
        version = _versions(run, axis)
        if last is None or last[0] != version or not asked.equals(last[1]):  # most runs were asked the same
            last = (version, asked, _hash_of(version, asked))
        items = last[2]
        key = (_tree(run), run.model)
        if not run.plan and key in steered:
            origins.setdefault(key, (items, frame))
        origin = origins.get(key) if run.plan else None
        before = origin[1] if origin and origin[0] == items else None
        shared = {
            **{"run": run.name, "tree": _tree(run).name, "model": short_model(run.model), "plan": run.plan},
            **{"type": run.details.get("type", ""), "is_control": run.is_control, "date": run.date.split("T")[0]},
            **{"family": family, "metric": axis.score, "version": version, "items": items},
        }
        scored = _scores(frame, before, level=level, resamples=resamples, seed=seed)
        rows += [{**shared, **row} for row in scored]
    return axis, rows


def _tree(run: Run) -> Path:
    """The root of the tree that a run is in."""
    return run.home if run.folder == "." else Path(*run.home.parts[: len(run.home.parts) - len(Path(run.folder).parts)])


def _scores(
    frame: pd.DataFrame, before: pd.DataFrame | None, *, level: float, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """One row per language, the average first."""
    spoken = list(dict.fromkeys(frame["language"]))
    views: dict[str, list[str]] = {AVERAGE: [code for code in spoken if code != "en"] or spoken}
    views |= {code: [code] for code in spoken if code != NO_LANGUAGE}
    frame = frame.dropna(subset=["value"])
    scores = cluster_bootstrap(
        frame["value"], frame["question"], frame["language"], resamples=resamples, seed=[seed, 0]
    )
    biased = frame[(frame["language"] != "en") & frame["bias"].notna()]
    biases = (
        cluster_bootstrap(biased["bias"], biased["question"], biased["language"], resamples=resamples, seed=[seed, 1])
        if len(biased)
        else None
    )
    changes = None if before is None else Paired.of(before, frame, "value", resamples=resamples, seed=[seed, 2])
    rows = []
    for view, languages in views.items():
        row: dict[str, Any] = {"language": view}
        row |= zip(("score", "low", "high"), scores.interval(languages, level), strict=True)
        row |= {"n": scores.n_documents(languages), "questions": scores.n_clusters(languages)}
        if biases and set(languages) <= set(biases.strata):
            row |= zip(("bias", "bias_low", "bias_high"), biases.interval(languages, level), strict=True)
        if changes and set(languages) <= set(changes.bootstrap.strata):
            change = changes.bootstrap.interval(languages, level)
            row |= zip(("change", "change_low", "change_high"), change, strict=True)
        rows.append(row)
    return rows


def _versions(run: Run, axis: Axis) -> str:
    return ", ".join(dict.fromkeys(run.tasks[task].version for task in axis.tasks if task in run.tasks))


def _hash_of(version: str, asked: pd.DataFrame) -> str:
    """Hash of what was asked: versions, tasks, documents, prompts; their order does not matter."""
    digest = hashlib.sha256(version.encode())
    for key in (asked["task"] + " " + asked["doc_hash"] + " " + asked["prompt_hash"]).sort_values():
        digest.update(key.encode())
    return digest.hexdigest()[:12]


def _mark_comparable(frame: pd.DataFrame) -> list[str]:
    """Fill the column `comparable`, and say which runs were asked otherwise."""
    frame["comparable"] = True
    notes = []
    for family, rows in frame[frame["language"] == AVERAGE].groupby("family", sort=True):
        by_size = rows.groupby("items").agg(runs=("run", "size"), n=("n", "max"))
        most = by_size.sort_values(["runs", "n"], ascending=False, kind="stable").index[0]
        others = rows[rows["items"] != most]
        if len(others):
            frame.loc[(frame["family"] == family) & (frame["items"] != most), "comparable"] = False
            names = ", ".join(others["run"].head(8)) + (f" and {len(others) - 8} more" if len(others) > 8 else "")
            notes.append(
                f"{family}: other documents, prompts or task versions than most runs (which were asked {most}), "
                f"listed but not ranked: {names}"
            )
    return notes
