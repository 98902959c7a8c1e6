"""Do the intervals cover, and does the gate keep its alpha? Simulations with known truth.

    python benchmarks/coverage_of_intervals.py                 # long: a few minutes on one core
    python benchmarks/coverage_of_intervals.py --trials 200    # a quick look

Answers are right or wrong, in six languages; a share of the questions stands and falls alike in all of them. Every figure is
printed with the two standard errors that the number of trials leaves it.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lm_eval_ext.gate.measuring import measure_pair
from lm_eval_ext.gate.rules import Gate, Rule
from lm_eval_ext.gate.verdicts import judge
from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.results.pairing import Paired
from lm_eval_ext.stats import JointShift, cluster_bootstrap, null_band, recovery, resample_together, smallest_difference

if TYPE_CHECKING:
    from collections.abc import Sequence

LANGUAGES = ("es", "id", "el", "ko", "zh", "ar")


def changes(rng, n: int, up: float, down: float, together: float = 0.5, languages: int = 6) -> np.ndarray:
    """[n, languages] of -1, 0 and 1: each answer rises with probability `up` and falls with `down`."""
    shared = rng.random((n, 1)) < together
    draw = np.where(shared, rng.random((n, 1)), rng.random((n, languages)))
    return (draw < up).astype(float) - (draw > 1 - down)


def flat(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, questions and languages, one per document."""
    questions, languages = np.indices(cells.shape)
    return cells.ravel(), questions.ravel(), languages.ravel()


def interval_coverage(trials: int, n: int, up: float, down: float, together: float, resamples: int = 1000) -> float:
    """How often the 95% interval of the macro average holds the true change."""
    rng, hits = np.random.default_rng(n), 0
    for trial in range(trials):
        boot = cluster_bootstrap(*flat(changes(rng, n, up, down, together)), resamples=resamples, seed=trial)
        low, high = boot.interval()[1:]
        hits += low <= up - down <= high
    return hits / trials


def region_coverage(trials: int, n: int, shared: bool, resamples: int = 1000) -> float:
    """How often the joint 95% region holds the true position; `shared`: the same questions on both axes."""
    rng, hits = np.random.default_rng(n + shared), 0
    x_truth, y_truth = 0.03, -0.02
    for trial in range(trials):
        x = changes(rng, n, 0.08, 0.05)
        if shared:  # y moves with x
            y = np.where(rng.random(x.shape) < 0.5, x, changes(rng, n, 0.05, 0.12, 0.0))
            values, questions, axes = (np.concatenate(pair) for pair in zip(_axis(x, "x"), _axis(y, "y"), strict=True))
            both = cluster_bootstrap(values, questions, axes, resamples=resamples, seed=trial)
            position = JointShift.of(both, both, ["x"], ["y"])
        else:
            drawn = [
                cluster_bootstrap(*flat(cells), resamples=resamples, seed=[trial, axis])
                for axis, cells in enumerate((x, changes(rng, n, 0.05, 0.07)))
            ]
            position = JointShift.of(drawn[0], drawn[1], range(6), range(6))
        hits += position.contains((x_truth, y_truth))
    return hits / trials


