"""Two runs measured by the rules of a gate; runs that are not comparable are refused."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats as laws

from lm_eval_ext.errors import GateError
from lm_eval_ext.gate.verdicts import Measured
from lm_eval_ext.languages import AVERAGE, KNOWN
from lm_eval_ext.results import where
from lm_eval_ext.results.axes import find_axis
from lm_eval_ext.results.pairing import NO_LANGUAGE, Paired, differences, dtype_differences, read_axis
from lm_eval_ext.results.run import find_run, list_runs, short_model, some
from lm_eval_ext.results.runs import load
from lm_eval_ext.results.samples import document_columns
from lm_eval_ext.stats import (
    ClusterBootstrap,
    cluster_bootstrap,
    share_test,
    sign_flip,
    smallest_difference,
    smallest_shortfall,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd

    from lm_eval_ext.gate.rules import Gate, Rule
    from lm_eval_ext.results.axes import Axis
    from lm_eval_ext.results.run import Run

#: The role of each of several evaluations of one model, where neither is the baseline.
EVALUATION = "evaluation"

#: Roles whose run can be named on the command line.
_NAMED = ("baseline", "candidate")

_SEEDS = ("few-shot seed", "random seed")


@dataclass(frozen=True)
class Side:
    """Baseline or candidate, or one of several evaluations whose noise is measured.

    Attributes:
        role: "baseline", "candidate", "evaluation" or "frozen baseline".
        run: the run.
        notes: what the reader of its folder said.
        reruns: other evaluations of the same model (other seeds); a document's score is the mean over all of them, so they
            make scores more certain and never count as more documents.
    """

    role: str
    run: Run
    notes: tuple[str, ...]
    reruns: tuple[Side, ...] = ()
    _frames: dict[Axis, tuple[Axis, pd.DataFrame]] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, role: str, folder: Path | str, name: str | None = None) -> Side:
        """The run of a folder: the one that is named, or the only one.

        Raises:
            ResultsError: no results, or no such run.
            GateError: several runs and none named, or one run evaluated with several seeds.
        """
        tree = load(folder)
        if name is None and len(tree.runs) > 1:
            choose = f"name one with --{role}-run" if role in _NAMED else "give the folder of one"
            raise GateError(
                f"the {role} {folder} holds {len(tree.runs)} runs, and a gate never averages them; "
                f"{choose}:\n{list_runs(tree.runs)}"
            )
        run = tree.runs[0] if name is None else find_run(tree.runs, name)
        for older in run.older:
            newer = run.tasks[older.task]
            for seed in _SEEDS:
                if older.settings[seed] != newer.settings[seed]:
                    raise GateError(
                        f"the {role} {run.name!r} holds {older.task} with several seeds ({seed} "
                        f"{older.settings[seed]} and {newer.settings[seed]}); give a folder for each"
                    )
        return cls(role, run, tree.notes)

    @property
    def title(self) -> str:
        """The run's name, with its plan where it has one: the same model is often gated under several."""
        run = self.run
        return run.name if not run.plan or run.plan in run.name else f"{run.name}, {run.plan}"

    def scores(self, axis: Axis) -> tuple[Axis, pd.DataFrame]:
        """One row per document, read once for all rules; the axis comes back with its filter."""
        if axis not in self._frames:
            if not self.run.tasks.keys() & set(axis.tasks):
                raise GateError(f"the {self.role} {self.run.name!r} has no results for {axis.name}")
            self._frames[axis] = self._averaged(*read_axis(self.run, axis))
        return self._frames[axis]

    def with_reruns(self, others: Sequence[Side]) -> Side:
        """This run averaged with others of the same model, document by document.

        Raises:
            GateError: another model or plan, or a run that is given twice.
        """
        known = [self.run]
        for other in (side.run for side in others):
            if (other.model, other.plan) != (self.run.model, self.run.plan):
                raise GateError(
                    f"{other.path} is no rerun of the {self.role} {self.run.path}: it is {short_model(other.model)} "
                    f"{other.plan or 'unsteered'}, not {short_model(self.run.model)} {self.run.plan or 'unsteered'}"
                )
            if other.path.resolve() in {run.path.resolve() for run in known}:
                raise GateError(f"the {self.role} {other.path} is given twice")
            known.append(other)
        notes = tuple(dict.fromkeys(note for side in (self, *others) for note in side.notes))
        return replace(self, reruns=tuple(others), notes=notes, _frames={})

    def _averaged(self, axis: Axis, frame: pd.DataFrame) -> tuple[Axis, pd.DataFrame]:
        for number, side in enumerate(self.reruns, start=1):
            _, other = side.scores(axis)
            for kind, text in differences((self.run, side.run), axis, (frame, other), set(frame["language"])):
                if kind not in ("dtype", "prompts"):
                    raise GateError(f"the reruns of the {self.role} are not comparable: {text}")
            both = frame.merge(other, on=["task", "doc_hash", "copy"], suffixes=("", "_other"), validate="1:1")
            frame = both[list(frame.columns)].assign(
                value=both["value"] + (both["value_other"] - both["value"]) / (number + 1),
                # Prompts that differ between reruns are no baseline's either.
                prompt_hash=both["prompt_hash"].where(both["prompt_hash"] == both["prompt_hash_other"], ""),
            )
        return axis, frame


