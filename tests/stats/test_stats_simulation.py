"""The simulations of benchmarks/coverage_of_intervals.py, shortened; run that file for the long ones."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

_PATH = Path(__file__).parents[2] / "benchmarks" / "coverage_of_intervals.py"
_SPEC = importlib.util.spec_from_file_location("simulations", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
simulations = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(simulations)

TRIALS = 500
#: One point, as promised, and three standard errors of so few trials.
SLACK = 0.01 + 3 * math.sqrt(0.05 * 0.95 / TRIALS)


def test_intervals_of_averages_cover():
    assert simulations.interval_coverage(TRIALS, 150, 0.1, 0.05, 0.5, resamples=500) == pytest.approx(0.95, abs=SLACK)


@pytest.mark.parametrize("shared", [False, True])
def test_joint_regions_cover(shared):
    assert simulations.region_coverage(TRIALS, 150, shared, resamples=400) == pytest.approx(0.95, abs=SLACK)


def test_intervals_of_a_recovery_cover():
    found, defined = simulations.recovery_coverage(TRIALS, 200, resamples=500)
    assert found == pytest.approx(0.95, abs=SLACK)
    assert defined > 0.95


def test_null_bands_cover_what_they_promise():
    found, promised = simulations.band_coverage(4000, 19)
    assert found == pytest.approx(promised, abs=3 * math.sqrt(0.1 * 0.9 / 4000))


def test_the_smallest_difference_is_found_as_often_as_promised():
    loss = simulations.smallest_difference(400, 0.1)
    assert simulations.rejection_rate(20_000, 400, 0.1, loss) == pytest.approx(0.8, abs=0.015)


def test_an_unchanged_model_rarely_fails(capsys):
    """Two runs that differ by chance alone: every failure is a false alarm."""
    pairs = 250
    whole, _, _ = simulations.gate_verdicts(pairs, 300, 0.06, 0.0, 0.05, axes=("localization",), resamples=400)
    rate = whole["fail"] / pairs
    with capsys.disabled():
        print(f"\nfalse alarms of the gate: {100 * rate:.1f}% of {pairs} unchanged pairs, alpha 5% ({dict(whole)})")
    assert rate <= 0.05
    assert whole["pass"] > 0  # it is not merely silent
