"""A model whose knowledge, layers and directions are planted: what each estimator recovers, and that no control does.

`support.planted` says what the model knows and where. Half of the questions are answered rightly without steering.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pytest
import torch
from lm_eval.tasks import TaskManager
from support import planted
from support.planted import CULTURAL, LANGUAGES, OTHERS, UNIVERSAL, Planted
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lm_eval_ext.errors import PlanError
from lm_eval_ext.geometry.measures import gram, variance_share
from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.steering import registry
from lm_eval_ext.steering.extraction import extract
from lm_eval_ext.steering.plan import Plan
from lm_eval_ext.sweep.run import Sweep
from lm_eval_ext.sweep.settings import Settings

if TYPE_CHECKING:
    from lm_eval_ext.steering.vectors import VectorSet

#: A layer before each of the planted ones, and one at which it is too late.
LAYERS = (UNIVERSAL - 1, UNIVERSAL, CULTURAL - 1, CULTURAL)

#: Estimators of a direction towards the country and towards English.
TOWARDS = (
    "mean_difference",
    "pca_difference",
    "logistic_probe",
    "whitened_difference",
    "lda",
    "rotation",
    "conditional",
)

#: Those of them that know which directions are noise, the names of the places.
DENOISED = ("logistic_probe", "whitened_difference", "lda")

#: No more than the half that the model answers by itself, and what a guess adds.
NOTHING = 0.7


@cache
def model() -> Planted:
    return Planted()


@cache
def fitted(estimator: str, of: Planted | None = None) -> VectorSet:
    """Vectors of both kinds, with two controls of shuffled labels."""
    of = of or model()
    pairs = [*of.pairs("en"), *of.pairs("loc")]
    return extract(of.model, planted.tokenizer(), pairs, estimator, LAYERS, pooling="last", shuffled=2)


def localization(estimator: str, plan: str, **options: bool) -> float:
    return model().accuracy("c", (fitted(estimator), plan), **options)


def transfer(estimator: str, plan: str) -> float:
    return model().accuracy("u", (fitted(estimator), plan))


def test_what_is_planted() -> None:
    assert model().accuracy("u") == 0.5
    assert model().accuracy("u", languages=["en"]) == 1
    assert model().accuracy("c") == 0.5
    assert model().accuracy("c", named=True) == 1
    assert model().english_bias() == 0.5


# Directions -----------------------------------------------------------------------------------------------------------


def country(code: str) -> Tensor:
    return model().direction(f"country {code}")


def others(code: str) -> Tensor:
    return torch.stack([country(other) for other in OTHERS if other != code]).mean(0)


@pytest.mark.parametrize("estimator", [*TOWARDS, "least_squares", "culture_difference", "universal_difference"])
def test_the_planted_directions_are_recovered(estimator: str) -> None:
    vectors = fitted(estimator).vectors
    for code in OTHERS:
        loc, named = vectors["loc", code].displacement(CULTURAL - 1), model().direction("named")
        truth = {"culture_difference": country(code) - others(code), "universal_difference": others(code) + named}
        assert cosine_similarity(loc, truth.get(estimator, country(code) + named), dim=0) > (
            0.97 if estimator in DENOISED else 0.9
        )
        if estimator in ("culture_difference", "universal_difference"):
            continue
        towards_english = model().direction("language en") - model().direction(f"language {code}")
        assert cosine_similarity(vectors["en", code].displacement(UNIVERSAL - 1), towards_english, dim=0) > 0.9
        assert abs(float(cosine_similarity(loc, towards_english, dim=0))) < 0.2


@pytest.mark.parametrize("estimator", [*TOWARDS, "least_squares", "culture_difference", "universal_difference"])
def test_held_out_questions_are_answered_up_to_the_planted_layers(estimator: str) -> None:
    assert localization(estimator, f"loc@{UNIVERSAL}:1") == 1
    assert localization(estimator, f"loc@{CULTURAL - 1}:1") == 1
    assert localization(estimator, f"loc@{CULTURAL - 1}:1/last") == 1
    assert localization(estimator, f"loc@{CULTURAL}:1") < NOTHING
    # What is particular to a language's pairs does not hold English, which all of them have in common.
    assert transfer(estimator, f"en@{UNIVERSAL - 1}:1") == (0.5 if estimator == "culture_difference" else 1)
    assert transfer(estimator, f"en@{UNIVERSAL}:1") < NOTHING


@pytest.mark.parametrize("estimator", [*TOWARDS, "least_squares", "culture_difference", "universal_difference"])
def test_controls_recover_nothing(estimator: str) -> None:
    controls = ["~random0", "~random1", "~random2", "~other"]
    controls += [] if estimator == "pca_difference" else ["~shuffled0", "~shuffled1"]  # its direction has no sign
    if estimator == "universal_difference":
        controls.remove("~other")  # shares what it is made of
    for control in controls:
        assert localization(estimator, f"loc{control}@{CULTURAL - 1}:1") < NOTHING, control
        if control != "~other":
            assert transfer(estimator, f"en{control}@{UNIVERSAL - 1}:1") < NOTHING, control
    assert localization(estimator, f"loc@{CULTURAL - 1}:-1") < NOTHING
    assert transfer(estimator, f"en@{UNIVERSAL - 1}:-1") < NOTHING


def test_shuffled_controls_are_as_long_as_the_vectors_and_not_kinds() -> None:
    vectors = fitted("mean_difference")
    assert (vectors.kinds, vectors.n_shuffled("loc"), vectors.n_shuffled("nothing")) == (["en", "loc"], 2, 0)
    for code in OTHERS:
        real, *controls = (
            vectors.vectors[kind, code].tensors["vector"] for kind in ("loc", "loc~shuffled0", "loc~shuffled1")
        )
        for control in controls:
            torch.testing.assert_close(control.norm(dim=1), real.norm(dim=1))
            assert (cosine_similarity(control, real).abs() < 0.5).all()
    with pytest.raises(
        PlanError, match="the file has 2 controls of shuffled 'loc' pairs, numbered from 0; make them with"
    ):
        localization("mean_difference", "loc~shuffled2@3:1")


# Other uses of a direction --------------------------------------------------------------------------------------------


def test_ablation_takes_the_country_away_and_its_complement_the_question() -> None:
    plan = f"loc@{CULTURAL - 1}:1"
    assert localization("mean_difference", plan, named=True) == 1
    assert localization("ablation", plan, named=True) < 0.6
    assert localization("ablation", plan.replace("@", "~shuffled0@"), named=True) > 0.9
    for code in OTHERS:
        kept = model().logits("c", code, place=code, steering=(fitted("complement"), plan))
        assert (kept.std(0) < 0.05 * model().logits("c", code, place=code).std(0)).all()  # the same for all questions
    # Languages that cannot be told apart share what they know.
    assert transfer("ablation", f"en@{UNIVERSAL - 1}:1") == 1


def test_a_condition_spares_questions_that_name_their_country() -> None:
    plan = f"loc@{CULTURAL - 1}:1/last"
    for code in OTHERS:
        plain = model().logits("c", code, place=code)
        spared = model().logits("c", code, place=code, steering=(fitted("conditional"), plan))
        torch.testing.assert_close(spared, plain)
        steered = model().logits("c", code, place=code, steering=(fitted("mean_difference"), plan))
        assert float((steered - plain).abs().max()) > 0.1


# Training -------------------------------------------------------------------------------------------------------------


@cache
def trained(estimator: str) -> VectorSet:
    pairs = [pair_set for pair_set in model().pairs("loc") if pair_set.language == "ko"]
    layers = (CULTURAL - 1, CULTURAL)
    return extract(model().model, planted.tokenizer(), pairs, estimator, layers, pooling="last", shuffled=1)


@pytest.mark.parametrize(
    "estimator", ["trained:budget=0.1", "trained:budget=0.1,target=positive,position=last", "affine:budget=0.1,rank=2"]
)
def test_what_is_trained_answers_held_out_questions_up_to_the_planted_layer(estimator: str) -> None:
    def accuracy(plan: str) -> float:
        return model().accuracy("c", (trained(estimator), plan), languages=["ko"])

    before, position = model().accuracy("c", languages=["ko"]), "/last" if "last" in estimator else ""
    assert accuracy(f"loc@{CULTURAL - 1}:1{position}") > 0.9
    assert accuracy(f"loc@{CULTURAL}:1{position}") < before + 0.15
    assert accuracy(f"loc~shuffled0@{CULTURAL - 1}:1{position}") < before + 0.15
    info = trained(estimator).vectors["loc", "ko"].info
    assert info.parameters["loss_after"][0] < 0.3 * info.parameters["loss_before"][0]
    assert info.parameters["target"] == ("positive" if "positive" in estimator else "answer")
    if estimator.startswith("trained"):
        lengths = trained(estimator).vectors["loc", "ko"].tensors["vector"].norm(dim=1)
        assert (lengths <= 0.1 * torch.tensor(info.residual_norms) * 1.001).all()
    assert all(parameter.requires_grad for parameter in model().model.parameters())


def test_training_says_how_far_it_is(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it ends early: reading the texts is the smaller part."""
    updates: list[float] = []
    monkeypatch.setattr("lm_eval_ext.console.Progress.update", lambda self, n=1: updates.append(n))
    trained.__wrapped__("trained:budget=0.1,epochs=4,patience=1")
    assert "Training (trained)" in capfd.readouterr().err
    assert sum(updates) == 4 * 2 * 2  # epochs of two layers, once more with shuffled labels


