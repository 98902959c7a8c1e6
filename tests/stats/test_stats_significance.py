"""Tests by counting, and what they can show: against statsmodels, scipy, enumeration and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import normal_sample_size_one_tail

from lm_eval_ext.stats import holm, mcnemar, share_test, sign_flip, smallest_difference, smallest_shortfall

COUNTS = st.integers(0, 60)


@given(COUNTS, COUNTS)
def test_mcnemar_is_that_of_statsmodels(gains, losses):
    theirs = statsmodels_mcnemar([[5, gains], [losses, 7]], exact=True).pvalue
    assert mcnemar(gains, losses) == pytest.approx(min(1, theirs))


@given(COUNTS, COUNTS)
def test_one_sided_tests_mirror_each_other(gains, losses):
    assert mcnemar(gains, losses, "less") == pytest.approx(mcnemar(losses, gains, "greater"))
    assert mcnemar(0, losses, "less") == pytest.approx(0.5**losses)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_that_of_statsmodels(p_values):
    np.testing.assert_allclose(holm(p_values), multipletests(p_values, method="holm")[1], atol=1e-12)


def test_holm_does_not_count_what_was_not_tested():
    adjusted = holm([0.01, np.nan, 0.04])
    assert adjusted[[0, 2]].tolist() == holm([0.01, 0.04]).tolist()
    assert np.isnan(adjusted[1])


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), max_size=40), st.sampled_from(["two-sided", "less", "greater"]))
def test_flipping_signs_of_right_or_wrong_is_mcnemar(changes, alternative):
    gains, losses = changes.count(1.0), changes.count(-1.0)
    third = np.array(changes) / 3 / len(changes or [1])  # as the contributions to an average
    assert sign_flip(third, alternative) == mcnemar(gains, losses, alternative)


@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
def test_flipping_signs_agrees_with_every_possible_flip(alternative):
    values = np.array([0.1, 0.1, -0.2, -0.3, 0.05, -0.4, -0.1, -0.2, -0.15, 0.0])
    sums = np.array([values @ signs for signs in itertools.product((-1, 1), repeat=len(values))])
    observed = values.sum()
    extreme = {
        "less": sums <= observed + 1e-12,
        "greater": sums >= observed - 1e-12,
        "two-sided": np.abs(sums) >= abs(observed) - 1e-12,
    }[alternative]
    assert sign_flip(values, alternative, resamples=100_000) == pytest.approx(extreme.mean(), abs=0.006)


def test_an_impossible_loss_is_never_more_certain_than_the_resamples():
    assert sign_flip(-np.arange(1.0, 200), "less", resamples=999) == 1 / 1000


@settings(max_examples=50)
@given(st.integers(1, 80), st.data(), st.floats(0.01, 0.99), st.sampled_from(["less", "greater"]))
def test_a_share_is_tested_as_by_scipy(n, data, reference, alternative):
    right = data.draw(st.integers(0, n))
    theirs = scipy.stats.binomtest(right, n, reference, alternative).pvalue
    assert share_test(right / n, n, reference, alternative) == pytest.approx(theirs, abs=1e-9)


# --- power -----------------------------------------------------------------------------------------------------------


def enumerated_power(n: int, discordant: float, loss: float, alpha: float) -> float:
    """Over every possible number of gains and losses."""
    up, down = (discordant - loss) / 2, (discordant + loss) / 2
    return sum(
        scipy.stats.multinomial.pmf([gains, losses, n - gains - losses], n, [up, down, 1 - up - down])
        for gains in range(n + 1)
        for losses in range(n + 1 - gains)
        if mcnemar(gains, losses, "less") <= alpha
    )


@pytest.mark.parametrize(("n", "discordant", "alpha", "power"), [(40, 0.2, 0.05, 0.8), (60, 0.5, 0.1, 0.6)])
def test_the_smallest_difference_has_its_power(n, discordant, alpha, power):
    loss = smallest_difference(n, discordant, alpha=alpha, power=power)
    assert enumerated_power(n, max(discordant, loss), loss, alpha) == pytest.approx(power, abs=1e-3)
    assert enumerated_power(n, max(discordant, 0.9 * loss), 0.9 * loss, alpha) < power


@pytest.mark.parametrize(("n", "discordant"), [(1000, 0.1), (14042, 0.2), (84252, 0.05)])
def test_for_many_items_it_is_the_textbook_s(n, discordant):
    loss = smallest_difference(n, discordant)
    spread = math.sqrt(discordant - loss**2)
    needed = normal_sample_size_one_tail(loss, 0.8, 0.05, std_null=math.sqrt(discordant), std_alternative=spread)
    assert needed == pytest.approx(n, rel=0.08)  # the exact test asks for a little more


def test_without_any_change_it_is_a_loss_that_nothing_compensates():
    assert smallest_difference(400, 0.0) == pytest.approx(0.01675, abs=1e-4)
    assert smallest_difference(400, 0.0) == smallest_difference(400, 0.01)
    assert scipy.stats.binom.sf(4, 400, smallest_difference(400, 0.0)) == pytest.approx(0.8, abs=1e-3)


def test_too_few_items_show_nothing():
    assert smallest_difference(4, 0.5) == math.inf  # 0.5 ** 4 is above 5%
    assert smallest_difference(5, 0.0) < 1
    assert smallest_shortfall(4, 0.25) == math.inf


@given(st.integers(10, 400), st.floats(0, 0.6))
@settings(max_examples=30, deadline=None)
def test_more_items_and_fewer_changes_show_smaller_losses(n, discordant):
    assert smallest_difference(4 * n, discordant) < smallest_difference(n, discordant)
    assert smallest_difference(n, discordant) <= smallest_difference(n, min(1.0, discordant + 0.2)) + 1e-6


@pytest.mark.parametrize(("n", "reference"), [(60, 0.25), (400, 0.25), (200, 0.9)])
def test_a_shortfall_has_its_power(n, reference):
    loss = smallest_shortfall(n, reference)
    found = sum(
        scipy.stats.binom.pmf(right, n, reference - loss)
        for right in range(n + 1)
        if share_test(right / n, n, reference, "less") <= 0.05
    )
    assert found == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mcnemar(-1, 2), "negative"),
        (lambda: share_test(1.2, 10, 0.5, "less"), "between 0 and 1"),
        (lambda: smallest_difference(0, 0.1), "above 0"),
        (lambda: smallest_difference(10, 1.5), "between 0 and 1"),
        (lambda: smallest_difference(10, 0.1, alpha=0.9), "alpha < power"),
        (lambda: smallest_shortfall(10, 0.0), "above 0"),
    ],
)
def test_what_means_nothing_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
