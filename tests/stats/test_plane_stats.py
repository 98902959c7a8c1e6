"""The bootstrap of the plane: against scipy, against drawing clusters one by one, by simulation, and by its symmetries."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_ext.stats import cluster_bootstrap, paired_difference
from lm_eval_ext.stats.bootstrap import expanded_tail

CHANGES = st.sampled_from([-1.0, 0.0, 1.0])


@st.composite
def answers(draw):
    """Scores of two runs on the same questions in up to three languages, some of them missing."""
    n_questions, n_languages = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    cells = [(question, language) for question in range(n_questions) for language in range(n_languages)]
    kept = draw(st.lists(st.sampled_from(cells), min_size=1, unique=True))
    scores = st.lists(st.sampled_from([0.0, 1.0]), min_size=len(kept), max_size=len(kept))
    questions, languages = (np.array(column) for column in zip(*kept, strict=True))
    return np.array(draw(scores)), np.array(draw(scores)), questions, languages


def intervals(before, after, questions, languages, **options):
    bootstrap = cluster_bootstrap(paired_difference(before, after), questions, languages, resamples=200, **options)
    return [bootstrap.interval([stratum]) for stratum in bootstrap.strata] + [bootstrap.interval()]


@settings(max_examples=60, deadline=None)
@given(answers())
def test_a_run_does_not_differ_from_itself(case):
    before, _, questions, languages = case
    assert all(interval == (0, 0, 0) for interval in intervals(before, before, questions, languages))


@settings(max_examples=60, deadline=None)
@given(answers(), st.randoms(use_true_random=False))
def test_the_order_of_documents_does_not_matter(case, random):
    order = list(range(len(case[0])))
    random.shuffle(order)
    np.testing.assert_allclose(intervals(*case), intervals(*(column[order] for column in case)), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(answers())
def test_swapping_the_runs_mirrors_every_interval(case):
    before, after, questions, languages = case
    forth = intervals(before, after, questions, languages)
    back = intervals(after, before, questions, languages)
    np.testing.assert_allclose(forth, [(-value, -high, -low) for value, low, high in back], atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(answers())
def test_the_macro_average_weighs_languages_and_not_documents(case):
    before, after, questions, languages = case
    bootstrap = cluster_bootstrap(after - before, questions, languages, resamples=50)
    means = [np.mean((after - before)[languages == language]) for language in bootstrap.strata]
    assert bootstrap.interval().value == pytest.approx(np.mean(means))
    assert bootstrap.n_documents() == len(before)
    assert bootstrap.n_clusters() == len(set(questions.tolist()))


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_it_agrees_with_scipy_on_independent_documents(share):
    rng = np.random.default_rng(7)
    before, after = (rng.random(150) < 0.5).astype(float), (rng.random(150) < 0.5 + share / 2).astype(float)
    change = paired_difference(before, after)
    ours = cluster_bootstrap(change, np.arange(150), resamples=20_000).interval(level=0.9)
    theirs = scipy.stats.bootstrap(
        (before, after),
        lambda first, second, axis: np.mean(second - first, axis=axis),
        paired=True,
        n_resamples=20_000,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(8),
    ).confidence_interval
    assert ours.value == pytest.approx(change.mean())
    # One document is 1/150 of the mean: the ends agree to that.
    assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high], abs=1 / 150 + 1e-9)


def test_it_agrees_with_drawing_whole_questions_one_by_one():
    rng = np.random.default_rng(3)
    n = 40
    cells = rng.choice([-1.0, 0.0, 1.0], size=(n, 3), p=[0.15, 0.5, 0.35])
    asked = rng.random((n, 3)) < 0.8
    questions, languages = np.nonzero(asked)
    bootstrap = cluster_bootstrap(cells[asked], questions, languages, resamples=20_000)
    drawn = rng.integers(n, size=(20_000, n))
    means = ((cells * asked)[drawn].sum(axis=1) / asked[drawn].sum(axis=1)).mean(axis=1)
    ours = bootstrap.resampled.mean(axis=1)
    assert np.mean(ours) == pytest.approx(np.mean(means), abs=0.002)
    assert np.std(ours) == pytest.approx(np.std(means), rel=0.03)
    assert np.quantile(ours, [0.025, 0.5, 0.975]) == pytest.approx(np.quantile(means, [0.025, 0.5, 0.975]), abs=0.005)


def test_scores_that_are_not_right_or_wrong_work_in_chunks(monkeypatch):
    monkeypatch.setattr("lm_eval_ext.stats.bootstrap._MAX_CELLS", 500)
    values = np.random.default_rng(0).normal(size=90)
    bootstrap = cluster_bootstrap(values, np.arange(90), resamples=4000)
    assert np.std(bootstrap.resampled) == pytest.approx(np.std(values) / np.sqrt(90), rel=0.05)


def test_one_question_in_six_languages_is_not_six_questions():
    change = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], size=80)
    alone = cluster_bootstrap(change, np.arange(80)).interval()
    copied = cluster_bootstrap(np.tile(change, 6), np.tile(np.arange(80), 6), np.repeat(list("abcdef"), 80)).interval()
    assert copied == pytest.approx(alone)


def test_intervals_cover_the_truth():
    """Nominal 95% intervals of a macro average over clustered questions hold the true change 95% of the time."""
    rng = np.random.default_rng(11)
    n_questions, n_languages, truth, hits = 120, 3, 0.1, 0
    questions, languages = np.repeat(np.arange(n_questions), n_languages), np.tile(np.arange(n_languages), n_questions)
    trials = 600
    for trial in range(trials):
        shared = rng.random((n_questions, 1)) < 0.5  # half of the questions fall alike in every language
        draw = np.where(shared, rng.random((n_questions, 1)), rng.random((n_questions, n_languages)))
        change = (draw < 0.25).astype(float) - (draw > 0.85)
        low, high = cluster_bootstrap(change.ravel(), questions, languages, resamples=500, seed=trial).interval()[1:]
        hits += low <= truth <= high
    assert 0.925 <= hits / trials <= 0.972  # three standard errors of 600 trials


def test_questions_that_changed_are_counted_once():
    bootstrap = cluster_bootstrap([1, 1, 0, -1, 1], ["a", "a", "b", "c", "c"], ["x", "y", "x", "x", "y"], resamples=10)
    assert (bootstrap.n_changed(), bootstrap.n_changed(["x"])) == (1, 2)  # in c one language rose and one fell


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_difference([1, 0], [1]), "one length"),
        (lambda: paired_difference([], []), "no documents"),
        (lambda: paired_difference([1, np.nan], [1, 0]), "finite"),
        (lambda: cluster_bootstrap([], []), "not empty"),
        (lambda: cluster_bootstrap([1, 0], ["a"]), "one length"),
        (lambda: cluster_bootstrap([1, np.inf], ["a", "b"]), "finite"),
        (lambda: cluster_bootstrap([1], ["a"], resamples=0), "at least one"),
        (lambda: cluster_bootstrap([1], ["a"]).interval(level=1.0), "between 0 and 1"),
        (lambda: cluster_bootstrap([1], ["a"], ["ko"]).interval(["zh"]), "no documents in"),
    ],
)
def test_input_that_means_nothing_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_few_questions_widen_the_tails_as_the_t_law_does():
    """For normal differences the interval is that of the t-test, not the narrower one of raw percentiles."""
    values = np.random.default_rng(5).normal(0.1, 1, 12)
    low, high = cluster_bootstrap(values, np.arange(12), resamples=50_000).interval()[1:]
    theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval()
    assert high - low == pytest.approx(theirs.high - theirs.low, rel=0.08)
    assert expanded_tail(0.025, 12) == pytest.approx(scipy.stats.norm.cdf(-2.201 * np.sqrt(12 / 11)), abs=1e-4)
    assert expanded_tail(0.025, 10**6) == pytest.approx(0.025, abs=1e-6)
    assert expanded_tail(0.025, 1) == 0.025