def test_layers_are_trained_together_for_a_range() -> None:
    def accuracy(vectors: VectorSet, plan: str) -> float:
        return model().accuracy("c", (vectors, plan), languages=["ko"])

    pairs = [pair_set for pair_set in model().pairs("loc") if pair_set.language == "ko"]
    estimator = "trained:budget=0.01,together=true"  # too short for one layer alone
    layers = range(CULTURAL)
    together = extract(model().model, planted.tokenizer(), pairs, estimator, layers, pooling="last")
    assert accuracy(together, f"loc@0-{CULTURAL - 1}:1") > accuracy(together, f"loc@{CULTURAL - 1}:1") + 0.2


# The sweep ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tasks(tmp_path: Path) -> TaskManager:
    """The questions as tasks of the harness."""
    planted.write_tasks(tmp_path / "tasks", model())
    return TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)


@pytest.mark.slow
def test_a_sweep_finds_the_planted_layers_and_its_bands_hold_the_controls(tasks: TaskManager, tmp_path: Path) -> None:
    folder = model().save(tmp_path / "model")
    asked = Settings(
        vectors=fitted("mean_difference"),
        tasks=tuple(f"planted_{subject}_{language}" for subject in "uc" for language in OTHERS),
        out=tmp_path / "sweep",
        gammas=("1",),
        layers=",".join(map(str, LAYERS)),
        **{"n_random": 3, "prior": False, "model": str(folder), "model_args": "dtype=float32", "device": "cpu"},
        **{"max_tokens": 1024, "resamples": 100},
    )
    with mock.patch("lm_eval.tasks.TaskManager", return_value=tasks):
        result = Sweep(asked).run()
    assert result is not None
    en, loc = Plan.parse(result.plan).interventions
    assert en.layers(planted.LAYERS)[0] < UNIVERSAL
    assert loc.layers(planted.LAYERS)[0] < CULTURAL
    summary = result.summary
    chosen = summary[(summary["condition"] == str(result.plan)) & (summary["language"] == AVERAGE)].set_index("family")
    for family in ("planted_u_dev", "planted_c_dev"):
        row = chosen.loc[family]
        assert row["score"] == 1
        assert row["change"] == 0.5
        assert row["null_high"] < 0.3
        assert row["shuffled_high"] < 0.3
        assert row["shuffled_n"] == 2
    late = summary[(summary["condition"] == f"loc@{CULTURAL}:1/prompt") & (summary["language"] == AVERAGE)]
    assert (late["change"].abs() < 0.1).all()
    page = (tmp_path / "sweep" / "sweep.html").read_text(encoding="utf-8")
    assert "2 fits of shuffled pairs by" in page


