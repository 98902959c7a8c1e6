"""The rules of a gate, read from a file by `config` or made in Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_eval_ext.stats.bootstrap import RESAMPLES
from lm_eval_ext.stats.power import POWER

Kind = Literal["non-inferiority", "floor", "chance", "unchanged"]

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
        limit: the floor, the level of chance, or the share of documents that may change; 0 for non-inferiority.
        margin: the loss that must be excluded.
        better: "higher" or "lower"; None: as the task says.
        alpha, power: of the tests.
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

    @property
    def text(self) -> str:
        """What is asked, in words."""
        return {
            "non-inferiority": f"loses less than {100 * self.margin:g} points",
            "floor": f"at least {self.limit:g}",
            "chance": f"not {100 * self.margin:g} points below chance, {self.limit:g}",
            "unchanged": f"at most {100 * self.limit:g}% of the items change",
        }[self.kind]


@dataclass(frozen=True)
class Pooled:
    """The one test over everything that the rules speak of.

    Attributes:
        decides: whether its verdict counts; else it is only reported.
        margin: the loss that the suite must be able to see, with `power`; 0 where none is asked.
        alpha, power: of the test.
    """

    decides: bool = False
    margin: float = 0.0
    alpha: float = ALPHA
    power: float = POWER


@dataclass(frozen=True)
class Gate:
    """All rules.

    Attributes:
        rules: in the order of the file.
        baseline: what the baseline must be, by `model` and `plan`; empty where it may be anything.
        same_prompts: whether other prompts than the baseline's are refused.
        resamples, seed: of the bootstrap.
        pooled: the test over all of them together.
    """

    rules: tuple[Rule, ...]
    baseline: dict[str, str]
    same_prompts: bool = True
    resamples: int = RESAMPLES
    seed: int = 0
    pooled: Pooled = Pooled()
