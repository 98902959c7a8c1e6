"""Verdicts: a pure function of what was measured.

- pass: a loss of the margin is excluded. A candidate that did lose the margin passes with a probability of about alpha:
  bootstrap bounds keep it within a point or so (benchmarks/coverage_of_intervals.py prints it).
- fail: a loss is shown, and a loss of the margin is not excluded. Losses are tested by sign flips (in one language the
  exact McNemar test) and corrected over all rules and languages together (Holm), so that a gate fails an unchanged
  candidate with probability alpha at most.
- inconclusive: there are too few items to see the margin (checked first), or neither a loss nor its absence is shown.
  With too few items only a change as large as these items can show is judged.

Where the noise floor is known (see `noise`), a change that the same model shows from one evaluation to the next is
inconclusive, not a failure; so is a loss of all items together.

Where a frozen baseline is given (see `drift`), the rules that compare two runs are held against it too, with a margin of
their own: a baseline that moves with every release never shows losses that are small each time.

Items that must pass fail with any wrong answer. A gain beyond its limit fails, as a warning, where the items show a gain.
Rules of severity "warning" and rules that are waived are reported and do not decide.

The pooled test (see `pooled`) counts only where the gate says that it decides: it fails where a loss is shown, and is
inconclusive where the items cannot show the loss that they are asked to.

Side effects are held to limits by one-sided bounds over texts (see `side_effects`).

A floor and the level of chance are held against exact binomial bounds, which few items make wide by themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from lm_eval_ext.errors import GateError
from lm_eval_ext.results.run import some
from lm_eval_ext.side_effects.measures import change_text, level_text, scale
from lm_eval_ext.stats.significance import holm

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import date

    from lm_eval_ext.gate.rules import Pooled, Rule, Waiver

Verdict = Literal["pass", "fail", "inconclusive"]

#: Worst first, with the exit status of a gate whose worst verdict it is; misuse is 3.
STATUS: dict[Verdict, int] = {"fail": 1, "inconclusive": 2, "pass": 0}


@dataclass(frozen=True)
class Measured:
    """One rule in one language, or in the average.

    Changes count in the direction in which the score gets better: a loss is negative for the English bias too.

    Attributes:
        rule: the rule.
        language: code, `average`, or `all` where documents have no language.
        baseline, candidate: scores on the same documents.
        n, questions: documents and clusters of them.
        gains, losses: documents whose score got better and worse.
        change: against the baseline, or against the floor or the level of chance.
        low, high: its one-sided bounds, each at the rule's alpha.
        p: of a loss; NaN where none is tested.
        smallest: the smallest loss that these items can show.
        items: those that must pass and are wrong.
        noise: the change that noise alone may make, and `noise_flips` the share of documents that it may change; 0 where it
            is not asked.
        undecided: documents whose margin is within the noise, the closest first; None where it is not known.
    """

    rule: Rule
    language: str
    baseline: float
    candidate: float
    n: int
    questions: int
    gains: int
    losses: int
    change: float
    low: float
    high: float
    p: float
    smallest: float
    items: tuple[str, ...] = ()
    noise: float = 0.0
    noise_flips: float = 0.0
    undecided: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Check:
    """One verdict and why; `waiver` is what keeps a broken rule from deciding."""

    measured: Measured
    verdict: Verdict
    detail: str
    p: float
    waiver: Waiver | None = None

    @property
    def decides(self) -> bool:
        """Whether the verdict of the gate depends on this one."""
        return self.verdict == "pass" or (self.measured.rule.severity == "error" and self.waiver is None)

    @property
    def label(self) -> str:
        """The verdict, and why it does not decide: `fail (waived)`."""
        return self.verdict if self.decides else f"{self.verdict} ({'waived' if self.waiver else 'warning'})"

    @property
    def levels(self) -> tuple[str, str]:
        """The scores of baseline and candidate as text: shares as percentages, side effects in their unit."""
        rule = self.measured.rule
        kind = scale(rule.metric) if rule.kind == "side-effect" else "share"
        return level_text(self.measured.baseline, kind), level_text(self.measured.candidate, kind)

    @property
    def name(self) -> str:
        """What was checked: `blend_decon acc el`."""
        rule = self.measured.rule
        since = f" since {rule.since}" if rule.since else ""
        return f"{rule.axis} {rule.metric} {self.measured.language}{since}"


@dataclass(frozen=True)
class PooledTest:
    """The test for a loss on all items, or on those of an axis or of one of its languages.

    Attributes:
        name: "all", an axis, or an axis and a language.
        n, questions: documents and clusters of them.
        gains, losses: documents whose score got better and worse.
        change: mean over the documents, positive is better.
        p: of a loss, one-sided, corrected for the number of parts.
    """

    name: str
    n: int
    questions: int
    gains: int
    losses: int
    change: float
    p: float


@dataclass(frozen=True)
class PooledResult:
    """The pooled verdict.

    Attributes:
        asked: what the gate asks of it.
        suite: the test over all items.
        parts: those of the axes and their languages.
        smallest: the smallest loss that all items can show.
        noise: the loss that noise alone may make; 0 where it is not asked.
        n_margins: documents whose margins were compared; 0 where it is answers.
        n_waived: documents that were left out, as a loss in them is waived.
    """

    asked: Pooled
    suite: PooledTest
    parts: tuple[PooledTest, ...]
    smallest: float
    noise: float = 0.0
    n_margins: int = 0
    n_waived: int = 0

    @property
    def verdict(self) -> Verdict:
        """What it says, whether or not it decides."""
        if self.suite.p <= self.asked.alpha:
            return "inconclusive" if self.is_within_noise else "fail"
        return "inconclusive" if self.asked.margin and self.smallest > self.asked.margin else "pass"

    @property
    def is_within_noise(self) -> bool:
        """Whether the same model evaluated again may lose as much."""
        return -self.suite.change <= self.noise

    @property
    def sensitivity(self) -> str:
        """What the items can show, to be read before the verdict."""
        suite = self.suite
        least = f"a loss of {100 * self.smallest:.2f} points" if math.isfinite(self.smallest) else "no loss at all"
        by_margins = f" by the margins of {self.n_margins}" if self.n_margins else ""
        waived = f"; {self.n_waived} waived items are left out" if self.n_waived else ""
        return (
            f"{suite.n} items of {suite.questions} questions, {100 * (suite.gains + suite.losses) / suite.n:.1f}% changed, "
            f"can show {least} with {100 * self.asked.power:g}% power{by_margins}{waived}"
        )

    @property
    def detail(self) -> str:
        """The verdict in a sentence."""
        suite = self.suite
        by_margins = " by margins" if self.n_margins else ""
        text = f"{points(suite.change, 2)} points{by_margins} ({suite.gains} gained, {suite.losses} lost)"
        if suite.p <= self.asked.alpha:
            lost = [f"{part.name} (p {_p(part.p)})" for part in self.parts if part.p <= self.asked.alpha]
            where = f", in {', '.join(lost)}" if lost else ", in no single part"
            noise = f"; the same model moves by {100 * self.noise:.2f} points" if self.is_within_noise else ""
            return f"{text}: a loss is shown (p {_p(suite.p)}){where}{noise}"
        short = f", but {100 * self.asked.margin:g} points cannot be seen" if self.verdict == "inconclusive" else ""
        return f"{text}: no loss is shown (p {_p(suite.p)}){short}"


@dataclass(frozen=True)
class GateResult:
    """All verdicts, and the pooled one where it was tested.

    Attributes:
        checks: rules in languages, those of the drift behind the others.
        pooled: the pooled test against the baseline.
        drift: the same against the frozen baseline; it is reported and does not decide, as its checks do.
    """

    checks: tuple[Check, ...]
    pooled: PooledResult | None = None
    drift: PooledResult | None = None

    @property
    def verdict(self) -> Verdict:
        """The worst one."""
        verdicts = {check.verdict for check in self.checks if check.decides} or {"pass"}
        if self.pooled is not None and self.pooled.asked.decides:
            verdicts.add(self.pooled.verdict)
        return next(verdict for verdict in STATUS if verdict in verdicts)

    @property
    def passed(self) -> bool:
        """Whether every rule passed."""
        return self.verdict == "pass"

    def count(self, verdict: Verdict) -> int:
        """Checks with this verdict that decide."""
        return sum(check.verdict == verdict for check in self.checks if check.decides)

    @property
    def notes(self) -> list[str]:
        """Waivers that nothing needs any more."""
        waived: dict[Waiver, list[str]] = {}
        for check in self.checks:
            if check.waiver is not None:
                waived.setdefault(check.waiver, []).append(check.verdict)
        return [
            f"the waiver of {waiver.axis} ({waiver.reason}) is not needed: all its checks pass"
            for waiver, verdicts in waived.items()
            if set(verdicts) == {"pass"}
        ]

    @property
    def detail(self) -> str:
        """The verdict in a sentence."""
        counts = ", ".join(f"{self.count(verdict)} {verdict}" for verdict in STATUS if self.count(verdict))
        labels = [check.label for check in self.checks if not check.decides]
        aside = "".join(f", {labels.count(label)} {label}" for label in dict.fromkeys(labels))
        decided = f"; pooled: {self.pooled.verdict}" if self.pooled is not None and self.pooled.asked.decides else ""
        return f"{self.verdict}: {(counts + aside).removeprefix(', ')}, of {len(self.checks)} checks{decided}"


def judge(
    measured: Sequence[Measured], pooled: PooledResult | None = None, drift: PooledResult | None = None
) -> GateResult:
    """Verdicts on everything that was measured, corrected for its number.

    Args:
        measured: rules in languages.
        pooled: the test over all of them, where it was made.
        drift: the same against the frozen baseline.

    Raises:
        ValueError: nothing was measured.
    """
    if not measured:
        raise ValueError("a gate needs at least one measurement")
    corrected = holm([measurement.p for measurement in measured]).tolist()
    checks = tuple(Check(one, *_decide_noisy(one, p), p) for one, p in zip(measured, corrected, strict=True))
    return GateResult(checks, pooled, drift)


def waive(result: GateResult, waivers: Iterable[Waiver], today: date) -> GateResult:
    """The same verdicts, of which those that are waived do not decide.

    Raises:
        GateError: a waiver has expired, or speaks of no check.
    """
    checks = list(result.checks)
    for waiver in waivers:
        name = f"the waiver of {' '.join((waiver.axis, waiver.metric, ', '.join(waiver.languages))).strip()}"
        if waiver.until < today:
            raise GateError(
                f"{name} expired on {waiver.until} ({waiver.reason}); take it out of the gate, or give it another day"
            )
        meant = [
            number
            for number, check in enumerate(checks)
            if check.measured.rule.axis == waiver.axis
            and waiver.metric in ("", check.measured.rule.metric)
            and (not waiver.languages or check.measured.language in waiver.languages)
        ]
        if not meant:
            names = ", ".join(dict.fromkeys(check.name for check in checks))
            raise GateError(f"{name} speaks of no check; there are: {names}")
        for number in meant:
            checks[number] = replace(checks[number], waiver=waiver)
    return replace(result, checks=tuple(checks))


def points(share: float, digits: int = 1) -> str:
    """A change in percentage points, with its sign."""
    text = f"{100 * share:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def _decide_noisy(measured: Measured, p: float) -> tuple[Verdict, str]:
    """The verdict, unless what fails is within the noise of the same model."""
    verdict, text = _decide(measured, p)
    if verdict == "fail" and measured.rule.kind == "non-inferiority" and -measured.change <= measured.noise:
        verdict, text = "inconclusive", f"{text}; the same model moves by {100 * measured.noise:.1f} points"
    if verdict == "fail" and measured.rule.kind == "unchanged":
        changed = measured.gains + measured.losses
        if changed <= measured.noise_flips * measured.n:
            verdict, text = "inconclusive", f"{text}; the same model flips {100 * measured.noise_flips:.1f}%"
    if measured.undecided is not None:
        text += f"; {len(measured.undecided)} of {measured.n} answers are undecided (margin within the noise)"
        if measured.undecided:
            text += f": {some(measured.undecided)}"
    return verdict, text


def _decide(measured: Measured, p: float) -> tuple[Verdict, str]:
    rule = measured.rule
    if rule.kind == "unchanged":
        changed = measured.gains + measured.losses
        text = f"{changed} of {measured.n} items changed ({100 * changed / measured.n:.1f}%)"
        return ("pass" if changed <= rule.limit * measured.n + 1e-9 else "fail"), text
    if rule.kind == "must-pass":
        if not measured.items:
            return "pass", "the item is right" if measured.n == 1 else f"all {measured.n} items are right"
        are = "item is" if measured.n == 1 else "items are"
        return "fail", f"{len(measured.items)} of {measured.n} {are} wrong: {some(measured.items, 5)}"
    if rule.kind == "side-effect":
        return _decide_side_effect(measured)
    moved = f"{points(measured.change)} [{points(measured.low)}, {points(measured.high)}]"
    if rule.kind == "max-gain":
        if measured.change > rule.limit and measured.low > 0:
            return "fail", f"{moved}: more than is plausible; look for test questions in the data, and at the prompts"
        return "pass", f"{moved}: no suspicious gain"
    excluded = "a score below it" if rule.kind == "floor" else f"a loss of {100 * rule.margin:.1f}"
    if rule.kind != "non-inferiority":
        moved += f" against {rule.limit:g}"
    if rule.kind == "non-inferiority" and measured.smallest > max(rule.margin, abs(measured.change)):
        least = f"{100 * measured.smallest:.1f} points" if math.isfinite(measured.smallest) else "no loss at all"
        return "inconclusive", f"{moved}: too few items, {measured.n} can show {least}, not {100 * rule.margin:.1f}"
    if measured.low > -rule.margin:
        return "pass", f"{moved}: {excluded} is excluded"
    if p <= rule.alpha:
        return "fail", f"{moved}: a loss is shown (p {_p(p)}), and {excluded} is not excluded"
    return "inconclusive", f"{moved}: no loss is shown (p {_p(p)}), but {excluded} is not excluded"


def _decide_side_effect(measured: Measured) -> tuple[Verdict, str]:
    """A limit that a bound over texts keeps, breaks, or leaves open."""
    rule = measured.rule
    sign = -1.0 if rule.bound in ("max", "max_rise") else 1.0
    limit = -rule.limit if rule.bound == "max_fall" else rule.limit
    of_level = rule.bound in ("max", "min")
    if not math.isfinite(measured.low + measured.high):
        return "inconclusive", "the baseline is 0, or nothing was written: no change can be told"
    show = level_text if of_level else change_text
    low, high = sorted(sign * bound + limit for bound in (measured.low, measured.high))
    values = (show(value, scale(rule.metric)) for value in (sign * measured.change + limit, low, high))
    text = "{} [{}, {}]".format(*values)
    if measured.low >= 0:
        return "pass", f"{text}: within the limit"
    if measured.high < 0:
        return "fail", f"{text}: beyond the limit"
    return "inconclusive", f"{text}: too few texts to tell it from the limit"


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "below 0.001"