# The paper's claims ---------------------------------------------------------------------------------------------------


#: What alignment does, planted: more is known in every language, less is answered for the own country, some is lost.
UNALIGNED = Planted(everywhere=0.25, local=0.75, merged=0.2)
MIST = Planted(everywhere=0.5, local=0.5, forgotten=0.25, merged=0.4)
CLO = Planted(everywhere=0.75, local=0.25, forgotten=0.5, merged=0.6)
EN, LOC = f"en@{UNIVERSAL - 1}:1", f"loc@{CULTURAL - 1}:1"


def test_alignment_moves_right_and_down_in_every_language_and_clo_further() -> None:
    for code in OTHERS:
        right, down = (
            [of.accuracy(subject, languages=[code]) for of in (UNALIGNED, MIST, CLO)] for subject in ("u", "c")
        )
        assert right[0] < right[1] < right[2]
        assert down[0] > down[1] > down[2]


@pytest.mark.parametrize("aligned", [MIST, CLO])
def test_steering_at_two_layers_does_what_neither_vector_does(aligned: Planted) -> None:
    vectors = fitted("mean_difference", aligned)
    plain = aligned.accuracy("u"), aligned.accuracy("c")
    en, loc, both = (
        (aligned.accuracy("u", (vectors, plan)), aligned.accuracy("c", (vectors, plan)))
        for plan in (EN, LOC, f"{EN}+{LOC}")
    )
    assert en[0] == 1 > plain[0]  # EN: transfer up, localization down
    assert en[1] < plain[1]
    assert loc[0] == plain[0]  # LOC: localization up
    assert loc[1] > plain[1]
    assert sum(both) > max(sum(en), sum(loc))
    assert both[0] == 1
    # English bias rises with alignment and falls with steering; what is forgotten stays lost.
    assert aligned.english_bias() > UNALIGNED.english_bias()
    assert aligned.english_bias((vectors, f"{EN}+{LOC}")) < aligned.english_bias()
    assert plain[1] < both[1] < 1
    assert aligned is MIST or both[1] < UNALIGNED.accuracy("c")