@dataclass(frozen=True)
class RulePair:
    """A rule with the scores of both runs that it speaks of.

    Attributes:
        rule: the rule.
        axis: what it speaks of, with its filter.
        pair: scores of which more is better, on the documents of the rule's languages.
        languages: codes and `average`, each of which the rule holds for.
        averaged: the languages of the average.
        is_lower: whether the scores are 1 - score, so that more is better.
    """

    rule: Rule
    axis: Axis
    pair: Paired
    languages: tuple[str, ...]
    averaged: tuple[str, ...]
    is_lower: bool


def measure(gate: Gate, baseline: Side, candidate: Side, *, any_order: bool = False) -> list[Measured]:
    """Compare two runs by every rule.

    Args:
        gate: the rules.
        baseline, candidate: the runs.
        any_order: whether the baseline may have been evaluated after the candidate.

    Raises:
        GateError: the runs are swapped, or not on the same tasks, versions, languages, items or prompts.
        ResultsError: missing or damaged samples, or an unknown axis or metric.
    """
    return measure_rules(gate, pair_rules(gate, baseline, candidate, any_order=any_order))


def pair_rules(gate: Gate, baseline: Side, candidate: Side, *, any_order: bool = False) -> list[RulePair]:
    """The scores that each rule speaks of, with the arguments and the errors of `measure`."""
    for side in (candidate, *candidate.reruns):
        _check_sides(gate, baseline, side.run, any_order=any_order)
    return [pair_rule(rule, gate, baseline, candidate) for rule in gate.rules]


def measure_rules(gate: Gate, paired: Sequence[RulePair]) -> list[Measured]:
    """Each rule in each of its languages; items that must pass all together."""
    return [
        _measure_items(one)
        if one.rule.kind == "must-pass"
        else measure_pair(
            one.rule,
            language,
            one.averaged if language == AVERAGE else (language,),
            one.pair,
            gate,
            is_lower=one.is_lower,
        )
        for one in paired
        for language in one.languages
    ]


def dtype_notes(baseline: Side, candidate: Side) -> list[str]:
    """What is said of two runs that were computed in different dtypes; no reason to refuse them."""
    shared = [task for task in baseline.run.tasks if task in candidate.run.tasks]
    return dtype_differences((baseline.run, candidate.run), shared)


def left_out_notes(gate: Gate, *sides: Side) -> list[str]:
    """Tasks whose names look like a rule's family in one more language, of which nothing says the language."""
    notes = []
    for name in dict.fromkeys(rule.axis for rule in gate.rules):
        judged = set(find_axis(name, [side.run for side in sides]).tasks)
        base = name.removesuffix("_cloze")
        alike = re.compile(rf"{re.escape(base)}[_-][A-Za-z]{{2,3}}([_-][A-Za-z]{{2,4}})?{re.escape(name[len(base) :])}")
        others = {
            task
            for side in sides
            for task, record in side.run.tasks.items()
            if task not in judged and record.language is None and alike.fullmatch(task)
        }
        if others and name not in judged:
            notes.append(
                f"{name}: not judged, as nothing says that they belong to it: {some(sorted(others), 50)}; a task says so "
                "with family and language in its metadata, or in an axis file (`lm-eval-ext axes --help`)"
            )
    return notes


def _check_sides(gate: Gate, before: Side, candidate: Run, *, any_order: bool) -> None:
    role, baseline = before.role, before.run
    if baseline.path.resolve() == candidate.path.resolve():
        raise GateError(f"{role} and candidate are both {baseline.path}; a run cannot be held against itself")
    if candidate.is_committed:
        raise GateError(
            f"{candidate.path} was written by `lm-eval-ext gate renew`: it is a baseline, not a candidate; "
            "are --baseline and --candidate swapped?"
        )
    for key, wanted in gate.baseline.items():
        got = getattr(baseline, key)
        if wanted not in (got, short_model(got)):
            raise GateError(
                f"the gate wants the baseline to have {key} {wanted!r}, {baseline.path} has {got!r}; "
                "are --baseline and --candidate swapped, or was another baseline put in its place?"
            )
    # Clocks of other places count for nothing where the baseline cannot be the candidate.
    if baseline.date > candidate.date and not (any_order or baseline.is_committed):
        raise GateError(
            f"the {role} was evaluated on {baseline.date}, after the candidate, on {candidate.date}: are --baseline "
            "and --candidate swapped? If this is meant, say --any-order"
        )


