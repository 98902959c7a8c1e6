"""Positions with their uncertainty: regions, quadrants, the Pareto front, recovery, null bands."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import random_scores, write_demo, write_run

from lm_eval_ext.plane.shifts import measure
from lm_eval_ext.plane.standing import null_bands, pareto, recoveries
from lm_eval_ext.results.runs import load
from lm_eval_ext.stats import (
    QUADRANTS,
    JointShift,
    cluster_bootstrap,
    dominated_by,
    front_distance,
    hypervolume,
    null_band,
    on_front,
    recovery,
    resample_together,
)
from lm_eval_ext.stats.region import ellipse

GRID = st.integers(-3, 3).map(float)
POSITIONS = st.lists(st.tuples(GRID, GRID), min_size=1, max_size=7)


def shift(seed: int = 0, **options) -> JointShift:
    rng = np.random.default_rng(seed)
    x, y = (
        cluster_bootstrap(rng.choice([-1.0, 0, 1], 300, p=p), np.arange(300), resamples=4000, seed=[seed, axis])
        for axis, p in enumerate(([0.05, 0.8, 0.15], [0.1, 0.85, 0.05]))
    )
    return JointShift.of(x, y, [0], [0], **options)


# --- the joint region ------------------------------------------------------------------------------------------------


def test_the_region_is_an_ellipse_round_the_position():
    position = shift()
    outline = position.outline()
    assert outline[0] == pytest.approx(outline[-1])
    assert outline.mean(axis=0) == pytest.approx(position.center, abs=1e-2)
    middle = np.array(position.center)
    for point in outline:
        assert position.contains(tuple(middle + 0.99 * (point - middle)))
        assert not position.contains(tuple(middle + 1.01 * (point - middle)))


def test_it_holds_that_share_of_a_joint_normal_law():
    covariance = np.array([[4.0, 1.5], [1.5, 1.0]])
    position = JointShift((1.0, -2.0), covariance, (1, 0, 0, 0))
    draws = np.random.default_rng(0).multivariate_normal(position.center, covariance, 4000)
    for level in (0.5, 0.95):
        assert np.mean([position.contains(tuple(draw), level) for draw in draws]) == pytest.approx(level, abs=0.02)
    tilted = ellipse(position.center, position.errors, position.correlation, 0.95, 4001)
    assert np.corrcoef(tilted.T)[0, 1] == pytest.approx(0.75, abs=0.01)


def test_two_question_sets_are_independent_and_one_is_not():
    assert abs(shift().correlation) < 0.05
    change = np.random.default_rng(1).choice([-1.0, 0, 1], 200)
    both = cluster_bootstrap(np.tile(change, 2), np.tile(np.arange(200), 2), np.repeat(["x", "y"], 200))
    assert JointShift.of(both, both, ["x"], ["y"]).correlation == pytest.approx(1)


def test_where_nothing_changed_the_region_is_a_point():
    still = cluster_bootstrap(np.zeros(50), np.arange(50))
    position = JointShift.of(still, still, [0], [0])
    assert position.contains((0, 0))
    assert not position.contains((1e-6, 0))
    assert position.quadrants == (0.25,) * 4  # nowhere rather than anywhere


def test_quadrants_share_what_is_there():
    position = shift()
    assert sum(position.quadrants) == pytest.approx(1)
    assert dict(zip(QUADRANTS, position.quadrants, strict=True))["lower_right"] > 0.9


# --- the front -------------------------------------------------------------------------------------------------------


def beats(first, second) -> bool:
    return first[0] >= second[0] and first[1] >= second[1] and first != second


@given(POSITIONS)
def test_the_front_is_what_nothing_beats(positions):
    expected = [not any(beats(other, mine) for other in positions) for mine in positions]
    assert on_front(positions).tolist() == expected
    assert [not others for others in dominated_by(positions)] == expected
    assert on_front([positions, positions]).tolist() == [expected, expected]


@given(POSITIONS)
def test_the_distance_is_how_far_both_scores_must_rise(positions):
    for number, (position, distance) in enumerate(zip(positions, front_distance(positions), strict=True)):
        others = [other for place, other in enumerate(positions) if place != number]
        for step, is_beaten in ((1e-6, False), *([(-1e-6, True)] if distance else [])):
            moved = tuple(np.add(position, distance + step))
            assert any(other[0] > moved[0] and other[1] > moved[1] for other in others) == is_beaten


@settings(max_examples=30)
@given(POSITIONS)
def test_the_hypervolume_is_the_area_below_the_front(positions):
    cells = np.arange(-3.5, 3, 1.0)  # middles of unit cells above the reference
    covered = sum(any(x > a and y > b for x, y in positions) for a in cells for b in cells)
    assert hypervolume(positions, (-4.0, -4.0)) == pytest.approx(covered)


def test_positions_without_two_axes_are_refused():
    with pytest.raises(ValueError, match="shape"):
        on_front(np.zeros((3, 3)))


def test_runs_are_drawn_on_the_same_questions():
    rng = np.random.default_rng(2)
    common, own = rng.normal(size=300), rng.normal(size=(300, 2)) / 10
    draws = resample_together(np.column_stack([common, common, common]) + np.column_stack([own, own[:, 0]]))
    assert np.std(draws[:, 0] - draws[:, 1]) < np.std(draws[:, 0]) / 3
    assert draws[:, 0].std() == pytest.approx((common + own[:, 0]).std() * math.sqrt(300), rel=0.05)
    np.testing.assert_allclose(draws[:, 0], draws[:, 2])


# --- recovery --------------------------------------------------------------------------------------------------------


def test_half_of_a_certain_loss_comes_back():
    rng = np.random.default_rng(3)
    lost, regained = rng.normal(0.1, 0.01, 4000), rng.normal(0.05, 0.01, 4000)
    share = recovery(0.1, 0.05, lost, regained)
    assert share.is_defined
    assert share.value == pytest.approx(0.5)
    assert 0.2 < share.low < 0.4 < 0.6 < share.high < 0.8


@pytest.mark.parametrize(
    ("lost", "spread", "reason"), [(-0.02, 0.001, "nothing was lost"), (0.01, 0.02, "no loss is shown: 1.0 points")]
)
def test_without_a_loss_there_is_nothing_to_recover(lost, spread, reason):
    draws = np.random.default_rng(4).normal(lost, spread, 2000)
    share = recovery(lost, 0.05, draws, draws)
    assert not share.is_defined
    assert reason in share.reason
    assert math.isnan(share.value)
    assert math.isnan(share.low)


# --- null bands ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "coverage"), [(1, 0.0), (5, 4 / 6), (39, 0.95), (79, 0.95)])
def test_a_band_says_how_much_it_covers(n, coverage):
    band = null_band(range(n), 0.5)
    assert band.coverage == pytest.approx(coverage)
    assert band.n == n


def test_an_effect_has_a_place_among_the_controls():
    inside, outside = (null_band(np.arange(-20.0, 20), effect) for effect in (0.5, 99.0))
    assert (inside.below, outside.below) == (21 / 40, 1.0)
    assert inside.p > 0.9
    assert outside.p == pytest.approx(2 / 41)
    assert (outside.low, outside.high) == (-20, 19)
    assert null_band([0.0, 0.0], 0.0).p == 1
    with pytest.raises(ValueError, match="at least one control"):
        null_band([], 1.0)


# --- a tree ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    root = write_demo(tmp_path_factory.mktemp("standing"), n=200)
    write_run(root / "aligned", random_scores(7, {"transfer": 0.02, "localization": -0.2}, n=200), model="x/aligned")
    write_run(root / "repaired", random_scores(8, {"localization": -0.1}, n=200), model="x/aligned", plan="loc@3:2")
    for number, plan in enumerate(("loc~random1@3:2", "loc~zh@3:2", "loc@3:-2", "loc~random2@3:-2")):
        scores = random_scores(9 + number, {"localization": -0.2}, n=200)
        write_run(root / f"control{number}", scores, model="x/aligned", plan=plan)
    return measure(load(root), "unsteered", resamples=1000)


def test_rows_say_where_a_run_lies_and_how_surely(plane):
    row = plane.shifts.set_index(["run", "language"]).loc[("aligned", "average")]
    assert row["lower_right"] > 0.9
    assert row[list(QUADRANTS)].sum() == pytest.approx(1)
    assert row["y_error"] == pytest.approx((row["y_high"] - row["y_low"]) / 3.92, rel=0.1)
    assert row["y_p"] < 0.001
    assert math.isnan(row["y_holm"])  # the average is not one of the languages
    languages = plane.shifts[(plane.shifts["run"] == "aligned") & (plane.shifts["language"] != "average")]
    assert len(languages) == 7
    for _, one in languages.iterrows():
        assert one["y_p"] == pytest.approx(mcnemar_of(one))
        assert one["y_p"] <= one["y_holm"] <= min(1, 7 * one["y_p"])


def mcnemar_of(row) -> float:
    from lm_eval_ext.stats import mcnemar

    return mcnemar(int(row["y_gains"]), int(row["y_losses"]))


def test_contributions_add_up_to_the_change(plane):
    averages = plane.shifts[plane.shifts["language"] == "average"].set_index("run")
    for axis, parts in zip("xy", plane.contributions, strict=True):
        assert set(parts) >= {"aligned", "surgical"}
        for run in parts:
            assert parts[run].sum() == pytest.approx(averages[f"{axis}_change"][run])


def test_the_front_of_a_tree(plane):
    front = pareto(plane)
    runs = front.runs.set_index("run")
    assert not any("control" in run or run == "random" for run in runs.index)
    assert runs["on_front"]["surgical"]
    assert runs["front_probability"]["surgical"] > 0.9
    assert runs["distance"]["surgical"] == 0
    assert runs["distance_low"]["aligned"] > 0
    assert runs["front_probability"]["aligned"] < 0.05
    assert front.hypervolume.low < front.hypervolume.value < front.hypervolume.high
    assert pareto(plane, reference=(-0.2, -0.2)).hypervolume.value > front.hypervolume.value


def test_what_steering_brings_back(plane):
    (row,) = recoveries(plane).to_dict("records")
    assert (row["run"], row["aligned"], row["reason"]) == ("repaired", "aligned", "")
    assert row["recovery"] == pytest.approx(row["regained"] / row["lost"])
    assert 0 < row["low"] < row["recovery"] < row["high"] < 1


def test_an_effect_among_its_controls(plane):
    bands = null_bands(plane).set_index(["run", "control", "language", "axis"])
    of_repaired = bands.loc["repaired"].xs(("average", "y"), level=("language", "axis"))
    # Two random directions, another language's vector and a negated one: a band of their own for each kind.
    assert of_repaired["n"].to_dict() == {"random": 2, "other_language": 1, "negated": 1}
    assert (of_repaired["effect"] > of_repaired["high"]).all()
    assert (of_repaired["below"] == 1).all()
    assert set(bands.index.get_level_values("run")) == {"en", "loc", "surgical", "repaired"}


def test_controls_of_every_kind_are_named_in_words_and_figures(plane):
    from lm_eval_ext.plane.figures.panels import run_style
    from lm_eval_ext.plane.figures.plane import plane_chart
    from lm_eval_ext.report.findings import findings

    assert [run.name for run in plane.runs[-5:]] == ["control0", "control1", "control2", "control3", "random"]
    assert all(run_style(plane, run)["symbol"].endswith("-open") for run in plane.runs if run.is_control)
    caption = plane_chart(plane).caption
    assert "controls: random directions, vectors of other languages, negated vectors." in caption
    text = "\n".join(findings(plane))
    assert "control1 (another language's vector, a control)" in text
    assert "control2 (a negated vector, a control)" in text
    assert "the band of 2 random directions" in text
    assert set(plane.contrasts["control"]) == {"control0", "control3", "random"}


def test_axes_that_share_questions_are_drawn_together(tmp_path):
    scores = random_scores(0)
    task = "transfer_mini_ko_cloze"
    write_run(tmp_path / "base", scores, groups={"all_of_it": sorted(scores)})
    write_run(tmp_path / "run", random_scores(5, {"transfer": 0.2}), groups={"all_of_it": sorted(scores)})
    plane = measure(load(tmp_path), "base", x="all_of_it", y=task, resamples=1000)
    rows = plane.shifts.set_index(["run", "language"])
    assert rows["correlation"]["run", "ko"] > 0.3
    assert len(pareto(plane, resamples=500).runs) == 2