def _axis(cells: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values, questions, _ = flat(cells)
    return values, questions, np.full(len(values), name)


def recovery_coverage(trials: int, n: int, resamples: int = 1000) -> tuple[float, float]:
    """How often the interval of a recovery of one half holds it, among the defined; and how often it is defined."""
    rng, hits, defined = np.random.default_rng(n), 0, 0
    for trial in range(trials):
        lost = changes(rng, n, 0.02, 0.12)
        back = (lost < 0) & (rng.random(lost.shape) < 0.55)
        worse = (lost == 0) & (rng.random(lost.shape) < 0.016 / 0.86)  # 0.066 - 0.016 of all: half of the tenth lost
        steered = np.where(back, 0, lost) - worse
        parts = np.column_stack([lost.mean(axis=1), steered.mean(axis=1)]) / n
        draws = resample_together(parts, resamples=resamples, seed=trial)
        a, s = parts.sum(axis=0)
        share = recovery(-a, s - a, -draws[:, 0], draws[:, 1] - draws[:, 0])
        if share.is_defined:
            defined += 1
            hits += share.low <= 0.5 <= share.high
    return hits / max(defined, 1), defined / trials


def band_coverage(trials: int, controls: int, level: float = 0.95) -> tuple[float, float]:
    """How often an effect without meaning falls into the band of its controls; and what the band promises."""
    rng, hits = np.random.default_rng(controls), 0
    for _ in range(trials):
        *others, effect = rng.standard_t(3, controls + 1)
        band = null_band(others, effect, level)
        hits += band.low <= effect <= band.high
    return hits / trials, band.coverage


def gate_verdicts(
    trials: int,
    n: int,
    flips: float,
    loss: float,
    margin: float,
    *,
    only: str | None = None,
    axes: Sequence[str] = ("localization", "transfer"),
    resamples: int = 1000,
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Verdicts of a gate over six languages and their average on some axes.

    `flips` of the answers change without a direction; `loss` of them, in the language `only` (or in all), are lost.
    Returns the verdicts of the gate, those on the language that lost, and those on the average of the axis that lost.
    """
    rng = np.random.default_rng([n, int(1e4 * flips), int(1e4 * loss)])
    gate = Gate((), {}, resamples=resamples)
    whole, language, average = Counter[str](), Counter[str](), Counter[str]()
    for _ in range(trials):
        measured = []
        for axis in axes:
            rule = Rule(axis, margin=margin)
            pair = _pair(rng, n, flips, loss if axis == axes[0] else 0.0, only, resamples)
            measured += [measure_pair(rule, code, (code,), pair, gate) for code in LANGUAGES]
            measured.append(measure_pair(rule, AVERAGE, LANGUAGES, pair, gate))
        result = judge(measured)
        whole[result.verdict] += 1
        language[result.checks[LANGUAGES.index(only or "el")].verdict] += 1
        average[result.checks[len(LANGUAGES)].verdict] += 1
    return whole, language, average


def _pair(rng, n: int, flips: float, loss: float, only: str | None, resamples: int) -> Paired:
    """Two runs on n questions in six languages."""
    moved = changes(rng, n, flips / 2, flips / 2)
    for column, code in enumerate(LANGUAGES):
        if loss and only in (None, code):
            lost = rng.random(n) < loss / (1 - flips)
            moved[:, column] = np.where((moved[:, column] == 0) & lost, -1, moved[:, column])
    before = np.where(moved == 0, rng.random(moved.shape) < 0.6, moved < 0).astype(float)
    values, questions, columns = flat(before)
    frame = pd.DataFrame({"task": "t", "doc_hash": np.arange(len(values)), "copy": 0, "value": values})
    frame["language"], frame["question"] = np.array(LANGUAGES)[columns], questions
    pair = Paired.of(frame, frame.assign(value=values + moved.ravel()), "value", resamples=resamples, seed=[n])
    assert pair is not None
    return pair


def rejection_rate(trials: int, n: int, discordant: float, loss: float) -> float:
    """How often the one-sided McNemar test at 5% shows a loss."""
    from scipy import stats

    rng = np.random.default_rng(n)
    up, down = (discordant - loss) / 2, (discordant + loss) / 2
    counts = rng.multinomial(n, [up, down, 1 - up - down], size=trials)
    return float((stats.binom.cdf(counts[:, 0], counts[:, :2].sum(axis=1), 0.5) <= 0.05).mean())


def _row(name: str, found: float, trials: int, wanted: str) -> None:
    print(
        f"  {name:<66} {100 * found:5.1f}% ± {200 * math.sqrt(max(found * (1 - found), 1e-9) / trials):.1f}  {wanted}"
    )


def _verdicts(counts: Counter[str]) -> str:
    total = sum(counts.values())
    return ", ".join(f"{name} {100 * counts[name] / total:.1f}%" for name in ("pass", "fail", "inconclusive"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4000, help="simulated data sets per line")
    parser.add_argument("--pairs", type=int, default=500, help="simulated pairs of runs per line of the gate")
    arguments = parser.parse_args()
    trials, pairs = arguments.trials, arguments.pairs

    print("95% intervals of the macro average over six languages hold the truth")
    for n, up, down, together in (
        (60, 0.1, 0.1, 0.5),
        (120, 0.2, 0.1, 0.5),
        (400, 0.05, 0.08, 0),
        (400, 0.06, 0.02, 1),
    ):
        name = f"{n} questions, {100 * up:g}% up, {100 * down:g}% down, {100 * together:g}% alike everywhere"
        _row(name, interval_coverage(trials, n, up, down, together), trials, "wanted 94 to 96")

    print("joint 95% regions hold the true position")
    for n, shared in ((120, False), (400, False), (400, True)):
        name = f"{n} questions per axis, {'the same' if shared else 'different'} questions"
        _row(name, region_coverage(trials, n, shared), trials, "wanted 94 to 96")

    print("intervals of a recovery of one half hold it, where it is defined")
    for n in (150, 400):
        found, defined = recovery_coverage(trials, n)
        _row(f"{n} questions (defined in {100 * defined:.0f}%)", found, trials, "wanted 94 to 96")

    print("an effect without meaning falls into the null band")
    for controls in (5, 19, 39):
        found, promised = band_coverage(10 * trials, controls)
        _row(f"{controls} controls", found, 10 * trials, f"promised {100 * promised:.1f}")

    print("the smallest loss is shown with a power of 80%")
    for n, discordant in ((68, 0.1), (400, 0.0), (400, 0.1), (14042, 0.1)):
        loss = smallest_difference(n, discordant)
        found = rejection_rate(50 * trials, n, max(loss, discordant), loss)
        _row(f"{n} items, {100 * discordant:g}% change: {100 * loss:.2f} points", found, 50 * trials, "wanted 80")

    print(f"the gate, {pairs} pairs per line, alpha 5%, two axes x (six languages + average)")
    for n, flips in ((400, 0.04), (400, 0.1), (2000, 0.1)):
        whole, _, _ = gate_verdicts(pairs, n, flips, 0.0, 0.03)
        _row(
            f"false alarms: unchanged, {n} items, {100 * flips:g}% flips, margin 3",
            whole["fail"] / pairs,
            pairs,
            "below 5",
        )
    for n, flips in ((400, 0.02), (2000, 0.1)):
        _, language, average = gate_verdicts(pairs, n, flips, 0.03, 0.03)
        _row(f"false passes of a language that lost the margin, {n} items", language["pass"] / pairs, pairs, "wanted 5")
        _row(f"false passes of an average that lost the margin, {n} items", average["pass"] / pairs, pairs, "wanted 5")
    print("a loss of 3 points in one language of 400 items, margin 3: verdict on this language")
    for flips in (0.0, 0.02, 0.05, 0.1):
        smallest = smallest_difference(400, flips + 0.03)
        _, language, _ = gate_verdicts(pairs, 400, flips, 0.03, 0.03, only="el")
        print(f"  {100 * flips:4g}% other flips (can show {100 * smallest:.1f} points): {_verdicts(language)}")

    start = time.perf_counter()
    boot = cluster_bootstrap(*flat(changes(np.random.default_rng(0), 14042, 0.1, 0.1)))
    boot.interval()
    print(f"10,000 resamples of 6 x 14,042 items: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
