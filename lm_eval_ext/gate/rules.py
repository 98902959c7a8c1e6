"""The rules of a gate, read from a file by `config` or made in Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lm_eval_ext.stats.bootstrap import RESAMPLES
from lm_eval_ext.stats.power import POWER

if TYPE_CHECKING:
    from datetime import date
    from pathlib import Path

Kind = Literal["non-inferiority", "floor", "chance", "unchanged", "max-gain", "must-pass", "side-effect"]
#: What a limit on a side effect holds: the level of the candidate, or its change against the baseline.
Bound = Literal["max", "min", "max_rise", "max_fall"]
#: The axis of rules on side effects; their metric is the measure.
SIDE_EFFECTS = "side effects"
#: Whether a broken rule decides, or is only reported.
Severity = Literal["error", "warning"]

_BOUNDS: dict[Bound, str] = {
    "max": "at most",
    "min": "at least",
    "max_rise": "rises by at most",
    "max_fall": "falls by at most",
}

#: Our defaults.
ALPHA = 0.05
MARGIN = 0.02
CHANCE_MARGIN = 0.05


@dataclass(frozen=True)
class Rule:
    """One line of the gate, which holds for each of its languages.

    Attributes:
        axis: task, group or family.
        metric: per-document score, `metric` or `metric,filter`.
        languages: codes and `average`; empty means all the results have, and their average.
        kind: what is asked.
        limit: the floor, the level of chance, the share of documents that may change, the gain that is not suspicious, or
            that of a side effect; 0 for others.
        margin: the loss that must be excluded.
        better: "higher" or "lower"; None: as the task says.
        alpha, power: of the tests.
        severity: "warning" where a broken rule is reported and does not decide.
        ids, where: the items that must pass, by question id or by conditions on the documents' columns.
        since: the frozen baseline that the rule speaks of; empty for the baseline that moves with the releases.
        bound: of a side effect, what its limit holds.
    """

    axis: str
    metric: str = "acc"
    languages: tuple[str, ...] = ()
    kind: Kind = "non-inferiority"
    limit: float = 0.0
    margin: float = MARGIN
    better: Literal["higher", "lower"] | None = None
    alpha: float = ALPHA
    power: float = POWER
    severity: Severity = "error"
    ids: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    since: str = ""
    bound: Bound = "max"

    @property
    def text(self) -> str:
        """What is asked, in words."""
        return {
            "non-inferiority": f"loses less than {100 * self.margin:g} points{f' since {self.since}' if self.since else ''}",
            "floor": f"at least {self.limit:g}",
            "chance": f"not {100 * self.margin:g} points below chance, {self.limit:g}",
            "unchanged": f"at most {100 * self.limit:g}% of the items change",
            "max-gain": f"gains at most {100 * self.limit:g} points",
            "side-effect": f"{_BOUNDS[self.bound]} {self.limit:g}",
            "must-pass": f"right on {' and '.join(self.where) or f'{len(self.ids)} named questions'}",
        }[self.kind]


@dataclass(frozen=True)
class Waiver:
    """Broken rules that do not decide for some time.

    Attributes:
        axis: as the rules name it.
        metric, languages: which of its checks; all where empty.
        reason: why.
        until: the last day on which it holds.
    """

    axis: str
    metric: str
    languages: tuple[str, ...]
    reason: str
    until: date


@dataclass(frozen=True)
class Pooled:
    """The one test over everything that the rules speak of.

    Attributes:
        decides: whether its verdict counts; else it is only reported.
        margin: the loss that the suite must be able to see, with `power`; 0 where none is asked.
        alpha, power: of the test.
        scores: what is compared: right and wrong answers, or their margins (see `margins`).
    """

    decides: bool = False
    margin: float = 0.0
    alpha: float = ALPHA
    power: float = POWER
    scores: Literal["answers", "margins"] = "answers"


@dataclass(frozen=True)
class Drift:
    """What may be lost since a baseline that is not renewed: many small losses, each within its margin, add up.

    Attributes:
        frozen: folder of its results.
        margin: the loss that must be excluded, for each axis and language of the rules that compare two runs.
        severity: of these checks.
    """

    frozen: Path
    margin: float
    severity: Severity = "error"


@dataclass(frozen=True)
class Gate:
    """All rules.

    Attributes:
        rules: in the order of the file.
        baseline: what the baseline must be, by `model` and `plan`; empty where it may be anything.
        same_prompts: whether other prompts than the baseline's are refused.
        resamples, seed: of the bootstrap.
        pooled: the test over all of them together.
        waivers: which broken rules do not decide for now.
        noise: a file of `lm-eval-ext gate noise`, whose noise a change must exceed; None where none is asked.
        drift: the frozen baseline that the candidate is held against too; None where there is none.
        side_effects: rules on these, and `panel` the file of `lm-eval-ext side-effects` with them.
    """

    rules: tuple[Rule, ...]
    baseline: dict[str, str]
    same_prompts: bool = True
    resamples: int = RESAMPLES
    seed: int = 0
    pooled: Pooled = Pooled()
    waivers: tuple[Waiver, ...] = ()
    noise: Path | None = None
    drift: Drift | None = None
    side_effects: tuple[Rule, ...] = ()
    panel: Path | None = None