def pair_rule(rule: Rule, gate: Gate, baseline: Side, candidate: Side) -> RulePair:
    """The scores that one rule speaks of.

    Raises:
        GateError: the runs are not on the same tasks, versions, languages, items or prompts.
        ResultsError: missing or damaged samples, or an unknown axis or metric.
    """
    axis = find_axis(rule.axis, (baseline.run, candidate.run), rule.metric)
    axis, before = baseline.scores(axis)
    _, after = candidate.scores(axis)
    languages, averaged = _languages(rule, baseline, candidate, before, after)
    codes = {*languages, *averaged} - {AVERAGE}
    if rule.kind == "must-pass":
        languages, averaged = (NO_LANGUAGE,), ()
    before, after = (frame[frame["language"].isin(codes)] for frame in (before, after))
    for kind, text in differences((baseline.run, candidate.run), axis, (before, after), codes):
        if kind != "dtype" and (kind != "prompts" or gate.same_prompts):
            raise GateError(f"not comparable: {text}{_prompts_hint(baseline, candidate) if kind == 'prompts' else ''}")
    for side, frame in ((baseline, before), (candidate, after)):
        if not frame["value"].between(0, 1).all():
            raise GateError(
                f"{rule.metric} of {rule.axis} in the {side.role} {side.run.name!r} is not between 0 and 1; "
                "a gate holds shares per document, such as acc or exact_match"
            )
    is_lower = _lower_is_better(rule, axis, baseline.run)
    if is_lower:
        if rule.kind in ("floor", "chance"):
            raise GateError(
                f"{rule.axis}: less {rule.metric} is better, so {rule.kind} means nothing; "
                "write a margin, or better: higher"
            )
        before, after = (frame.assign(value=1 - frame["value"]) for frame in (before, after))
    if rule.kind == "must-pass":
        after = _named_items(rule, axis, candidate.run, after)
    pair = Paired.of(before, after, "value", resamples=gate.resamples, seed=[gate.seed])
    if pair is None:
        raise GateError(f"{rule.axis}: no document has a score in both runs")
    return RulePair(rule, axis, pair, languages, averaged, is_lower)


