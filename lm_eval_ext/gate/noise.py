"""The noise floor: what changes where the same model is evaluated again.

Another batch size, dtype or engine rounds differently, and near ties turn. Each pair of evaluations of one model is compared
as the gate compares two models: how many answers flip, by how much the score moves, and by how much margins move. A margin
is the log-likelihood of the best option minus that of the second best, in nats; an answer whose margin is below what
margins move by is undecided.
"""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
from argparse import ArgumentError, ArgumentParser
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import Field, ValidationError
from scipy import stats as laws

from lm_eval_ext.configs import Table, Text, messages
from lm_eval_ext.errors import GateError
from lm_eval_ext.gate.measuring import pair_rule
from lm_eval_ext.gate.pooled import pooled_documents
from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.results.run import short_model
from lm_eval_ext.results.samples import log_likelihoods, read_documents

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lm_eval_ext.gate.measuring import RulePair, Side
    from lm_eval_ext.gate.rules import Gate
    from lm_eval_ext.gate.verdicts import Measured
    from lm_eval_ext.results.run import Run

_ORDERS = ("given", "reversed")
#: Share of the answers whose margin moves by less than what is called the noise of margins.
_MARGIN_LEVEL = 0.95

_Scores = dict[tuple[str, str], "NDArray[np.float64]"]
_Share = Field(ge=0, le=1, description="a share from 0 to 1")


class Flips(Table):
    """How the scores of some documents differ between evaluations of one model.

    Attributes:
        n: documents.
        flips, most_flips: share of the documents whose score differs between two evaluations, mean and maximum.
        shift: the largest difference between two scores.
        deviation: standard deviation of the difference of two scores, from the flips by question.
    """

    n: int = Field(ge=1, description="a whole number, at least 1")
    flips: float = _Share
    most_flips: float = _Share
    shift: float = _Share
    deviation: float = _Share

    def floor(self, alpha: float) -> float:
        """The change of a score that noise alone exceeds with a probability of about alpha, and no smaller than one seen."""
        return max(self.shift, float(laws.norm.ppf(1 - alpha)) * self.deviation)


class Noise(Flips):
    """One axis in one language, or in the average.

    Attributes:
        axis, metric, language: as the gate's rules and their checks are called.
        margin: what 95% of the margins move by less than, in nats; None where nothing has options.
    """

    axis: Text
    metric: Text
    language: Text
    margin: float | None = Field(default=None, ge=0, description="a number from 0")


class NoiseFloor(Table):
    """What `lm-eval-ext gate noise` found, which `noise:` in a gate reads.

    Attributes:
        model: which was evaluated several times.
        runs: how often.
        noise: per axis and language.
        pooled: of all documents together, as the pooled test counts them.
    """

    model: str
    runs: int = Field(ge=2, description="a whole number, at least 2")
    noise: tuple[Noise, ...] = Field(min_length=1, description="at least one entry")
    pooled: Flips

    def to_json(self) -> str:
        """The file that a gate reads."""
        return json.dumps(self.model_dump(), indent=1, ensure_ascii=False) + "\n"


def read_noise(path: Path) -> NoiseFloor:
    """What `NoiseFloor.to_json` wrote.

    Raises:
        GateError: no such file, or something else in it.
    """
    try:
        return NoiseFloor.model_validate_json(path.read_bytes())
    except OSError as error:
        raise GateError(f"cannot read the noise floor {path}: {error.strerror}") from None
    except ValidationError as problems:
        first = messages(problems, NoiseFloor)[0]
        raise GateError(f"{path} was not written by `lm-eval-ext gate noise --json`: {first}") from None


def run_evaluations(folder: Path, runs: int, arguments: str, vary: Sequence[str] = ()) -> list[Path]:
    """Evaluate a model several times, each time with another batch size (1, 2, 4, ...) unless something else varies.

    Args:
        folder: results go to `run1`, `run2`, ... in it.
        runs: how often.
        arguments: of `lm-eval-ext eval`, without where results go.
        vary: `KEY=VALUE,VALUE,...`, values that the runs take in turn: of `batch_size`, `model` (the engine), `order` (of
            the tasks: given, reversed) or of a key of `--model_args`, such as `dtype`.

    Raises:
        GateError: there are such results, an evaluation failed, or arguments that cannot be read.
    """
    varied = [_values(text) for text in vary]
    folders = [folder / f"run{number}" for number in range(1, runs + 1)]
    if there := [path for path in folders if path.exists()]:
        raise GateError(f"{there[0]} exists; give another folder, or leave out --runs to read what is there")
    try:
        given = shlex.split(arguments)
    except ValueError as error:
        raise GateError(f"--eval cannot be split into arguments ({error}): {arguments}") from None
    names = {argument.partition("=")[0] for argument in given}
    if names & {"--output_path", "-o"}:
        raise GateError("--eval must not say --output_path: the results go to the folder that is given")
    if not varied and not names & {"--batch_size", "-b"}:
        varied = [("batch_size", [str(2**number) for number in range(runs)])]
    for number, path in enumerate(folders):
        told = given
        for key, values in varied:
            told = _told(told, key, values[number % len(values)])
        command = [sys.executable, "-m", "lm_eval_ext", "eval", *told, f"--output_path={path}", "--log_samples"]
        status = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode  # noqa: S603
        if status:
            raise GateError(f"evaluation {number + 1} of {runs} failed with status {status}: {shlex.join(command[3:])}")
    return folders