def shares(of: Planted, subject: str) -> list[float]:
    """Between-language share of the variance of the last tokens' states, after each layer."""
    asked = range(planted.DEV, planted.DEV + planted.ASKED)
    places = [f"here-{n % planted.N_NAMES}" for n in asked]
    texts = [f"{code} {subject}{n} {here} ?" for code in LANGUAGES for n, here in zip(asked, places, strict=True)]
    ids = torch.tensor(planted.tokenizer()(texts)["input_ids"])
    with torch.inference_mode():
        states = of.model(input_ids=ids, output_hidden_states=True).hidden_states
    # The last entry is after the final norm: the layer before it is the last that is compared.
    by_layer = [layer[:, -1].double().view(len(LANGUAGES), len(asked), -1).numpy() for layer in states[1:-1]]
    weights = np.ones((1, len(asked)))
    return [float(variance_share(gram(layer), weights)[0]) for layer in by_layer]


def test_universal_questions_merge_earlier_than_cultural_ones_and_alignment_tightens_both() -> None:
    last = {subject: [] for subject in "uc"}
    for of in (UNALIGNED, MIST, CLO):
        for subject, layer in (("u", UNIVERSAL), ("c", CULTURAL)):
            share = shares(of, subject)
            assert share[layer - 1] == pytest.approx(share[0], rel=0.01)  # apart up to the layer that answers
            assert share[layer] < 0.8 * share[layer - 1]
            last[subject].append(share[-1])
        assert shares(of, "u")[UNIVERSAL] < shares(of, "c")[UNIVERSAL]
    for subject in "uc":
        assert last[subject] == sorted(last[subject], reverse=True)
        assert last[subject][0] > 1.5 * last[subject][-1]


def test_the_vectors_are_orthogonal() -> None:
    vectors = fitted("mean_difference", CLO).vectors
    for code in OTHERS:
        pair = [vectors[kind, code].displacement(CULTURAL - 1) for kind in ("en", "loc")]
        angle = float(torch.rad2deg(torch.arccos(cosine_similarity(*pair, dim=0))))
        assert 80 < angle < 100


def test_every_estimator_is_tried_here() -> None:
    tried = {
        *TOWARDS,
        "least_squares",
        "culture_difference",
        "universal_difference",
        "ablation",
        "complement",
        "trained",
    }
    assert {*tried, "affine"} == set(registry.names())
    assert LANGUAGES[0] == "en"
