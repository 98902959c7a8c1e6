"""`gate.yaml`: which scores are held to what.

    alpha: 0.05            # how often an unchanged model may fail, over all rules together
    power: 0.8             # how surely a loss of the margin must be seen
    baseline: {model: google/gemma-3-12b-it, plan: ""}     # optional: any other baseline is refused
    pooled: {decides: true, margin: 0.005}                 # optional: the test over all items together counts too;
                                                           # scores: margins (of options) instead of right and wrong
    noise: noise.json      # optional: of `lm-eval-ext gate noise`; a change within the noise is no failure
    drift: {frozen: baselines/v1, margin: 0.03}            # optional: a baseline that is not renewed; also severity
    rules:
      - axis: blend_decon  # task, group or family, as in `lm-eval-ext plane --y`
        metric: acc
        languages: [es, el, average]    # all, and their average, if not given
        margin: 0.03       # non-inferiority: a loss of this size must be excluded
      - {axis: blend_decon, languages: el, floor: 0.35}    # the score itself
      - {axis: gmmlu, chance: 0.25, margin: 0.05}          # no worse than guessing
      - {axis: transfer_mini_cloze, max_changed: 0.02}     # share of documents whose score may change at all
      - {axis: gmmlu, max_gain: 0.1}                       # a larger gain is suspicious: a warning
      - {axis: gmmlu, languages: ar, severity: warning}    # reported, does not decide
    side_effects:          # of `lm-eval-ext side-effects --json`: max or min of the candidate, or against its baseline
      file: side_effects.json
      rules:
        - {measure: perplexity, max_rise: 0.05}            # a share of the baseline's
        - {measure: language, languages: [ko, el], min: 0.95}
        - {measure: kl, languages: average, max: 0.1}      # also max_fall, severity, alpha
    must_pass:             # questions that the candidate must answer right, by id or by columns of the documents
      - {axis: blend_decon, ids: [Al-en-12, Ko-ko-7]}
      - {axis: blend_decon, where: topic=Food, languages: el}
    waivers:               # broken rules that do not decide until a day, which an expired waiver is an error after
      - {axis: gmmlu, languages: ko, reason: known regression of the tokenizer, until: 2026-12-31}

All numbers are shares between 0 and 1, but for limits on side effects, which are in the unit of the measure.
"""

from __future__ import annotations

from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from lm_eval_ext.configs import Names, Table, Text, read_config
from lm_eval_ext.errors import GateError
from lm_eval_ext.gate.rules import (
    ALPHA,
    CHANCE_MARGIN,
    MARGIN,
    SIDE_EFFECTS,
    Bound,
    Drift,
    Gate,
    Kind,
    Pooled,
    Rule,
    Severity,
    Waiver,
)
from lm_eval_ext.languages import AVERAGE, normalise
from lm_eval_ext.results import where
from lm_eval_ext.side_effects.measures import ACCURACY, MEASURES, is_measure
from lm_eval_ext.stats.bootstrap import RESAMPLES
from lm_eval_ext.stats.power import POWER

_KIND_OF: dict[str, Kind] = {"floor": "floor", "chance": "chance", "max_changed": "unchanged", "max_gain": "max-gain"}
#: Limits that mean the same where less is better.
_EITHER_WAY = ("max_changed", "max_gain")

_HINT = "(3 points are 0.03)"
_Share = Annotated[float, Field(gt=0, lt=1, description=f"a share above 0, below 1 {_HINT}")]
_Alpha = Annotated[float, Field(gt=0, lt=0.5, description="a share above 0, below 0.5")]
_ONE_OR_MORE = f"at least one code, such as [ko, el, {AVERAGE}]; leave the key out for all"
_Limit = Annotated[float | None, Field(ge=0, description="a number from 0, in the unit of the measure")]
_BOUNDS = get_args(Bound)
_Severity = Annotated[Severity, Field(description="error or warning")]


