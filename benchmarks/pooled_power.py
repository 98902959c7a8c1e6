"""Does the gate's pooled test see a loss of half a point, and how often does it see one that is not there?

    python benchmarks/pooled_power.py                  # some minutes on one core
    python benchmarks/pooled_power.py --trials 50      # a quick look

Two runs on the same 2,000 questions in seven languages. A share of the answers flips in either direction, as rounding,
another kernel or a light quantisation make them (Dutta et al. 2024, "Accuracy is not all you need", count such flips where
the accuracy hardly moves); with a loss, more of them go from right to wrong. Where flips come `together`, that share of the
questions flips alike in all languages. Figures have two standard errors beside them.
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lm_eval_ext.gate.pooled import pool_changes
from lm_eval_ext.gate.rules import Gate

if TYPE_CHECKING:
    from lm_eval_ext.gate.verdicts import PooledResult

LANGUAGES, QUESTIONS, LOSS = 7, 2000, 0.005
#: Share of answers that flip, share of the questions that flip alike in all languages.
CONDITIONS = ((0.01, 0.0), (0.02, 0.0), (0.05, 0.0), (0.01, 0.2), (0.02, 0.2), (0.1, 0.0))


def simulate(rng: np.random.Generator, flips: float, together: float, loss: float, n: int = QUESTIONS) -> PooledResult:
    """The pooled test on one simulated pair of runs; `flips` is the share of answers that change, the loss included."""
    up, down = (flips - loss) / 2, (flips + loss) / 2
    alike = rng.random((n, 1)) < together
    draw = np.where(alike, rng.random((n, 1)), rng.random((n, LANGUAGES)))
    change = (draw < up).astype(float) - (draw > 1 - down)
    questions, _ = np.indices(change.shape)
    # One name for all languages: what is measured here is the test of the whole, not of its parts.
    frame = {"axis": "qa", "language": "all", "question": questions.ravel(), "change": change.ravel()}
    return pool_changes(Gate((), {}), pd.DataFrame(frame))


def rate(trials: int, flips: float, together: float, loss: float) -> tuple[float, float]:
    """How often a loss is shown, and the mean of the smallest loss that the items say they can show."""
    rng = np.random.default_rng([int(1e4 * flips), int(1e4 * together), int(1e4 * loss)])
    results = [simulate(rng, flips, together, loss) for _ in range(trials)]
    shown = np.mean([result.verdict == "fail" for result in results])
    return float(shown), float(np.mean([result.smallest for result in results]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500, help="simulated pairs of runs per figure")
    trials = parser.parse_args().trials
    print(f"{LANGUAGES} x {QUESTIONS:,} paired items, alpha 5%, {trials} pairs of runs per figure")
    print("flips  together   power for a loss of 0.5   false alarms    the items say they can show")
    for flips, together in CONDITIONS:
        power, smallest = rate(trials, flips, together, LOSS)
        alarms, _ = rate(trials, flips, together, 0.0)
        cells = (
            f"{100 * share:5.1f}% ± {200 * math.sqrt(share * (1 - share) / trials):.1f}" for share in (power, alarms)
        )
        print(
            f"{100 * flips:4.0f}%  {100 * together:7.0f}%   {'           '.join(cells)}     {100 * smallest:.2f} points",
            flush=True,
        )


if __name__ == "__main__":
    main()
