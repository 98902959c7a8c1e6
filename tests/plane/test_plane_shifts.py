"""Pairing and the numbers of the plane: what is compared, what is refused, what is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import LANGUAGES, random_scores, write_demo, write_run

from lm_eval_ext.errors import ResultsError
from lm_eval_ext.plane.shifts import measure
from lm_eval_ext.plane.wording import conclusions, verdict
from lm_eval_ext.results.runs import load
from lm_eval_ext.viz.numbers import points

X, Y = "transfer_mini_cloze", "localization_mini_cloze"


def plane_of(root: Path, baseline: str = "base", **options):
    return measure(load(root), baseline, **{"resamples": 300, **options})


def table(plane):
    return plane.shifts.set_index(["run", "language"])


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def demo_plane(demo):
    return measure(load(demo), "unsteered", resamples=2000)


def pair(root: Path, base: dict, run: dict, **run_options) -> Path:
    write_run(root / "base", base)
    write_run(root / "run", run, plan="loc@3:2", **run_options)
    return root


def cut(scores: dict, *languages: str) -> dict:
    return {task: metrics for task, metrics in scores.items() if task.split("_")[2] in languages}


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_the_baseline_is_the_origin(demo_plane):
    rows = demo_plane.shifts[demo_plane.shifts["run"] == "unsteered"]
    assert len(rows) == 8
    assert (rows[["x_change", "x_low", "x_high", "y_change", "y_low", "y_high"]] == 0).all(axis=None)


def test_changes_are_means_of_paired_differences(demo_plane):
    before, after = random_scores(0), random_scores(2, {"transfer": -0.03, "localization": 0.09})
    rows = table(demo_plane).loc["loc"]
    for code in LANGUAGES:
        task = f"localization_mini_{code}_cloze"
        difference = np.subtract(after[task]["acc"], before[task]["acc"])
        assert rows["y_change"][code] == pytest.approx(difference.mean())
        assert rows["y_gains"][code] == (difference > 0).sum()
        assert rows["y_losses"][code] == (difference < 0).sum()
        assert rows["y_run"][code] - rows["y_baseline"][code] == pytest.approx(difference.mean())


def test_the_average_is_over_six_languages_and_english_is_apart(demo_plane):
    assert demo_plane.averaged == ("es", "id", "el", "ko", "zh", "ar")
    assert demo_plane.languages == (*demo_plane.averaged, "en")
    rows = table(demo_plane).loc["surgical"]
    for score in ("x", "y", "bias"):
        mean = rows[f"{score}_change"][list(demo_plane.averaged)].mean()
        assert rows[f"{score}_change"]["average"] == pytest.approx(mean)
    assert rows["x_n"]["average"] == 360
    assert rows["x_questions"]["average"] == 60  # one question in six languages is one


def test_english_bias_is_not_asked_in_english(demo_plane):
    rows = table(demo_plane)["bias_change"]
    assert rows.isna()["loc"].to_dict() == {
        language: language == "en" for language in ("average", *demo_plane.languages)
    }


def test_same_seed_same_plane(demo, demo_plane):
    again, other = (measure(load(demo), "unsteered", resamples=2000, seed=seed) for seed in (0, 5))
    assert again.shifts.equals(demo_plane.shifts)
    assert not other.shifts.equals(demo_plane.shifts)
    assert other.shifts["x_change"].equals(demo_plane.shifts["x_change"])


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_documents_are_paired_by_content_not_by_place(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    root = pair(tmp_path_factory.mktemp("p"), random_scores(0, n=9), random_scores(seed, n=9))
    expected = plane_of(root).shifts
    for path in (root / "run").rglob("samples_*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        shuffled = [lines[place] | {"doc_id": number} for number, place in enumerate(rng.permutation(len(lines)))]
        path.write_text("".join(json.dumps(line) + "\n" for line in shuffled))
    pd.testing.assert_frame_equal(plane_of(root).shifts, expected)


def test_swapping_baseline_and_run_turns_the_plane_round(tmp_path):
    root = pair(tmp_path, random_scores(0), random_scores(3))
    forth, back = table(plane_of(root)).loc["run"], table(plane_of(root, "run")).loc["base"]
    np.testing.assert_allclose(
        forth[["x_change", "x_low", "x_high"]], -back[["x_change", "x_high", "x_low"]], atol=1e-12
    )


def test_a_document_that_stands_twice_in_a_task_is_paired_once(tmp_path):
    root = pair(tmp_path, random_scores(0, n=5), random_scores(1, n=5))
    for path in root.rglob("samples_*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines[1] |= {key: lines[0][key] for key in ("doc", "doc_hash")}
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert (table(plane_of(root))["x_n"].xs("ko", level="language") == 5).all()


# --- axes ------------------------------------------------------------------------------------------------------------


def test_the_only_known_families_are_the_axes(demo_plane):
    assert (demo_plane.x.name, demo_plane.y.name) == (X, Y)
    assert demo_plane.x.metric == "acc"
    assert "highest log-likelihood" in demo_plane.x.rule


def test_with_a_choice_of_families_the_axis_must_be_named(tmp_path):
    letters = {task.removesuffix("_cloze"): metrics for task, metrics in random_scores(1, n=4).items()}
    pair(tmp_path, random_scores(0, n=4) | letters, random_scores(1, n=4) | letters)
    with pytest.raises(ResultsError, match=r"--x must be named.*transfer_mini and transfer_mini_cloze") as error:
        plane_of(tmp_path)
    assert "localization_mini_cloze: every run" in str(error.value)
    plane = plane_of(tmp_path, x="transfer_mini", y=Y)
    assert plane.x.rule == "acc: most likely letter"


def test_groups_families_and_single_tasks_can_be_axes(tmp_path):
    scores = {
        "arc_easy": {"acc": [1.0, 0.0, 1.0]},
        "belebele_ko": {"acc": [1.0, 1.0]},
        "belebele_zh": {"acc": [0.0, 1.0]},
    }
    for name in ("base", "run"):
        write_run(tmp_path / name, scores, groups={"both": ["inner"], "inner": ["belebele_ko", "belebele_zh"]})
    by_group, by_family = (plane_of(tmp_path, x="arc_easy", y=name) for name in ("both", "belebele"))
    assert by_group.y.tasks == by_family.y.tasks == ("belebele_ko", "belebele_zh")
    assert by_group.languages == ("ko", "zh")
    assert "arc_easy has no languages" in " ".join(by_group.notes)
    assert plane_of(tmp_path, x="arc_easy", y="belebele_ko").averaged == ("ko",)


def test_two_tasks_without_languages(tmp_path):
    for name in ("base", "run"):
        write_run(tmp_path / name, {"arc": {"acc": [1.0, 0.0]}, "boolq": {"acc": [0.0, 1.0]}})
    plane = plane_of(tmp_path, x="arc", y="boolq")
    assert plane.languages == ()
    assert plane.average_name == "all documents"
    assert plane.shifts["language"].tolist() == ["average", "average"]


def test_filters_are_named_and_must_be_chosen(tmp_path):
    scores = {"arc": {"acc": [1.0, 0.0]}, "math": {"exact_match": [0.0, 1.0]}}
    for name in ("base", "run"):
        write_run(tmp_path / name, scores)
    for path in tmp_path.rglob("samples_math_*"):
        text = path.read_text()
        path.write_text(text.replace('"none"', '"strict"') + text.replace('"none"', '"flexible"'))
    with pytest.raises(ResultsError, match="exact_match,strict, exact_match,flexible"):
        plane_of(tmp_path, x="arc", y="math", y_metric="exact_match")
    plane = plane_of(tmp_path, x="arc", y="math", y_metric="exact_match,strict")
    assert plane.y.score == "exact_match,strict"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": "nothing"}, "no results for 'nothing'"),
        ({"x": Y, "y": Y}, "two different"),
        ({"x_metric": "f1"}, "no score 'f1'; there are: acc, english_bias"),
        ({"languages": ["ko", "xx"]}, "no documents in xx"),
        ({"baseline": "nobody"}, "no run is called 'nobody'"),
        ({"runs": ["nobody"]}, "no run is called 'nobody'"),
    ],
)
def test_wrong_names_say_what_there_is(demo, options, message):
    with pytest.raises(ResultsError, match=message):
        plane_of(demo, **{"baseline": "unsteered", **options})


def test_runs_and_languages_can_be_chosen(demo):
    plane = plane_of(demo, "unsteered", runs=["loc"], languages=["ko", "en"])
    assert [run.name for run in plane.runs] == ["loc"]
    assert plane.languages == ("ko", "en")
    assert plane.averaged == ("ko",)


# --- what is not comparable ------------------------------------------------------------------------------------------


def test_a_limit_is_paired_on_what_both_have_and_named(tmp_path):
    short = {task: {name: values[:4] for name, values in metrics.items()} for task, metrics in random_scores(1).items()}
    plane = plane_of(pair(tmp_path, random_scores(0), short, limit=4))
    assert table(plane)["x_n"]["run", "ko"] == 4
    note = next(note for note in plane.notes if X in note)
    assert "paired on the 28 documents that both have, of 420 in the baseline and 28 in the run" in note
    assert "limit None and 4" in note


def test_another_task_version_is_refused(tmp_path):
    scores = random_scores(0, n=4)
    pair(tmp_path, scores, scores, versions={"transfer_mini_ko_cloze": 2.0})
    with pytest.raises(ResultsError, match=r"other versions of transfer_mini_ko_cloze: 1.0 .* 2.0 in 'run'"):
        plane_of(tmp_path)


def test_other_documents_under_the_same_ids_are_refused(tmp_path):
    root = pair(tmp_path, random_scores(0, n=4), random_scores(1, n=4))
    for path in (root / "run").rglob("samples_transfer_*"):
        path.write_text(path.read_text().replace('"doc_hash": "', '"doc_hash": "f'))
    with pytest.raises(ResultsError, match="not one document is the same as in 'base'"):
        plane_of(root)


def test_other_prompts_are_named(tmp_path):
    plane = plane_of(pair(tmp_path, random_scores(0, n=4), random_scores(1, n=4), n_shot=5))
    assert "the prompts of 28 documents differ" in " ".join(plane.notes)
    assert "few-shot examples 0 and 5" in " ".join(plane.notes)


def test_a_run_without_all_languages_has_no_average(tmp_path):
    plane = plane_of(pair(tmp_path, random_scores(0, n=4), cut(random_scores(1, n=4), "ko", "zh")))
    assert set(table(plane).loc["run"].index) == {"ko", "zh"}
    assert "no results in ar, el, en, es, id, so it has no average" in " ".join(plane.notes)
    assert "no average" in conclusions(plane)[0]
    assert set(table(plane_of(tmp_path, languages=["ko", "zh"])).loc["run"].index) == {"average", "ko", "zh"}


def test_languages_of_one_axis_only_are_left_out_and_named(tmp_path):
    scores = {task: metrics for task, metrics in random_scores(0, n=4).items() if task != "transfer_mini_el_cloze"}
    plane = plane_of(pair(tmp_path, scores, scores))
    assert "el" not in plane.languages
    assert "only one of the axes has el" in " ".join(plane.notes)


def test_axes_without_a_common_language_are_refused(tmp_path):
    scores = {"transfer_mini_ko_cloze": {"acc": [1.0]}, "localization_mini_el_cloze": {"acc": [1.0]}}
    with pytest.raises(ResultsError, match=r"share no language.* has ko.* has el"):
        plane_of(pair(tmp_path, scores, scores))


def test_an_axis_with_and_without_languages_is_refused(tmp_path):
    scores = random_scores(0, n=3) | {"told": {"acc": [1.0]}}
    for name in ("base", "run"):
        write_run(tmp_path / name, scores, groups={"mixed": ["told", "transfer_mini_ko_cloze"]})
    with pytest.raises(ResultsError, match="mixes documents with and without a language: told"):
        plane_of(tmp_path, x="mixed")


def test_a_run_without_an_axis_is_left_out_and_named(tmp_path):
    write_run(tmp_path / "half", cut(random_scores(0, n=4), "ko") | {}, plan="en@1")
    only_x = {task: metrics for task, metrics in random_scores(0, n=4).items() if task.startswith("transfer")}
    write_run(tmp_path / "half", only_x, plan="en@2", date="2026-05-05T00-00-00")
    plane = plane_of(pair(tmp_path, random_scores(0, n=4), random_scores(1, n=4)))
    assert "run 'half [en@2]' has no results for localization_mini_cloze: left out" in plane.notes
    with pytest.raises(ResultsError, match=r"the baseline 'half .en@2.' has no results for localization_mini_cloze"):
        plane_of(tmp_path, "half [en@2]")


def test_missing_samples_of_an_axis_are_an_error_and_of_another_task_are_not(tmp_path):
    base, run = random_scores(0, n=4), random_scores(1, n=4)
    root = pair(tmp_path, base | {"extra": {"acc": [1.0]}}, run | {"extra": {"acc": [1.0]}})
    next((root / "run").rglob("samples_extra_*")).unlink()
    plane_of(root)
    next((root / "run").rglob("samples_transfer_mini_el_*")).unlink()
    with pytest.raises(ResultsError, match=r"no samples of transfer_mini_el_cloze.*--log_samples"):
        plane_of(root)


def test_documents_without_a_score_are_left_out_and_named(tmp_path):
    run = random_scores(1, n=4)
    run["transfer_mini_ko_cloze"]["acc"][0] = None
    plane = plane_of(pair(tmp_path, random_scores(0, n=4), run))
    assert table(plane)["x_n"]["run", "ko"] == 3
    assert "1 documents without a score" in " ".join(plane.notes)


# --- conclusions -----------------------------------------------------------------------------------------------------


def fixed(task_gain: dict[str, int], n: int = 40) -> dict:
    """Scores of the six languages in which the first `gain` questions are right and the others wrong."""
    return {
        f"{family}_mini_{code}_cloze": {"acc": [1.0] * (10 + gain) + [0.0] * (n - 10 - gain)}
        for family, gain in task_gain.items()
        for code in LANGUAGES
    }


def test_the_control_is_held_against_the_steered_runs(tmp_path):
    write_run(tmp_path / "base", fixed({"transfer": 0, "localization": 0}), plan="")
    write_run(tmp_path / "loc", fixed({"transfer": 0, "localization": 15}), plan="loc@3:2")
    write_run(tmp_path / "noise", fixed({"transfer": -8, "localization": 12}), plan="loc~random1@3:2")
    plane = plane_of(tmp_path)
    (row,) = plane.contrasts[plane.contrasts["language"] == "average"].to_dict("records")
    assert (row["run"], row["control"]) == ("loc", "noise")
    # The difference of the two differences: the baseline cancels.
    shifts = table(plane)
    for score in ("x", "y"):
        difference = shifts[f"{score}_change"]["loc", "average"] - shifts[f"{score}_change"]["noise", "average"]
        assert row[f"{score}_change"] == pytest.approx(difference)
    loc, noise, caution = conclusions(plane)
    assert loc.startswith(
        "loc: transfer undecided, 0.0 [0.0, 0.0], only 0 of 40 questions changed; localization up, +37.5 ["
    )
    assert "Beyond the control noise: transfer up, +20.0 [" in loc
    assert "localization undecided, +7.5 [" in loc  # three questions beyond noise prove nothing
    assert "only 3 of 40 questions changed" in loc
    assert "(a random direction, a control)" in noise
    assert "transfer down, −20.0" in noise
    assert "needs no particular direction" in noise
    assert "without correction" in caution


def test_without_a_control_the_question_stays_open(tmp_path):
    plane = plane_of(pair(tmp_path, random_scores(0, n=5), random_scores(1, n=5)))
    assert "No random direction was evaluated" in conclusions(plane)[1]


def test_a_control_of_another_model_is_no_control(tmp_path):
    write_run(tmp_path / "base", random_scores(0, n=5))
    write_run(tmp_path / "loc", random_scores(1, n=5), plan="loc@3:2")
    write_run(tmp_path / "noise", random_scores(2, n=5), plan="loc~random@3:2", model="another/model")
    assert plane_of(tmp_path).contrasts.empty


@pytest.mark.parametrize(
    ("low", "high", "changed", "expected"),
    [
        (0.01, 0.1, 6, "up"),
        (0.01, 0.1, 5, "undecided"),
        (-0.1, -0.01, 30, "down"),
        (0.0, 0.1, 30, "undecided"),
        (-0.1, 0.1, 30, "undecided"),
    ],
)
def test_a_verdict_needs_a_clear_interval_and_enough_changes(low, high, changed, expected):
    assert verdict({"x_low": low, "x_high": high, "x_changed": changed}, "x") == expected


def test_points_have_a_sign_but_zero_has_none():
    assert [points(value) for value in (0.0312, -0.004, 0.0, -0.0001)] == ["+3.1", "−0.4", "0.0", "0.0"]