def _named_items(rule: Rule, axis: Axis, run: Run, frame: pd.DataFrame) -> pd.DataFrame:
    """The documents that must pass."""
    if rule.ids:
        ids = frame["question"].str.partition("/")[2]
        if unknown := sorted(set(rule.ids) - set(ids)):
            close = get_close_matches(unknown[0], ids.unique(), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"its ids are like {some(ids.unique())}"
            raise GateError(
                f"must_pass: {rule.axis} of the candidate {run.name!r} has no question {', '.join(unknown)}; {hint}"
            )
        named: pd.DataFrame = frame[ids.isin(rule.ids)]
        return named
    conditions = where.parse(rule.where)
    where.check(conditions, run, axis.tasks)
    columns = {condition.column for condition in conditions}
    meant = {
        key
        for task in axis.tasks
        if (record := run.tasks.get(task)) is not None and record.samples is not None
        for key, document in document_columns(record.samples)
        if columns <= document.keys() and all(condition.keeps(document) for condition in conditions)
    }
    chosen: pd.DataFrame = frame[frame["doc_hash"].isin(meant)]
    if chosen.empty:
        raise GateError(
            f"must_pass: no item of {rule.axis} in the candidate {run.name!r} has {' and '.join(rule.where)}"
        )
    return chosen


def _measure_items(one: RulePair) -> Measured:
    """Items that must pass: which of them the candidate does not answer right."""
    rows = one.pair.frame
    wrong = rows[rows["after"] < 1]
    return Measured(
        rule=one.rule,
        language=NO_LANGUAGE,
        baseline=float(rows["before"].mean()),
        candidate=float(rows["after"].mean()),
        n=len(rows),
        questions=int(rows["question"].nunique()),
        gains=int((rows["change"] > 0).sum()),
        losses=int((rows["change"] < 0).sum()),
        change=float(rows["change"].mean()),
        low=float("nan"),
        high=float("nan"),
        p=float("nan"),
        smallest=float("inf"),
        items=tuple(
            f"{task} {question.partition('/')[2]}"
            for task, question in zip(wrong["task"], wrong["question"], strict=True)
        ),
    )


def _prompts_hint(*sides: Side) -> str:
    """What may have changed the prompts, and how to go on."""
    templates = [side.run.details.get("chat_template_sha") for side in sides]
    cause = ""
    if templates[0] != templates[1]:
        cause = "their chat templates differ; "
    elif templates[0]:
        cause = "both have the same chat template, and one that writes the date gives other prompts every day; "
    return f"; {cause}where this is meant, write `prompts: any` in the gate's file"


def _languages(
    rule: Rule, baseline: Side, candidate: Side, before: pd.DataFrame, after: pd.DataFrame
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The languages of a rule, and those of its average: all but English."""
    of_side = {side.role: set(frame["language"]) for side, frame in ((baseline, before), (candidate, after))}
    order = [*KNOWN, *sorted(set.union(*of_side.values()) - KNOWN.keys())]
    named = [code for code in rule.languages if code != AVERAGE]
    wanted = named or [code for code in order if any(code in codes for codes in of_side.values())]
    for side in (baseline, candidate):
        if missing := [code for code in wanted if code not in of_side[side.role]]:
            raise GateError(
                f"the {side.role} {side.run.name!r} has no {', '.join(missing)} on {rule.axis}; "
                f"it has {', '.join(code for code in order if code in of_side[side.role])}"
            )
    averaged = tuple(code for code in wanted if code not in ("en", NO_LANGUAGE))
    if not averaged and AVERAGE in rule.languages:
        raise GateError(f"{rule.axis} has nothing to average: an average is over the languages other than English")
    if rule.languages:
        return rule.languages, averaged
    return (*wanted, *([AVERAGE] if len(averaged) > 1 else [])), averaged


def _lower_is_better(rule: Rule, axis: Axis, run: Run) -> bool:
    if rule.better:
        return rule.better == "lower"
    return not all(run.tasks[task].higher_is_better.get(axis.metric, True) for task in axis.tasks if task in run.tasks)


def measure_pair(
    rule: Rule, language: str, strata: Sequence[str], pair: Paired, gate: Gate, *, is_lower: bool = False
) -> Measured:
    """One rule on paired scores.

    Args:
        rule: the rule.
        language: what the result is called.
        strata: the languages that it is the average of.
        pair: scores of which more is better.
        gate: resamples and seed.
        is_lower: whether the scores are 1 - score, so that more is better.
    """
    summary = pair.summary(strata, 1 - 2 * rule.alpha)
    if summary is None:
        raise GateError(f"{rule.axis} has no documents in {', '.join(strata)}")
    levels = [1 - summary[side] if is_lower else summary[side] for side in ("baseline", "run")]
    measured = Measured(
        rule=rule,
        language=language,
        baseline=levels[0],
        candidate=levels[1],
        n=int(summary["n"]),
        questions=int(summary["questions"]),
        gains=int(summary["gains"]),
        losses=int(summary["losses"]),
        change=summary["change"],
        low=summary["low"],
        high=summary["high"],
        p=float("nan"),
        smallest=float("inf"),
    )
    if rule.kind in ("unchanged", "max-gain"):
        return measured
    if rule.kind == "non-inferiority":
        rows = pair.frame[pair.frame["language"].isin(pair.strata(strata))]
        squared = float((rows["change"] ** 2).groupby(rows["language"]).mean().mean())
        n = _effective(pair.bootstrap, pair.strata(strata), squared - measured.change**2)
        p = sign_flip(pair.bootstrap.contributions(pair.strata(strata)), "less", seed=gate.seed)
        smallest = smallest_difference(n, squared, alpha=rule.alpha, power=rule.power)
        return replace(measured, p=p, smallest=smallest)
    return _against_constant(measured, pair, pair.strata(strata), gate)


def _against_constant(measured: Measured, pair: Paired, strata: Sequence[str], gate: Gate) -> Measured:
    """The candidate's score against a floor or the level of chance, by the exact binomial law."""
    rule, share = measured.rule, measured.candidate
    rows = pair.frame[pair.frame["language"].isin(strata)]
    levels = cluster_bootstrap(
        rows["after"], rows["question"], rows["language"], resamples=gate.resamples, seed=[gate.seed, 1]
    )
    n = _effective(levels, strata, share * (1 - share))
    right, wrong = share * n, (1 - share) * n
    low = float(laws.beta.ppf(rule.alpha, right, wrong + 1)) if right > 0 else 0.0
    high = float(laws.beta.ppf(1 - rule.alpha, right + 1, wrong)) if wrong > 0 else 1.0
    return replace(
        measured,
        change=share - rule.limit,
        low=low - rule.limit,
        high=high - rule.limit,
        p=share_test(share, n, rule.limit, "less"),
        smallest=smallest_shortfall(n, rule.limit, alpha=rule.alpha, power=rule.power),
    )


def _effective(bootstrap: ClusterBootstrap, strata: Sequence[str], variance: float) -> float:
    """How many independent documents would be as certain as these clustered ones: variance of one / that of the mean.

    Between the number of questions (all languages answer alike) and that of documents; the former where nothing varies.
    """
    questions, documents = bootstrap.n_clusters(strata), bootstrap.n_documents(strata)
    of_mean = float(np.nanvar(bootstrap.draws(strata)))
    return min(max(variance / of_mean, questions), documents) if of_mean > 0 else questions
