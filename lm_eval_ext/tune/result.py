"""What `tune` found, in sentences, and the files that it writes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext.io import write_file
from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.redaction import redact_text
from lm_eval_ext.side_effects.table import rows as side_effect_rows
from lm_eval_ext.spreadsheets import frame_to_csv
from lm_eval_ext.stats.bootstrap import LEVEL
from lm_eval_ext.tune.figures import charts
from lm_eval_ext.version import __version__
from lm_eval_ext.viz.chart import write_charts
from lm_eval_ext.viz.numbers import points, points_interval
from lm_eval_ext.viz.page import figure_part, render

if TYPE_CHECKING:
    import pandas as pd

    from lm_eval_ext.side_effects.panel import Panel
    from lm_eval_ext.steering.plan import Plan
    from lm_eval_ext.steering.vectors import VectorSet
    from lm_eval_ext.tune.confirmation import Confirmation
    from lm_eval_ext.tune.objective import Objective, Outcome
    from lm_eval_ext.tune.settings import Settings

TEMPLATES = Path(__file__).parent / "templates"

RULE = (
    "Successive halving over kinds of vectors, layers, strengths and tokens: plans of one vector first, then the best of "
    "both kinds together. Value: {weight:g} x change of localization + {rest:g} x change of transfer, by {metric}, averaged "
    "over all languages but English; plans that lose more than {loss:.1f} points of transfer are left out. Our default: the "
    "rule of the paper is not known."
)

HEADER = [
    "family",
    "score",
    "language",
    "n",
    "unsteered",
    "steered",
    "change, points",
    "random directions",
    "shuffled pairs",
]

COMPARED = [
    "estimator",
    "its best plan",
    "family",
    "score",
    "n",
    "change, points",
    "random directions",
    "shuffled pairs",
    "share of the gap",
]


@dataclass(frozen=True)
class TuneResult:
    """The chosen plan, and its result on questions that chose nothing.

    Attributes:
        settings: of the choice.
        plan: that was chosen.
        vectors: its vectors, with the controls of shuffled pairs.
        chosen_from: what each kind of vectors was, by its name in `tried`.
        made_by: the same of the chosen kinds.
        outcome: of the plan on all development questions.
        objective: by which it was chosen.
        chosen_on: families of the development questions, by axis.
        tried: a row for each plan on each number of questions.
        cells: how many prompts under plans were computed for the choice.
        confirmation: on the test split; None where no test tasks were given.
        compared: the same of the best plan of each kind of vectors; None where these are not compared.
        seconds: run time.
        dtype: in which the model ran.
        side_effects: of the plan, on texts that have nothing to do with its aim; None where not asked for.
    """

    settings: Settings
    plan: Plan
    vectors: VectorSet
    chosen_from: dict[str, dict[str, str]]
    made_by: dict[str, dict[str, str]]
    outcome: Outcome
    objective: Objective
    chosen_on: dict[str, str]
    tried: pd.DataFrame = field(repr=False)
    cells: int
    confirmation: Confirmation | None
    compared: Confirmation | None
    seconds: float
    dtype: dict[str, str] = field(default_factory=dict)
    side_effects: Panel | None = field(default=None, repr=False)

    @property
    def n_tried(self) -> int:
        """How many plans were tried."""
        return int(self.tried["plan"].nunique())

    @property
    def is_improvement(self) -> bool:
        """Whether the plan is better than no steering on the development questions, and allowed."""
        return self.objective.is_allowed(self.outcome) and self.objective.value(self.outcome) > 0

    def rule(self) -> str:
        """How the plan was chosen, in words."""
        settings = self.settings
        return RULE.format(
            weight=settings.weight,
            rest=round(1 - settings.weight, 4),
            metric=settings.metric,
            loss=100 * settings.max_loss,
        )

    def sentences(self) -> list[str]:
        """What was found, and what may be concluded from it."""
        changes = {"localization": self.outcome.localization, "transfer": self.outcome.transfer}
        on_dev = ", ".join(
            f"{axis} {points(effect.change)} points (standard error {100 * effect.error:.1f})"
            for axis, effect in changes.items()
            if effect
        )
        lines = [
            f"Of {self.n_tried} plans that were tried, {self.plan} is best on the development questions: {on_dev}, by "
            f"{self.settings.metric}. The best of many looks better than it is: only the test split counts."
        ]
        if not self.is_improvement:
            lines.append(
                "It is no better there than no steering at all, or loses too much transfer: no plan.yaml is written."
            )
        if self.confirmation is None:
            return [*lines, "It was not confirmed: name --test."]
        lines += [_confirmed(row) for row in _averages(self.confirmation.of_plan())]
        return [*lines, *(_closed(row) for row in _averages(self.confirmation.closed))]

    def write(self) -> None:
        """Write everything to the settings' folder.

        Raises:
            OutputError: the folder cannot be written.
        """
        import yaml

        out = self.settings.out
        write_file(out / "tried.csv", frame_to_csv(self.tried, "%.6f"))
        if self.confirmation is not None:
            write_file(out / "confirmation.csv", frame_to_csv(self.confirmation.summary, "%.5f"))
            if len(self.confirmation.closed):
                write_file(out / "gap_closed.csv", frame_to_csv(self.confirmation.closed, "%.5f"))
        if self.compared is not None:
            write_file(out / "compared.csv", frame_to_csv(self.compared.table(), "%.5f"))
        if self.side_effects is not None:
            self.side_effects.write(out / "side_effects.json")
        write_charts(charts(self), out / "figures", ("csv",))
        write_file(out / "tune.html", self.page())
        write_file(out / "tune.json", json.dumps(self.record(), indent=1) + "\n")
        if self.is_improvement:
            text = yaml.safe_dump(self.plan_record(), sort_keys=False, allow_unicode=True, width=120)
            write_file(out / "plan.yaml", text)
        else:
            (out / "plan.yaml").unlink(missing_ok=True)

    def plan_record(self) -> dict[str, Any]:
        """`plan.yaml`: the plan, the rule, and what it was chosen on."""
        record: dict[str, Any] = {
            "steer": str(self.plan),
            "rule": self.rule(),
            "candidates": self.n_tried,
            "chosen_on": self.chosen_on,
            "changes": {
                axis: {"change": round(effect.change, 4), "standard_error": round(effect.error, 4)}
                for axis, effect in (("transfer", self.outcome.transfer), ("localization", self.outcome.localization))
                if effect
            },
            "made_by": self.made_by,
            "vectors": {"file": "vectors.safetensors", "sha256": self.vectors.digest},
            "model": self.vectors.model.name,
        }
        if self.confirmation is not None:
            record["confirmed"] = {
                str(row["family"]): {name: round(float(row[name]), 4) for name in ("change", "low", "high")}
                for row in _averages(self.confirmation.of_plan())
            }
        return record

    def record(self) -> dict[str, Any]:
        """`tune.json`: the settings, what was tried and what it cost."""
        asked = {
            name: [str(part.name if isinstance(part, Path) else part) for part in value]
            if isinstance(value, tuple)
            else value.name
            if isinstance(value, Path)
            else value
            for name, value in vars(self.settings).items()
            if name not in ("out", "restart")
        }
        return {
            "created_by": f"lm_eval_ext {__version__}",
            "settings": {**asked, "model_args": redact_text(self.settings.model_args)},
            "plan": str(self.plan),
            "is_improvement": self.is_improvement,
            "candidates": self.chosen_from,
            "tried": self.n_tried,
            "cells": self.cells,
            "dtype": self.dtype,
            "seconds": round(self.seconds, 1),
        }

    def page(self) -> str:
        """One self-contained page."""
        figures = charts(self)
        rows = [] if self.confirmation is None else [_cells(row) for row in _records(self.confirmation.summary)]
        compared = [] if self.compared is None else _averages(self.compared.table())
        return render(
            "tune.html",
            title="The plan that the development split chose",
            charts=figures,
            folder=TEMPLATES,
            description=[
                f"Model {self.vectors.model.name}{f' in {used}' if (used := self.dtype.get('used')) else ''}; "
                f"{self.n_tried} plans, {self.cells} prompts under plans, {self.seconds / 60:.1f} minutes.",
                self.rule(),
            ],
            findings=self.sentences(),
            parts_of_charts=[figure_part(chart) for chart in figures],
            header=HEADER,
            rows=[row for row in rows if row],
            compared_header=COMPARED,
            compared=[_compared(row, str(self.chosen_from[row["kinds"]]["estimator"])) for row in compared],
            side_effects=[] if self.side_effects is None else side_effect_rows(self.side_effects, LEVEL),
            kinds=[[name, *record.values()] for name, record in self.chosen_from.items()],
        )


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _averages(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [row for row in _records(frame) if row["language"] == AVERAGE]


def _cells(row: dict[str, Any]) -> list[str]:
    if isinstance(row["control"], str) or not row["condition"]:
        return []
    return [
        str(row["family"]),
        str(row["metric"]),
        str(row["language"]),
        str(int(row["n"])),
        f"{100 * row['unsteered']:.1f}",
        f"{100 * row['score']:.1f}",
        points_interval(row["change"], row["low"], row["high"]),
        _band(row, "null"),
        _band(row, "shuffled"),
    ]


def _compared(row: dict[str, Any], estimator: str) -> list[str]:
    return [
        estimator,
        str(row["condition"]),
        str(row["family"]),
        str(row["metric"]),
        str(int(row["n"])),
        points_interval(row["change"], row["low"], row["high"]),
        _band(row, "null"),
        _band(row, "shuffled"),
        _share(row),
    ]


def _share(row: dict[str, Any]) -> str:
    """The share of the gap that a plan closes, where it is defined."""
    if not isinstance(row.get("closed"), float) or row["closed"] != row["closed"]:
        return "undefined" if isinstance(row.get("reason"), str) else "not asked"
    return f"{100 * row['closed']:.0f}% [{100 * row['closed_low']:.0f}, {100 * row['closed_high']:.0f}]"


def _band(row: dict[str, Any], prefix: str) -> str:
    low = row.get(f"{prefix}_low")
    if low is None or low != low:
        return "none"
    return f"{points(low)} to {points(row[f'{prefix}_high'])} ({int(row[f'{prefix}_n'])})"


def _confirmed(row: dict[str, Any]) -> str:
    change = f"{row['family']}, test split: {points_interval(row['change'], row['low'], row['high'])} points"
    band = f"random directions {_band(row, 'null')}, shuffled pairs {_band(row, 'shuffled')}"
    outside = [
        name
        for prefix, name in (("null", "random directions"), ("shuffled", "fits of shuffled pairs"))
        if (low := row.get(f"{prefix}_low")) is not None
        and low == low
        and not low <= row["change"] <= row[f"{prefix}_high"]
    ]
    if row["low"] <= 0 <= row["high"]:
        verdict = "its interval includes zero: no change is shown"
    elif len(outside) == 2:
        verdict = "clear of zero and outside what its controls do"
    else:
        verdict = "clear of zero, but some controls do as much: the vector's meaning is not shown to be the cause"
    return f"{change} ({band}): {verdict}."


def _closed(row: dict[str, Any]) -> str:
    where = f"{row['family']}, by {row['metric']}: naming the country adds {points(row['gap'])} points"
    if row["reason"]:
        return f"{where}; what share of it is closed is undefined ({row['reason']})."
    return f"{where}, of which the plan closes {100 * row['closed']:.0f}% [{100 * row['low']:.0f}, {100 * row['high']:.0f}]."
