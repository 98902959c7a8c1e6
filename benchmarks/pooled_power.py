"""Does the gate's pooled test see a loss of half a point, and how often does it see one that is not there?

    python benchmarks/pooled_power.py                  # some minutes on one core
    python benchmarks/pooled_power.py --trials 50      # a quick look

Two runs on the same 2,000 questions in seven languages. A share of the answers flips in either direction, as rounding,
another kernel or a light quantisation make them (Dutta et al. 2024, "Accuracy is not all you need", count such flips where
the accuracy hardly moves); with a loss, more of them go from right to wrong. Where flips come `together`, that share of the
questions flips alike in all languages.

The second table has the margins behind the answers: normal ones, half their variance that of the question, 60% of them
positive; each run adds noise of its own, so large that the named share of the answers flips. Half a point is lost by all
margins (`all lower`) or by few answers that turn into their opposite (`few lost`). `less sure` loses no accuracy: all
margins are a tenth smaller. Tested are right and wrong answers, and their margins (`pooled: {scores: margins}`).

Figures have two standard errors beside them.
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from lm_eval_ext.gate.margins import change_by_margins
from lm_eval_ext.gate.pooled import pool_changes
from lm_eval_ext.gate.rules import ALPHA, Gate
from lm_eval_ext.stats import sign_flip

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lm_eval_ext.gate.verdicts import PooledResult

LANGUAGES, QUESTIONS, LOSS = 7, 2000, 0.005
#: Share of answers that flip, share of the questions that flip alike in all languages.
CONDITIONS = ((0.01, 0.0), (0.02, 0.0), (0.05, 0.0), (0.01, 0.2), (0.02, 0.2), (0.1, 0.0))
#: Of the second table: shares of answers that flip, share of right answers, standard deviation of margins.
FLIPS, RIGHT, SPREAD = (0.02, 0.05, 0.1, 0.15), 0.6, 3.0
KINDS = ("all lower", "few lost", "no loss", "less sure")
#: Of a permutation of margins: fewer than the gate's, which makes it a little less powerful and no less exact.
RESAMPLES = 300


def pooled(change: NDArray[np.float64]) -> PooledResult:
    """The pooled test on [questions, languages] of changes."""
    questions, _ = np.indices(change.shape)
    # One name for all languages: what is measured here is the test of the whole, not of its parts.
    frame = {"axis": "qa", "language": "all", "question": questions.ravel(), "change": change.ravel()}
    return pool_changes(Gate((), {}), pd.DataFrame(frame))


def simulate(rng: np.random.Generator, flips: float, together: float, loss: float, n: int = QUESTIONS) -> PooledResult:
    """The pooled test on one simulated pair of runs; `flips` is the share of answers that change, the loss included."""
    up, down = (flips - loss) / 2, (flips + loss) / 2
    alike = rng.random((n, 1)) < together
    draw = np.where(alike, rng.random((n, 1)), rng.random((n, LANGUAGES)))
    return pooled((draw < up).astype(float) - (draw > 1 - down))


def simulate_margins(rng: np.random.Generator, flips: float, kind: str) -> tuple[float, float, float]:
    """The p-values of the pooled test on the answers and on the margins of one pair of runs; the share that changed."""
    level = stats.norm.ppf(RIGHT)
    density = stats.norm.pdf(level) / SPREAD  # of margins at zero
    noise = flips / density * math.sqrt(math.pi / 2)  # standard deviation of a margin's movement
    shared = rng.normal(size=(QUESTIONS, 1)) + rng.normal(size=(QUESTIONS, LANGUAGES))
    margins = SPREAD * (level + shared / math.sqrt(2))
    before, after = (margins + noise / math.sqrt(2) * rng.normal(size=margins.shape) for _ in range(2))
    if kind == "all lower":
        after -= LOSS / density
    elif kind == "few lost":
        after = np.where((after > 0) & (rng.random(after.shape) < LOSS / RIGHT), -after, after)
    elif kind == "less sure":
        after *= 0.9
    answers = (after > 0).astype(float) - (before > 0)
    changes = answers, change_by_margins(before.ravel(), after.ravel()).reshape(answers.shape)
    by_answers, by_margins = (
        sign_flip(change.sum(axis=1), "less", resamples=RESAMPLES, exact=True) for change in changes
    )
    return by_answers, by_margins, float((answers != 0).mean())


def rate(trials: int, flips: float, together: float, loss: float) -> tuple[float, float]:
    """How often a loss is shown, and the mean of the smallest loss that the items say they can show."""
    rng = np.random.default_rng([int(1e4 * flips), int(1e4 * together), int(1e4 * loss)])
    results = [simulate(rng, flips, together, loss) for _ in range(trials)]
    shown = np.mean([result.verdict == "fail" for result in results])
    return float(shown), float(np.mean([result.smallest for result in results]))


def share_text(share: float, trials: int) -> str:
    return f"{100 * share:5.1f}% ± {200 * math.sqrt(share * (1 - share) / trials):.1f}"


def print_answers(trials: int) -> None:
    """Power and false alarms of right and wrong answers."""
    print(f"{LANGUAGES} x {QUESTIONS:,} paired items, alpha 5%, {trials} pairs of runs per figure")
    print("flips  together   power for a loss of 0.5   false alarms    the items say they can show")
    for flips, together in CONDITIONS:
        power, smallest = rate(trials, flips, together, LOSS)
        alarms, _ = rate(trials, flips, together, 0.0)
        cells = (share_text(share, trials) for share in (power, alarms))
        print(
            f"{100 * flips:4.0f}%  {100 * together:7.0f}%   {'           '.join(cells)}     {100 * smallest:.2f} points",
            flush=True,
        )


def print_margins(trials: int) -> None:
    """The same beside those of margins."""
    print("\nhow often a loss is shown, by right and wrong answers | by their margins")
    print("flips  changed  " + "".join(f"{kind:<31}" for kind in KINDS))
    for flips in FLIPS:
        rng = np.random.default_rng(int(1e4 * flips))
        cells, changed = [], 0.0
        for kind in KINDS:
            pairs = [simulate_margins(rng, flips, kind) for _ in range(trials)]
            shown = np.mean([[p <= ALPHA for p in pair[:2]] for pair in pairs], axis=0)
            cells.append(" | ".join(share_text(float(share), trials) for share in shown))
            if kind == "no loss":
                changed = float(np.mean([pair[2] for pair in pairs]))
        print(f"{100 * flips:4.0f}%  {100 * changed:6.1f}%  {'    '.join(cells)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500, help="simulated pairs of runs per figure")
    trials = parser.parse_args().trials
    print_answers(trials)
    print_margins(trials)


if __name__ == "__main__":
    main()