def _values(text: str) -> tuple[str, list[str]]:
    """The key and the values of `KEY=VALUE,VALUE`."""
    key, _, listed = text.partition("=")
    values = [value.strip() for value in listed.split(",")]
    if not key.strip() or len(values) < 2 or not all(values):
        raise GateError(f"--vary {text!r}: write KEY=VALUE,VALUE with two values or more, such as batch_size=1,8")
    if key == "order" and not set(values) <= set(_ORDERS):
        raise GateError(f"--vary {text!r}: valid orders: {', '.join(_ORDERS)}")
    return key.strip(), values


def _told(given: Sequence[str], key: str, value: str) -> list[str]:
    """The arguments of the harness with another value of a key."""
    options = ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    options.add_argument("--model", "-M")
    options.add_argument("--batch_size", "-b")
    options.add_argument("--tasks", "-t", nargs="+", default=[])
    options.add_argument("--model_args", "-a", nargs="+", default=[])
    try:
        named, told = options.parse_known_args(list(given))
    except ArgumentError as error:
        raise GateError(f"--eval: {error}") from None
    tasks, model_args = (",".join(words).split(",") for words in (named.tasks, named.model_args))
    if key in ("model", "batch_size"):
        setattr(named, key, value)
    elif key == "order":
        tasks = tasks[:: 1 if value == "given" else -1]
    else:
        model_args = [*(part for part in model_args if part.partition("=")[0] != key), f"{key}={value}"]
    listed = {
        "model": named.model,
        "batch_size": named.batch_size,
        "tasks": ",".join(filter(None, tasks)),
        "model_args": ",".join(filter(None, model_args)),
    }
    return [*told, *(f"--{name}={text}" for name, text in listed.items() if text)]


def measure_noise(gate: Gate, evaluations: Sequence[Side]) -> NoiseFloor:
    """Compare every two of several evaluations of one model, on what the rules of a gate speak of.

    Raises:
        GateError: fewer than two evaluations, one given twice, other models or plans, or not the same items.
        ResultsError: missing or damaged samples.
    """
    if len(evaluations) < 2:
        raise GateError(f"noise needs at least two evaluations of the same model, got {len(evaluations)}")
    first = evaluations[0].run
    for number, side in enumerate(evaluations[1:], start=1):
        if any(side.run.path.resolve() == other.run.path.resolve() for other in evaluations[:number]):
            raise GateError(f"{side.run.path} is given twice; noise needs other evaluations of the same model")
        if (side.run.model, side.run.plan) != (first.model, first.plan):
            raise GateError(
                f"noise is measured on one model: {first.path} has {_who(first)}, {side.run.path} has {_who(side.run)}"
            )
    cheap = replace(gate, resamples=1)  # no interval is read
    found: dict[tuple[str, str, str], Noise] = {}
    scores: dict[int, _Scores] = {}
    couples = list(combinations(evaluations, 2))
    of_couple: list[list[RulePair]] = [[] for _ in couples]
    for rule in gate.rules:
        if rule.kind == "must-pass":
            continue
        pairs = [(before, after, pair_rule(rule, cheap, before, after)) for before, after in couples]
        for one, paired in zip(pairs, of_couple, strict=True):
            paired.append(one[2])
        for side in evaluations:
            _read_options(scores.setdefault(id(side), {}), side.run, pairs[0][2].pair.frame)
        for language in pairs[0][2].languages:
            key = (rule.axis, rule.metric, language)
            if key not in found:
                compared = [(one, scores[id(before)], scores[id(after)]) for before, after, one in pairs]
                found[key] = _noise(key, compared)
    pooled = _pooled_flips([pooled_documents(paired) for paired in of_couple])
    return NoiseFloor(model=short_model(first.model), runs=len(evaluations), noise=tuple(found.values()), pooled=pooled)


def _pooled_flips(of_couple: Sequence[pd.DataFrame]) -> Flips:
    """The noise of all documents together; each frame has those of two evaluations."""
    rows = pd.DataFrame(
        {
            "flips": (documents["change"] != 0).mean(),
            "shift": abs(documents["change"].mean()),
            "variance": (documents.groupby("question")["change"].sum() ** 2).sum() / len(documents) ** 2,
        }
        for documents in of_couple
    )
    return Flips(
        n=len(of_couple[0]),
        flips=float(rows["flips"].mean()),
        most_flips=float(rows["flips"].max()),
        shift=float(rows["shift"].max()),
        deviation=math.sqrt(float(rows["variance"].mean())),
    )