def _conditions(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError
    return tuple(map(str, where.parse(texts)))


def _ids(value: Any) -> Any:
    """Ids that YAML takes for numbers are texts."""
    return [str(entry) if type(entry) is int else entry for entry in value] if isinstance(value, list) else value


def _date(value: Any) -> date:
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError from None


def _codes(languages: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(code if code == AVERAGE else normalise(code) for code in languages))


class _Rule(Table):
    """A rule as the file has it. What is left out has no value here: whether a key is given decides the kind."""

    axis: Text = Field(description="a name")
    metric: Text = Field(default="acc", description="a name")
    languages: Names = Field(default=(), description=_ONE_OR_MORE)
    margin: _Share = MARGIN
    floor: _Share = 0.0
    chance: _Share = 0.0
    # None of the items may change: 0 is a meaningful share here only.
    max_changed: float = Field(default=0.0, ge=0, lt=1, description=f"a share from 0, below 1 {_HINT}")
    max_gain: _Share = 0.0
    severity: _Severity = "error"
    better: Literal["higher", "lower"] = Field(default="higher", description="higher or lower")
    alpha: _Alpha = ALPHA
    power: _Share = POWER

    @property
    def limits(self) -> list[str]:
        """The keys that say what is asked; none for non-inferiority."""
        return [key for key in _KIND_OF if key in self.model_fields_set]

    @model_validator(mode="after")
    def _fits_together(self) -> _Rule:
        limits, given = self.limits, self.model_fields_set
        if len(limits) > 1:
            raise ValueError(f"{' and '.join(limits)} in one rule; write a rule for each")
        if "margin" in given and limits and limits[0] != "chance":
            raise ValueError(f"margin has no meaning beside {limits[0]}; leave it out")
        if self.better == "lower" and limits and limits[0] not in _EITHER_WAY:
            raise ValueError(f"{limits[0]} asks for a score of which more is better; better is 'lower'")
        return self

    def rule(self, gate: _Gate) -> Rule:
        """The rule, with the gate's values for what it leaves open."""
        given, key = self.model_fields_set, next(iter(self.limits), "")
        default_margin = {"": MARGIN, "chance": CHANCE_MARGIN}.get(key, 0.0)
        return Rule(
            axis=self.axis,
            metric=self.metric,
            languages=_codes(self.languages),
            kind=_KIND_OF.get(key, "non-inferiority"),
            limit=getattr(self, key) if key else 0.0,
            margin=self.margin if "margin" in given else default_margin,
            better=self.better if "better" in given else None,
            alpha=self.alpha if "alpha" in given else gate.alpha,
            power=self.power if "power" in given else gate.power,
            severity="warning" if key == "max_gain" and "severity" not in given else self.severity,
        )


class _MustPass(Table):
    """Items that the candidate must answer right."""

    axis: Text = Field(description="a name")
    metric: Text = Field(default="acc", description="a name")
    languages: Names = Field(default=(), description="at least one code, such as [ko, el]; leave the key out for all")
    ids: Annotated[Names, BeforeValidator(_ids)] = Field(
        default=(), description="ids of questions, as texts or numbers"
    )
    where: Annotated[tuple[str, ...], BeforeValidator(_conditions)] = Field(
        default=(), description="a condition such as topic=Food, or a list of them"
    )
    severity: _Severity = "error"

    @model_validator(mode="after")
    def _names_items(self) -> _MustPass:
        if bool(self.ids) == bool(self.where):
            raise ValueError("either ids or where must say which items")
        if AVERAGE in self.languages:
            raise ValueError(f"{AVERAGE} has no items; name languages, or leave the key out for all")
        return self

    def rule(self) -> Rule:
        """The items as a rule."""
        return Rule(
            axis=self.axis,
            metric=self.metric,
            languages=_codes(self.languages),
            kind="must-pass",
            margin=0.0,
            severity=self.severity,
            ids=self.ids,
            where=self.where,
        )


class _Waiver(Table):
    axis: Text = Field(description="the axis of a rule")
    metric: Text = Field(default="", description="the metric of a rule")
    languages: Names = Field(default=(), description=_ONE_OR_MORE)
    reason: Text = Field(description="a reason")
    until: Annotated[date, BeforeValidator(_date)] = Field(description="a day, such as 2026-12-31")

    def waiver(self) -> Waiver:
        """The waiver, with the usual codes of languages."""
        return Waiver(self.axis, self.metric, _codes(self.languages), self.reason, self.until)


class _Baseline(Table):
    model: str | None = Field(default="", description="a name")
    plan: str | None = Field(default="", description="a plan, or nothing for an unsteered model")


class _Pooled(Table):
    """The pooled test; what is left out is the gate's."""

    decides: bool = Field(default=False, description="true or false")
    margin: _Share = 0.0
    alpha: _Alpha = ALPHA
    power: _Share = POWER
    scores: Literal["answers", "margins"] = Field(default="answers", description="answers or margins")

    def pooled(self, gate: _Gate) -> Pooled:
        """The test, with the gate's values for what it leaves open."""
        given = self.model_fields_set
        return Pooled(
            decides=self.decides,
            margin=self.margin,
            scores=self.scores,
            alpha=self.alpha if "alpha" in given else gate.alpha,
            power=self.power if "power" in given else gate.power,
        )


class _Drift(Table):
    frozen: Text = Field(description="a folder of results, from the gate's file on")
    margin: _Share
    severity: _Severity = "error"


class _SideEffect(Table):
    measure: Text = Field(description="a measure")
    languages: Names = Field(default=(), description=_ONE_OR_MORE)
    max: _Limit = None
    min: _Limit = None
    max_rise: _Limit = None
    max_fall: _Limit = None
    severity: _Severity = "error"
    alpha: _Alpha = ALPHA

    @model_validator(mode="after")
    def _means_something(self) -> _SideEffect:
        if not is_measure(self.measure):
            close = get_close_matches(self.measure, MEASURES, n=1)
            hint = f"did you mean {close[0]!r}? Valid" if close else "valid"
            raise ValueError(f"measure is {self.measure!r}; {hint}: {', '.join(MEASURES)}, {ACCURACY}TASK")
        if len(self.given) != 1:
            raise ValueError(f"{' and '.join(self.given) or 'no limit'}; needed: one of {', '.join(_BOUNDS)}")
        return self

    @property
    def given(self) -> list[Bound]:
        """The limits that are given."""
        return [bound for bound in _BOUNDS if getattr(self, bound) is not None]

    def rule(self, gate: _Gate) -> Rule:
        """The rule, with the gate's alpha where it has none."""
        return Rule(
            axis=SIDE_EFFECTS,
            metric=self.measure,
            languages=_codes(self.languages),
            kind="side-effect",
            bound=self.given[0],
            limit=getattr(self, self.given[0]),
            margin=0.0,
            alpha=self.alpha if "alpha" in self.model_fields_set else gate.alpha,
            severity=self.severity,
        )


class _SideEffects(Table):
    file: Text = Field(description="a file of lm-eval-ext side-effects --json")
    rules: list[_SideEffect] = Field(min_length=1, description="a list of at least one rule")


class _Gate(Table):
    alpha: _Alpha = ALPHA
    power: _Share = POWER
    resamples: int = Field(default=RESAMPLES, ge=100, description="a whole number, at least 100")
    seed: int = Field(default=0, ge=0, description="a whole number, at least 0")
    baseline: _Baseline = _Baseline()
    prompts: Literal["same", "any"] = Field(default="same", description="same or any")
    pooled: _Pooled = _Pooled()
    noise: Text | None = Field(default=None, description="a file of lm-eval-ext gate noise --json")
    drift: _Drift | None = None
    side_effects: _SideEffects | None = None
    rules: list[_Rule] = Field(min_length=1, description="a list of at least one rule")
    must_pass: list[_MustPass] = Field(default=[], description="a list of items")
    waivers: list[_Waiver] = Field(default=[], description="a list of waivers")

    @model_validator(mode="after")
    def _has_something_that_drifts(self) -> _Gate:
        if self.drift is not None and all(rule.limits for rule in self.rules):
            raise ValueError("drift needs a rule that compares two runs, one with a margin and no other limit")
        return self

    @model_validator(mode="after")
    def _can_be_powerful(self) -> _Gate:
        tests: dict[str, Rule | Pooled] = {f"rule {n}": rule.rule(self) for n, rule in enumerate(self.rules, start=1)}
        for name, test in (tests | {"pooled": self.pooled.pooled(self)}).items():
            if test.power <= test.alpha:
                raise ValueError(f"{name}: power is {test.power:g}; needed: a share above alpha ({test.alpha:g})")
        return self


def read_gate(path: Path | str) -> Gate:
    """Read the rules of a gate.

    Raises:
        GateError: no such file, not YAML, or keys or values that mean nothing; the message names all of them and what is
            valid.
    """
    file = read_config(Path(path), _Gate, GateError, "gate")
    here = Path(path).parent
    return Gate(
        rules=(*(rule.rule(file) for rule in file.rules), *(items.rule() for items in file.must_pass)),
        baseline={key: getattr(file.baseline, key) or "" for key in file.baseline.model_fields_set},
        same_prompts=file.prompts == "same",
        resamples=file.resamples,
        seed=file.seed,
        pooled=file.pooled.pooled(file),
        waivers=tuple(waiver.waiver() for waiver in file.waivers),
        noise=here / file.noise if file.noise else None,
        side_effects=tuple(rule.rule(file) for rule in file.side_effects.rules) if file.side_effects else (),
        panel=here / file.side_effects.file if file.side_effects else None,
        drift=None if (drift := file.drift) is None else Drift(here / drift.frozen, drift.margin, drift.severity),
    )
