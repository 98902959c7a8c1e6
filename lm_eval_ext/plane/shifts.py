"""Where each run stands on the plane: the change of both scores against a baseline, with intervals."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from lm_eval_ext.errors import ResultsError
from lm_eval_ext.languages import AVERAGE, KNOWN
from lm_eval_ext.results.axes import Axis, default_axis, find_axis, list_tasks
from lm_eval_ext.results.pairing import NO_LANGUAGE, Paired, Scores, compare, joint_shifts, read_ahead
from lm_eval_ext.results.run import Run, find_run, short_model
from lm_eval_ext.results.runs import Runs, load
from lm_eval_ext.results.where import check as check_conditions
from lm_eval_ext.results.where import parse as parse_conditions
from lm_eval_ext.stats import LEVEL, QUADRANTS, RESAMPLES, holm

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    import plotly.graph_objects as go

#: What is said of each axis and of the English bias.
SHARES = ("baseline", "run", "change", "low", "high")
COUNTS = ("n", "questions", "gains", "losses", "changed")
TESTS = ("p", "holm")

#: What is said of both axes together.
JOINT = ("x_error", "y_error", "correlation", *QUADRANTS)


@dataclass(frozen=True)
class Plane:
    """Everything that the figure, the table and the conclusions say; made by `lm_eval_ext.plane(...)`.

    Example:
        >>> plane = lx.plane("results", baseline="unsteered", resamples=200)
        >>> plane.table().query("language == 'average'")[["run", "x_change", "y_change"]].shape
        (4, 3)
        >>> type(plane.plot()).__name__
        'Figure'
        >>> for sentence in plane.conclusions():
        ...     assert sentence.endswith(".")

    Attributes:
        x, y: the axes.
        baseline: the run at the origin.
        runs: the others, sorted by name, the controls at the end.
        languages: languages that both axes have, English last; empty where the tasks have no language.
        averaged: those of the macro average: all but English, each weighing the same.
        level, resamples, seed: of the intervals.
        shifts: one row per run (the baseline first) and language, `average` first; shares lie between 0 and 1. Columns:
            `run`, `model`, `plan`, `language`, and for each of `x_`, `y_` and `bias_` (English bias on the y axis;
            missing where not scored): `baseline` and `run` (scores on the paired documents), `change` with `low` and
            `high`, `n` (documents), `questions` (clusters), `gains` and `losses` (documents whose score rose or fell),
            `changed` (questions whose score changed), `p` (two-sided, exact McNemar test in a language, sign flips of
            whole questions for the average), `holm` (the same, corrected for the number of languages). Then for the
            position as a whole: `x_error`, `y_error`, `correlation` (standard errors; `stats.region.ellipse` draws the
            joint region) and the probability of each quadrant, from `upper_right` on clockwise.
        contrasts: the same columns for each steered run against each random direction of its model (`control`). The
            baseline cancels: this is the difference of their differences.
        contributions: of x and of y, one row per question and one column per run (the baseline has none): what the
            question adds to the run's change of the average.
        notes: what a reader should know about the comparison.
    """

    x: Axis
    y: Axis
    baseline: Run
    runs: tuple[Run, ...]
    languages: tuple[str, ...]
    averaged: tuple[str, ...]
    level: float
    resamples: int
    seed: int
    shifts: pd.DataFrame = field(repr=False)
    contrasts: pd.DataFrame = field(repr=False)
    contributions: tuple[pd.DataFrame, pd.DataFrame] = field(repr=False)
    notes: tuple[str, ...]

    @property
    def is_transfer_localization(self) -> bool:
        """Whether the axes are what the plane is named after, and its quadrants have names of their own."""
        return (self.x.subject, self.y.subject) == ("transfer", "localization")

    @property
    def average_name(self) -> str:
        """The macro average in words: `average of es id el`."""
        if self.averaged == (NO_LANGUAGE,):
            return "all documents"
        return f"average of {' '.join(self.averaged)}" if len(self.averaged) > 1 else f"{self.averaged[0]} only"

    def plot(self) -> go.Figure:
        """The plane as an interactive plotly figure."""
        from lm_eval_ext.plane.figures.plane import draw

        return draw(self)

    def table(self) -> pd.DataFrame:
        """The changes in percentage points, one row per run and language (`average` first), without the baseline.

        Columns: `run`, `model`, `plan`, `language`; for each of `x`, `y` and, where it was scored, `bias`: `_change` with
        `_low` and `_high` (the ends of its interval) and `_n` (paired documents). `shifts` has everything else.
        """
        scores = [score for score in ("x", "y", "bias") if self.shifts[f"{score}_change"].notna().any()]
        shares = [f"{score}_{end}" for score in scores for end in ("change", "low", "high")]
        columns = [f"{score}_{column}" for score in scores for column in ("change", "low", "high", "n")]
        frame: pd.DataFrame = self.shifts[self.shifts["run"] != self.baseline.name]
        frame = frame[["run", "model", "plan", "language", *columns]].reset_index(drop=True)
        frame[shares] = 100 * frame[shares]
        return frame

    def conclusions(self) -> list[str]:
        """What the intervals of the averages allow to conclude, in sentences."""
        from lm_eval_ext.plane.wording import conclusions

        return conclusions(self)


def measure(
    results: Runs | Path | str,
    baseline: str,
    *,
    x: str | None = None,
    y: str | None = None,
    x_metric: str | None = None,
    y_metric: str | None = None,
    runs: Sequence[str] = (),
    languages: Sequence[str] = (),
    where: Sequence[str] = (),
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Plane:
    """Place every run of some results on the plane.

    Args:
        results: of `load`, or a folder of result files.
        baseline: the run at the origin, by name, folder, label, plan or model.
        x, y: task, group or family of each axis; if left out, the only family of tasks whose metadata says
            `axis: transfer` (x) or `axis: localization` (y).
        x_metric, y_metric: score of each axis, `metric` or `metric,filter`; by default what its tasks say, else `acc`.
        runs: only these runs (all if empty).
        languages: only these languages (all if empty).
        where: only documents with these values of their columns, such as `universal=false` (`results.where`).
        level: of the intervals.
        resamples, seed: of the bootstrap.

    Raises:
        ResultsError: an unknown or ambiguous name, a score that the samples lack, missing samples, task versions that
            differ, or no documents in common.

    Example:
        >>> runs = lx.load("results")
        >>> plane = lx.plane(runs, baseline="unsteered", x="transfer_mini_cloze", y="localization_mini_cloze", resamples=200)
        >>> [run.name for run in plane.runs]
        ['en', 'loc', 'surgical', 'random']
    """
    results = results if isinstance(results, Runs) else load(results)
    origin = find_run(results.runs, baseline)
    named = {find_run(results.runs, name).name for name in runs}
    chosen = [run for run in results.runs if not named or run.name in named or run is origin]
    x, y = _name_axes(chosen, x, y)
    axes = find_axis(x, chosen, x_metric), find_axis(y, chosen, y_metric)
    if conditions := parse_conditions(where):
        check_conditions(conditions, origin, {task for axis in axes for task in axis.tasks})
        axes = replace(axes[0], where=conditions), replace(axes[1], where=conditions)
    others, absence_notes = _having(axes, chosen, origin)
    at_origin = Scores.read(origin, axes)
    axes = at_origin.axes
    spoken, averaged, language_notes = _languages(at_origin, languages)
    views = {AVERAGE: averaged, **{code: (code,) for code in spoken}}

    def pair(before: Scores, after: Scores) -> _Pairs:
        return _Pairs.of(before, after, resamples=resamples, seed=seed)

    chosen_notes = [f"only documents with {', '.join(map(str, conditions))}"] if conditions else []
    notes = [*results.notes, *absence_notes, *chosen_notes, *language_notes]
    shifts = pair(at_origin, at_origin).changes(views, level)
    contributions: dict[str, dict[str, pd.Series[float]]] = {"x": {}, "y": {}}
    contrasts: list[dict[str, Any]] = []
    random = {run.name: Scores.read(run, axes) for run in others if run.control == "random"}
    read = read_ahead([run for run in others if run.name not in random], axes)
    for run in others:
        scores = random.get(run.name) or next(read)
        notes += compare(at_origin, scores, spoken)
        pairs = pair(at_origin, scores)
        shifts += pairs.changes(views, level)
        for axis, parts in contributions.items():
            if (adds := pairs.contributions(axis, averaged)) is not None:
                parts[run.name] = adds
        if run.plan and not run.is_control:
            for control in random.values():
                if control.run.model == run.model:
                    rows = pair(control, scores).changes(views, level)
                    contrasts += [{**row, "control": control.run.name} for row in rows]
    return Plane(
        x=axes[0],
        y=axes[1],
        baseline=origin,
        runs=tuple(others),
        languages=spoken,
        averaged=averaged,
        level=level,
        resamples=resamples,
        seed=seed,
        shifts=_frame(shifts, "run", "model", "plan", "language"),
        contrasts=_frame(contrasts, "run", "model", "plan", "control", "language"),
        contributions=(_by_question(contributions["x"]), _by_question(contributions["y"])),
        notes=tuple(notes),
    )


def _name_axes(runs: Collection[Run], x: str | None, y: str | None) -> tuple[str, str]:
    """The axes asked for, or the only known ones."""
    x = x or default_axis("--x", "transfer", runs)
    y = y or default_axis("--y", "localization", runs)
    if x == y:
        raise ResultsError(f"both axes are {x!r}; a plane needs two different ones, here:\n{list_tasks(runs)}")
    return x, y


def _having(axes: tuple[Axis, Axis], chosen: Collection[Run], origin: Run) -> tuple[list[Run], list[str]]:
    """The runs besides the origin that have results on both axes, and a note on every other."""
    having, notes = [], []
    for run in chosen:
        lacking = " and ".join(axis.name for axis in axes if not run.tasks.keys() & set(axis.tasks))
        if lacking and run is origin:
            raise ResultsError(
                f"the baseline {run.name!r} has no results for {lacking}; the results here:\n{list_tasks(chosen)}"
            )
        if lacking:
            notes.append(f"run {run.name!r} has no results for {lacking}: left out")
        elif run is not origin:
            having.append(run)
    return sorted(having, key=lambda run: run.is_control), notes


@dataclass(frozen=True)
class _Pairs:
    """A run against another: every score on the documents that both have."""

    after: Run
    scores: dict[str, Paired | None]
    resamples: int
    seed: int

    @classmethod
    def of(cls, before: Scores, after: Scores, *, resamples: int, seed: int) -> _Pairs:
        (x, y), (x_after, y_after) = before.frames, after.frames
        # In English the local answer is the English one: the share says nothing there.
        biased, biased_after = (frame[frame["language"] != "en"] for frame in (y, y_after))
        # A seed for each: the draws of two question sets must not run in step.
        scores = {
            "x": Paired.of(x, x_after, "value", resamples=resamples, seed=[seed, 0]),
            "y": Paired.of(y, y_after, "value", resamples=resamples, seed=[seed, 1]),
            "bias": Paired.of(biased, biased_after, "bias", resamples=resamples, seed=[seed, 2]),
        }
        return cls(after.run, scores, resamples, seed)

    def changes(self, views: dict[str, tuple[str, ...]], level: float) -> list[dict[str, Any]]:
        """One row per view (the average, then each language) that both axes of both runs have."""
        x, y = self.scores["x"], self.scores["y"]
        joint = joint_shifts(x, y, views, resamples=self.resamples, seed=[self.seed, 3]) if x and y else {}
        rows = []
        for view, position in joint.items():
            row: dict[str, Any] = {"run": self.after.name, "model": short_model(self.after.model)}
            row |= {"plan": self.after.plan, "language": view}
            for name, pair in self.scores.items():
                summary = (pair.summary(views[view], level) if pair else None) or {}
                row |= {f"{name}_{key}": summary.get(key) for key in (*SHARES, *COUNTS, "p")}
            row |= zip(JOINT, (*position.errors, position.correlation, *position.quadrants), strict=True)
            rows.append(row)
        in_languages = [row for row in rows if row["language"] != AVERAGE]
        for name in self.scores:
            for row, p in zip(in_languages, holm([row[f"{name}_p"] for row in in_languages]), strict=True):
                row[f"{name}_holm"] = p
        return rows

    def contributions(self, axis: str, averaged: tuple[str, ...]) -> pd.Series[float] | None:
        """What each question adds to the average of one axis."""
        pair = self.scores[axis]
        return pair.contributions(averaged) if pair else None


def _by_question(parts: dict[str, pd.Series[float]]) -> pd.DataFrame:
    """One column per run; a question that a run lacks adds nothing."""
    frame: pd.DataFrame = pd.DataFrame(parts).fillna(0.0)
    return frame


def _frame(rows: list[dict[str, Any]], *names: str) -> pd.DataFrame:
    """Rows as a frame, also when there are none; counts stay whole numbers where some are missing."""
    dtypes = dict.fromkeys(SHARES, "float") | dict.fromkeys(COUNTS, "Int64") | dict.fromkeys(TESTS, "float")
    figures = {f"{score}_{figure}": dtypes[figure] for score in ("x", "y", "bias") for figure in dtypes}
    figures |= dict.fromkeys(JOINT, "float")
    frame: pd.DataFrame = pd.DataFrame(rows, columns=[*names, *figures]).astype(figures)
    return frame


def _languages(scores: Scores, wanted: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...], list[str]]:
    """Languages of the plane, those of its average, and notes."""
    x, y = (set(frame["language"]) - {NO_LANGUAGE} for frame in scores.frames)
    notes = []
    if x and y and x != y:
        notes.append(f"only one of the axes has {', '.join(sorted(x ^ y))}: left out")
    if bool(x) != bool(y):
        name = scores.axes[0 if y else 1].name
        notes.append(f"{name} has no languages: its one value stands beside every language of the other axis")
    shared = (x & y) if x and y else (x | y)
    if (x or y) and not shared:
        raise ResultsError(
            f"the axes share no language: {scores.axes[0].name} has {', '.join(sorted(x))}, "
            f"{scores.axes[1].name} has {', '.join(sorted(y))}"
        )
    if unknown := [code for code in wanted if code not in shared]:
        raise ResultsError(
            f"no documents in {', '.join(unknown)}; the axes share {', '.join(sorted(shared)) or 'none'}"
        )
    order = list(KNOWN)
    codes = sorted(shared & set(wanted or shared), key=lambda code: (order.index(code) if code in order else 99, code))
    averaged = [code for code in codes if code != "en"] or codes or [NO_LANGUAGE]
    codes.sort(key=lambda code: code == "en")  # English apart, at the end
    return tuple(codes), tuple(averaged), notes