def apply_noise(
    floor: NoiseFloor, measured: Sequence[Measured], paired: Sequence[RulePair], candidate: Run
) -> list[Measured]:
    """What was measured, with the noise of each rule and language, and which of the candidate's answers are undecided.

    Args:
        floor: the noise.
        measured: of `measure_rules(gate, paired)`.
        paired: the scores that it was measured on.
        candidate: whose margins are read.

    Raises:
        GateError: the noise of a rule was not measured.
    """
    known = {(noise.axis, noise.metric, noise.language): noise for noise in floor.noise}
    scores: _Scores = {}
    noisy = []
    places = [(one, language) for one in paired for language in one.languages]
    for one, (pair, language) in zip(measured, places, strict=True):
        if one.rule.kind not in ("non-inferiority", "unchanged"):
            noisy.append(one)
            continue
        noise = known.get((one.rule.axis, one.rule.metric, language))
        if noise is None:
            raise GateError(
                f"the noise of {one.rule.axis} {one.rule.metric} {language} was not measured; "
                "run lm-eval-ext gate noise with this gate and write it anew with --json"
            )
        undecided = None
        if noise.margin is not None:
            _read_options(scores, candidate, pair.pair.frame)
            rows = _rows(pair, language)
            known_rows = [
                (_margin(scores[key]), f"{key[0]} {question.partition('/')[2]}")
                for key, question in zip(_keys(rows), rows["question"], strict=True)
                if key in scores
            ]
            if known_rows:
                undecided = tuple(name for margin, name in sorted(known_rows) if margin < noise.margin)
        noisy.append(replace(one, noise=noise.floor(one.rule.alpha), noise_flips=noise.most_flips, undecided=undecided))
    return noisy


def _who(run: Run) -> str:
    return f"{short_model(run.model)} {f'with {run.plan}' if run.plan else 'unsteered'}"


def _noise(key: tuple[str, str, str], compared: Sequence[tuple[RulePair, _Scores, _Scores]]) -> Noise:
    flips, shifts, variances, moved = [], [], [], []
    for one, before, after in compared:
        strata = one.pair.strata(one.averaged if key[2] == AVERAGE else (key[2],))
        rows = _rows(one, key[2])
        parts = one.pair.bootstrap.contributions(strata)
        flips.append(float((rows["change"] != 0).mean()))
        shifts.append(abs(float(parts.sum())))
        variances.append(float((parts**2).sum()))
        moved += [_movement(before[place], after[place]) for place in _keys(rows) if place in before and place in after]
    return Noise(
        axis=key[0],
        metric=key[1],
        language=key[2],
        n=len(rows),
        flips=float(np.mean(flips)),
        most_flips=max(flips),
        shift=max(shifts),
        deviation=math.sqrt(float(np.mean(variances))),
        margin=float(np.quantile(moved, _MARGIN_LEVEL)) if moved else None,
    )


def _rows(one: RulePair, language: str) -> pd.DataFrame:
    """The documents of one check."""
    frame = one.pair.frame
    strata = one.pair.strata(one.averaged if language == AVERAGE else (language,))
    rows: pd.DataFrame = frame[frame["language"].isin(strata)]
    return rows


def _keys(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(rows["task"], rows["doc_hash"], strict=True))


def _read_options(scores: _Scores, run: Run, frame: pd.DataFrame) -> None:
    """Add the log-likelihoods of the options of some documents that are not there yet."""
    for task, rows in frame.groupby("task"):
        wanted = {key for key in rows["doc_hash"] if (task, key) not in scores}
        if wanted:
            scores.update(_options(run, str(task), wanted))


def _options(run: Run, task: str, wanted: Collection[str]) -> _Scores:
    found: _Scores = {}
    for sample in read_documents(run, task, wanted):
        values = log_likelihoods(sample.get("filtered_resps") or [])
        if values is None:
            continue
        given = np.asarray(values[: _n_options(sample.get("doc"), len(values))], dtype=np.float64)
        if len(given) > 1 and np.isfinite(given).all():
            found.setdefault((task, str(sample["doc_hash"])), given)
    return found


def _n_options(document: Any, n_scores: int) -> int:
    """Scores after those of the options are of options without their question."""
    if isinstance(document, dict):
        for name in ("options", "choices"):
            listed = document.get(name)
            listed = listed.get("text") if isinstance(listed, dict) else listed
            if isinstance(listed, list) and len(listed) > 1:
                return min(len(listed), n_scores)
    return n_scores


def _margin(scores: NDArray[np.float64]) -> float:
    second, best = np.sort(scores)[-2:]
    return float(best - second)


def _movement(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """How far the margin between the two best options of one evaluation moved in another."""
    second, best = np.argsort(before, kind="stable")[-2:]
    return abs(float((after[best] - after[second]) - (before[best] - before[second])))
