"""Where the runs of a plane stand to each other: the Pareto front, what steering brings back, what controls do."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.results.run import short_model
from lm_eval_ext.stats import Interval, front_distance, hypervolume, null_band, on_front, recovery, resample_together
from lm_eval_ext.steering.controls import CONTROL_NAMES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lm_eval_ext.plane.shifts import Plane
    from lm_eval_ext.results.run import Run

#: Resamples in which every run is drawn at once: fewer than for a single interval, since each costs every question.
RESAMPLES = 2_000


@dataclass(frozen=True)
class Pareto:
    """The Pareto front of the averages.

    Attributes:
        runs: one row per run (the baseline first, at 0, 0). Columns: `run`, `x_change`, `y_change`, `on_front`,
            `front_probability` (share of the resamples in which nothing beats the run on both axes), `distance` to the
            front with `distance_low` and `distance_high` (by how much both scores must rise; 0 on the front).
        hypervolume: area between front and `reference`, with its interval, in squared shares.
        reference: the corner from which the area counts.
        level: of the intervals.
    """

    runs: pd.DataFrame = field(repr=False)
    hypervolume: Interval
    reference: tuple[float, float]
    level: float


def pareto(plane: Plane, reference: tuple[float, float] = (-0.1, -0.1), resamples: int = RESAMPLES) -> Pareto:
    """Compare all runs that have an average, without controls of any kind: they may lie on the front by chance alone.

    Args:
        plane: of `measure`.
        reference: corner of the hypervolume; our default lies ten points below the baseline on both axes.
        resamples: of whole questions, the same for every run.
    """
    runs = [run for run in plane.runs if not run.is_control and _has_average(plane, run)]
    draws = _draws(plane, [run.name for run in runs], resamples)
    draws = np.concatenate([np.zeros((resamples, 1, 2)), draws], axis=1)
    observed = np.array([(0.0, 0.0), *(_position(plane, run) for run in runs)])
    behind = front_distance(draws)
    tails = [(1 - plane.level) / 2, (1 + plane.level) / 2]
    low, high = np.quantile(behind, tails, axis=0)
    frame = pd.DataFrame(
        {
            "run": [plane.baseline.name, *(run.name for run in runs)],
            "x_change": observed[:, 0],
            "y_change": observed[:, 1],
            "on_front": on_front(observed),
            "front_probability": on_front(draws).mean(axis=0),
            "distance": front_distance(observed),
            "distance_low": low,
            "distance_high": high,
        }
    )
    area_low, area_high = np.quantile(hypervolume(draws, reference), tails)
    area = Interval(float(hypervolume(observed, reference)), float(area_low), float(area_high))
    return Pareto(frame, area, reference, plane.level)


def recoveries(plane: Plane, resamples: int = RESAMPLES) -> pd.DataFrame:
    """How much of the localization that alignment took each steered run brings back.

    The baseline stands for the unaligned model; an aligned model is another one, unsteered; its steered runs are
    compared with it. Empty where the plane has no such runs.

    Returns:
        one row per steered run, with the columns `run`, `aligned` (the unsteered run of its model), `lost` and `regained`
        (changes of the average on the y axis), `recovery` with `low` and `high` (1: all is back), and `reason`, which
        says why a recovery is undefined, else "".
    """
    rows = []
    for aligned in plane.runs:
        if aligned.plan or aligned.model == plane.baseline.model or not _has_average(plane, aligned):
            continue
        for steered in plane.runs:
            if steered.model != aligned.model or not steered.plan or steered.is_control:
                continue
            if not _has_average(plane, steered):
                continue
            draws = _draws(plane, [aligned.name, steered.name], resamples)[:, :, 1]
            lost = -_position(plane, aligned)[1]
            regained = _position(plane, steered)[1] + lost
            share = recovery(lost, regained, -draws[:, 0], draws[:, 1] - draws[:, 0], plane.level)
            rows.append((steered.name, aligned.name, lost, regained, *share))
    names = ["run", "aligned", "lost", "regained", "recovery", "low", "high", "reason"]
    frame: pd.DataFrame = pd.DataFrame(rows, columns=names)
    return frame


def null_bands(plane: Plane) -> pd.DataFrame:
    """Each steered run among the controls of its model, a band for each kind of control.

    An effect is the change against the unsteered run of the same model. Models without controls have no rows.

    Returns:
        one row per steered run, kind of control, language (`average` is one) and axis, with the columns `run`, `model`,
        `control` (`random`, `other_language` or `negated`), `language`, `axis`, `effect`, and those of `stats.NullBand`:
        `low`, `high`, `coverage`, `n`, `below`, `p`.
    """
    shifts = plane.shifts.set_index(["run", "language"])
    everyone = [plane.baseline, *plane.runs]
    unsteered = {run.model: run.name for run in reversed(everyone) if not run.plan}
    rows = []
    for run in plane.runs:
        if not run.plan or run.is_control or run.model not in unsteered:
            continue
        for kind, language in product(CONTROL_NAMES, (AVERAGE, *plane.languages)):
            origin = unsteered[run.model], language
            controls = [
                (other.name, language)
                for other in plane.runs
                if other.control == kind and other.model == run.model and (other.name, language) in shifts.index
            ]
            if not controls or origin not in shifts.index or (run.name, language) not in shifts.index:
                continue
            for axis in ("x", "y"):
                changes = shifts[f"{axis}_change"]
                effect = float(changes[run.name, language] - changes[origin])
                band = null_band([changes[control] - changes[origin] for control in controls], effect, plane.level)
                rows.append((run.name, short_model(run.model), kind, language, axis, effect, *band))
    names = ["run", "model", "control", "language", "axis", "effect", "low", "high", "coverage", "n", "below", "p"]
    frame: pd.DataFrame = pd.DataFrame(rows, columns=names)
    return frame


def _has_average(plane: Plane, run: Run) -> bool:
    return all(run.name in parts for parts in plane.contributions)


def _position(plane: Plane, run: Run) -> tuple[float, float]:
    x, y = (float(parts[run.name].sum()) for parts in plane.contributions)
    return x, y


def _draws(plane: Plane, runs: list[str], resamples: int) -> NDArray[np.float64]:
    """[resamples, runs, 2] positions of the averages; the axes independently, unless they share questions."""
    if not runs:
        return np.zeros((resamples, 0, 2))
    x, y = (parts[runs] for parts in plane.contributions)
    if x.index.intersection(y.index).empty:
        drawn = [
            resample_together(parts.to_numpy(), resamples=resamples, seed=[plane.seed, axis])
            for axis, parts in enumerate((x, y))
        ]
        return np.stack(drawn, axis=-1)
    both = x.join(y, how="outer", lsuffix="/x", rsuffix="/y").fillna(0.0)
    drawn_both = resample_together(both.to_numpy(), resamples=resamples, seed=[plane.seed, 0])
    return np.stack([drawn_both[:, : len(runs)], drawn_both[:, len(runs) :]], axis=-1)
