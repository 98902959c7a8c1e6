"""The panel: side effects summed up by language, written as JSON and read again by a gate."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import Field, ValidationError

from lm_eval_ext.configs import Table, Text, messages
from lm_eval_ext.errors import ResultsError
from lm_eval_ext.io import write_file
from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.side_effects.measures import ACCURACY, scale
from lm_eval_ext.side_effects.measuring import COLUMNS
from lm_eval_ext.stats import cluster_bootstrap
from lm_eval_ext.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lm_eval_ext.side_effects.measures import Scale

SUMMARY = ("measure", "language", "n", "baseline", "value", "change", "low", "high")


@dataclass(frozen=True)
class Levels:
    """One measure in one language, or in the average over the languages.

    Attributes:
        n: texts.
        questions: distinct ids of them.
        baseline, value: levels of both models, in the unit of the measure.
        rises, falls: texts whose value is higher or lower than the baseline's.
        values, changes: [resamples] of the level of the model that is measured, and of the change (a share of the baseline
            for perplexity and length).
        change: the change that was measured.
    """

    n: int
    questions: int
    baseline: float
    value: float
    rises: int
    falls: int
    change: float
    values: NDArray[np.float64] = field(repr=False)
    changes: NDArray[np.float64] = field(repr=False)


class _Items(Table):
    measure: Text
    language: Text
    id: list[str]
    baseline: list[float]
    value: list[float]


class _File(Table):
    lm_eval_ext: str
    model: str
    plan: str
    baseline: str
    settings: dict[str, Any]
    summary: list[dict[str, Any]]
    items: list[_Items] = Field(min_length=1, description="at least one entry")


@dataclass(frozen=True)
class Panel:
    """Side effects of a plan, or of a model against its baseline.

    Attributes:
        frame: of `measuring.measure`, with rows of `accuracy` too where tasks were evaluated.
        model, plan: what was measured.
        baseline: what it was held against: the same model without the plan, or another model.
        settings: of the measurement, for the reader.
    """

    frame: pd.DataFrame
    model: str
    plan: str
    baseline: str
    settings: dict[str, Any]

    def languages(self, measure: str) -> list[str]:
        """The languages of a measure, and `average` where there are several besides English."""
        codes = list(self.frame.loc[self.frame["measure"] == measure, "language"].unique())
        return [*codes, *([AVERAGE] if len(_averaged(codes)) > 1 else [])]

    def levels(self, measure: str, language: str, *, resamples: int = 2_000, seed: int = 0) -> Levels:
        """A measure in one language; the average gives each language the same weight and leaves English out.

        Texts are drawn by their id, in all languages at once (the cluster bootstrap).

        Raises:
            ResultsError: it was not measured.
        """
        rows = self.frame[self.frame["measure"] == measure]
        codes = _averaged(list(rows["language"].unique())) if language == AVERAGE else [language]
        rows = rows[rows["language"].isin(codes)]
        if rows.empty:
            there = dict.fromkeys(self.frame["measure"])
            raise ResultsError(
                f"the side effects have no {measure} in {language}; there are: "
                + "; ".join(f"{name} in {', '.join(self.languages(name))}" for name in there)
            )
        draws, means = {}, {}
        for column in ("baseline", "value"):
            bootstrap = cluster_bootstrap(rows[column], rows["id"], rows["language"], resamples=resamples, seed=seed)
            draws[column], means[column] = bootstrap.draws(codes), bootstrap.interval(codes).value
        change, changes = (
            _change(scale(measure), *(side[column] for column in ("baseline", "value"))) for side in (means, draws)
        )
        shown = np.exp if scale(measure) == "exponential" else np.asarray
        return Levels(
            n=len(rows),
            questions=int(rows["id"].nunique()),
            baseline=float(shown(means["baseline"])),
            value=float(shown(means["value"])),
            rises=int((rows["value"] > rows["baseline"]).sum()),
            falls=int((rows["value"] < rows["baseline"]).sum()),
            change=float(change),
            values=shown(draws["value"]),
            changes=changes,
        )

    def summary(self, level: float = 0.95, *, resamples: int = 2_000, seed: int = 0) -> pd.DataFrame:
        """One row per measure and language, with the columns `SUMMARY`; `low` and `high` bound the change."""
        rows = []
        for measure in self.frame["measure"].unique():
            for language in self.languages(measure):
                one = self.levels(measure, language, resamples=resamples, seed=seed)
                low, high = np.nanquantile(one.changes, [(1 - level) / 2, (1 + level) / 2])
                rows.append((measure, language, one.n, one.baseline, one.value, one.change, low, high))
        summary: pd.DataFrame = pd.DataFrame(rows, columns=list(SUMMARY))
        return summary

    def to_json(self, level: float = 0.95) -> str:
        """The summary and every text's values."""
        items = [
            {"measure": measure, "language": language}
            | {column: rows[column].tolist() for column in COLUMNS if column not in ("measure", "language")}
            for (measure, language), rows in self.frame.groupby(["measure", "language"], sort=False)
        ]
        content = {
            "lm_eval_ext": __version__,
            "model": self.model,
            "plan": self.plan,
            "baseline": self.baseline,
            "settings": self.settings,
            "summary": [_finite(row) for row in self.summary(level).to_dict("records")],
            "items": items,
        }
        return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, path: Path) -> None:
        """Write `to_json`, whole or not at all."""
        write_file(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Panel:
        """What `to_json` wrote.

        Raises:
            ResultsError: no such file, or something else in it.
        """
        try:
            file = _File.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ResultsError(f"cannot read the side effects {path}: {error.strerror}") from None
        except ValidationError as problems:
            first = messages(problems, _File)[0]
            raise ResultsError(f"{path} was not written by `lm-eval-ext side-effects --json`: {first}") from None
        if any(not len(one.id) == len(one.baseline) == len(one.value) > 0 for one in file.items):
            raise ResultsError(f"{path} was not written by `lm-eval-ext side-effects --json`: lists of other lengths")
        frame = pd.concat([pd.DataFrame(one.model_dump()) for one in file.items], ignore_index=True)
        return cls(frame[list(COLUMNS)], file.model, file.plan, file.baseline, file.settings)


def accuracy(before: dict[str, Any], after: dict[str, Any], metric: str = "acc") -> pd.DataFrame:
    """Accuracy on tasks as rows of `measuring.measure`, one per document.

    Args:
        before, after: results of the harness with samples, of the baseline and of the model that is measured.
        metric: per document.

    Raises:
        ResultsError: a task without this metric.
    """
    rows = []
    for task, samples in after["samples"].items():
        known = {sample["doc_hash"]: sample for sample in before["samples"].get(task, [])}
        for sample in samples:
            if not isinstance(sample.get(metric), int | float):
                raise ResultsError(f"{task} has no {metric} per document; name another with --metric")
            if (old := known.get(sample["doc_hash"])) is not None:
                rows.append((f"{ACCURACY}{task}", "all", sample["doc_hash"], float(old[metric]), float(sample[metric])))
    frame: pd.DataFrame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame


def _averaged(codes: Sequence[str]) -> list[str]:
    return [code for code in codes if code != "en"]


def _change(kind: Scale, before: Any, after: Any) -> Any:
    if kind == "exponential":
        return np.exp(after - before) - 1
    if kind == "relative":
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(after) / np.asarray(before) - 1
    return after - before


def _finite(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
