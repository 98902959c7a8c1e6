"""The estimators of states against independent implementations and against directions that were planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from support import tiny
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize, softplus

from lm_eval_ext.data.pairs import Pair
from lm_eval_ext.errors import EstimatorError
from lm_eval_ext.steering import registry
from lm_eval_ext.steering.estimators import Estimator, PairStates, StateBatch
from lm_eval_ext.steering.estimators.conditional import best_threshold
from lm_eval_ext.steering.estimators.least_squares import reduced_rank
from lm_eval_ext.steering.extraction import extract
from lm_eval_ext.steering.table import random_direction

LAYERS, HIDDEN, PAIRS = 2, 12, 60


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def states_of(positive: Tensor, negative: Tensor) -> PairStates:
    """Pair states in two batches, in a mixed order."""
    n = positive.shape[1]
    both = torch.stack([positive, negative], dim=2).flatten(1, 2)
    order = torch.randperm(2 * n, generator=generator(1))
    batches = [StateBatch(both[:, part], part // 2, part % 2 == 0) for part in order.split(n + 1)]
    return PairStates(batches, n_pairs=n, n_layers=positive.shape[0], hidden_size=positive.shape[2])


def planted(n: int = PAIRS, *, shared: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Positive and negative states [layers, n, hidden] and the planted unit direction [layers, hidden].

    States vary much in three directions orthogonal to it; what the two texts of a pair share has the weight `shared`. The
    positive states are moved by two along the direction.
    """
    random = generator(seed)
    basis = torch.linalg.qr(torch.randn(LAYERS, HIDDEN, 4, generator=random)).Q.mT
    direction, loud = basis[:, 0], 6 * basis[:, 1:]
    mean = torch.randn(LAYERS, 1, HIDDEN, generator=random) * 3

    def noise() -> Tensor:
        quiet = 0.3 * torch.randn(LAYERS, n, HIDDEN, generator=random)
        return quiet + torch.randn(LAYERS, n, 3, generator=random) @ loud

    question = shared * noise()
    return mean + question + noise() + 2 * direction[:, None], mean + question + noise(), direction


def fit(name: str, positive: Tensor, negative: Tensor, **parameters: Any) -> Any:
    return registry.make_estimator(name, parameters).fit(states_of(positive, negative))


# Directions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pca_difference", "logistic_probe", "whitened_difference", "lda"])
def test_a_direction_is_as_long_as_the_mean_difference_and_on_its_side(name: str) -> None:
    positive, negative, _ = planted()
    difference = (positive - negative).mean(1)
    vector = fit(name, positive, negative)["vector"]
    assert ((vector * difference).sum(1) > 0).all()
    if name != "lda":  # whose vector is a projection of the difference
        torch.testing.assert_close(vector.norm(dim=1), difference.norm(dim=1))
    torch.testing.assert_close(fit(name, negative, positive)["vector"], -vector, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["logistic_probe", "whitened_difference", "lda"])
def test_a_planted_direction_is_recovered_better_than_by_the_mean_where_states_vary(name: str) -> None:
    positive, negative, direction = planted(shared=0.0)
    mean = cosine_similarity(fit("mean_difference", positive, negative)["vector"], direction)
    learnt = cosine_similarity(fit(name, positive, negative)["vector"], direction)
    if name == "lda":  # with two classes the projection onto the only discriminant
        torch.testing.assert_close(
            learnt, cosine_similarity(fit("whitened_difference", positive, negative)["vector"], direction)
        )
    assert (learnt > 0.9).all()
    assert (learnt > mean).all()


def test_the_first_component_is_that_of_an_uncentred_svd() -> None:
    positive, negative, _ = planted()
    vector = fit("pca_difference", positive, negative)["vector"]
    for layer in range(LAYERS):
        differences = (positive - negative)[layer].double().numpy()
        expected = TruncatedSVD(1, algorithm="arpack").fit(differences).components_[0]
        assert abs(normalize(vector[layer], dim=0).double().numpy() @ expected) == pytest.approx(1, abs=1e-5)


def test_the_probe_satisfies_the_conditions_of_its_minimum() -> None:
    positive, negative, _ = planted()
    vector = fit("logistic_probe", positive, negative, c=0.5)["vector"]
    for layer in range(LAYERS):
        both = torch.cat([positive[layer], negative[layer]]).double()
        both -= both.mean(0)
        both /= both.square().sum(1).mean().sqrt()
        signs = torch.cat([torch.ones(PAIRS), -torch.ones(PAIRS)]).double()
        weight = torch.zeros(HIDDEN + 1, dtype=torch.float64, requires_grad=True)  # Newton, with autograd

        def loss(w: Tensor, both: Tensor = both, signs: Tensor = signs) -> Tensor:
            margins = signs * (both @ w[:-1] + w[-1])
            return w[:-1].square().sum() / 2 + 0.5 * softplus(-margins).sum()

        for _ in range(30):
            gradient = torch.func.grad(loss)(weight)
            weight = (weight - torch.linalg.solve(torch.func.hessian(loss)(weight), gradient)).detach()
        assert cosine_similarity(weight[:-1].float(), vector[layer], dim=0) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("n", [5, PAIRS])
def test_whitening_uses_the_covariance_of_ledoit_and_wolf(n: int) -> None:
    positive, negative, _ = planted(n)
    fitted = fit("whitened_difference", positive, negative)
    for layer in range(LAYERS):
        sides = [side[layer].double().numpy() for side in (positive, negative)]
        centred = np.concatenate([side - side.mean(0) for side in sides])
        reference = LedoitWolf(assume_centered=True).fit(centred)
        assert fitted.chosen["shrinkage"][layer] == pytest.approx(reference.shrinkage_)
        expected = np.linalg.solve(reference.covariance_, (sides[0] - sides[1]).mean(0))
        assert cosine_similarity(torch.tensor(expected).float(), fitted["vector"][layer], dim=0) == pytest.approx(
            1, abs=1e-5
        )
    whole = fit("whitened_difference", positive, negative, shrinkage=1.0)["vector"]
    torch.testing.assert_close(whole, (positive - negative).mean(1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shrinkage", [0.0, 0.2])
@pytest.mark.parametrize("components", [2, 100])
def test_discriminants_solve_the_generalised_eigenproblem(components: int, shrinkage: float) -> None:
    sides = {code: planted(40, seed=seed)[:2] for seed, code in enumerate(("ko", "el", "zh"))}
    estimator = registry.make_estimator("lda", {"components": components, "shrinkage": shrinkage})
    fitted = estimator.fit_languages({code: states_of(*both) for code, both in sides.items()})
    for layer in range(LAYERS):
        classes = [side[layer].double().numpy() for both in sides.values() for side in both]
        everything = np.concatenate(classes)
        if shrinkage:
            centred = np.concatenate([of_class - of_class.mean(0) for of_class in classes])
            inside = (1 - shrinkage) * np.cov(centred.T, bias=True)
            inside += shrinkage * np.trace(np.cov(centred.T, bias=True)) / HIDDEN * np.eye(HIDDEN)
            between = np.cov(everything.T, bias=True) - np.cov(centred.T, bias=True)
            leading = scipy.linalg.eigh(between, inside)[1][:, ::-1]
        else:
            labels = np.repeat(np.arange(len(classes)), [len(of_class) for of_class in classes])
            leading = LinearDiscriminantAnalysis(solver="eigen").fit(everything, labels).scalings_
        span = np.linalg.qr(leading[:, : min(components, len(classes) - 1)])[0]
        for code, (positive, negative) in sides.items():
            difference = (positive - negative)[layer].double().numpy().mean(0)
            np.testing.assert_allclose(fitted[code]["vector"][layer], span @ span.T @ difference, atol=1e-4)


# Languages ------------------------------------------------------------------------------------------------------------


def test_cultures_are_told_from_what_they_share() -> None:
    random = generator(4)
    shared, own = torch.randn(LAYERS, HIDDEN, generator=random), torch.randn(3, LAYERS, HIDDEN, generator=random)
    codes = ("ko", "el", "zh")

    def states() -> dict[str, PairStates]:
        negative = torch.randn(LAYERS, PAIRS, HIDDEN, generator=generator(5))
        return {code: states_of(negative + (shared + own[k])[:, None], negative) for k, code in enumerate(codes)}

    culture = registry.make_estimator("culture_difference").fit_languages(states())
    universal = registry.make_estimator("universal_difference").fit_languages(states())
    for k, code in enumerate(codes):
        others = own[[other for other in range(3) if other != k]].mean(0)
        torch.testing.assert_close(culture[code]["vector"], own[k] - others, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(universal[code]["vector"], shared + others, atol=1e-5, rtol=1e-4)
    for name in ("culture_difference", "universal_difference"):
        with pytest.raises(EstimatorError, match=f"'{name}' compares languages: give pairs of two or more"):
            registry.make_estimator(name).fit_languages({"ko": states()["ko"]})


# Maps -----------------------------------------------------------------------------------------------------------------


def test_without_a_ridge_the_map_is_that_of_least_squares() -> None:
    positive, negative, _ = planted()
    fitted = fit("least_squares", positive, negative, ridge=0)
    for layer in range(LAYERS):
        expected = np.linalg.lstsq(negative[layer].double().numpy(), positive[layer].double().numpy(), rcond=None)[0]
        learnt = fitted["left"][layer] @ fitted["right"][layer] + torch.eye(HIDDEN)
        np.testing.assert_allclose(learnt.numpy(), expected, atol=1e-3)
    assert not fitted["offset"].any()


@pytest.mark.parametrize("n", [6, PAIRS])
@pytest.mark.parametrize("ridge", [0.5, 30.0])
def test_with_a_ridge_it_is_a_ridge_regression_of_the_change(ridge: float, n: int) -> None:
    positive, negative, _ = planted(n)
    fitted = fit("least_squares", positive, negative, ridge=ridge)
    reference = Ridge(alpha=ridge, fit_intercept=False, solver="svd")
    for layer in range(LAYERS):
        source, change = negative[layer].double().numpy(), (positive - negative)[layer].double().numpy()
        learnt = (fitted["left"][layer] @ fitted["right"][layer]).numpy()
        np.testing.assert_allclose(learnt, reference.fit(source, change).coef_.T, atol=1e-4)


def test_of_lower_rank_no_map_is_better() -> None:
    """The reduced-rank regression: the full one, projected onto the leading directions of what it fits."""
    positive, negative, _ = planted()
    source, change, ridge = negative[0].double(), (positive - negative)[0].double(), 5.0
    augmented = torch.cat([source, ridge**0.5 * torch.eye(HIDDEN)]).numpy()
    target = torch.cat([change, torch.zeros(HIDDEN, HIDDEN)]).numpy()
    full = np.linalg.lstsq(augmented, target, rcond=None)[0]
    leading = np.linalg.svd(augmented @ full)[2][:3]
    left, right = reduced_rank(source, change, ridge, 3)
    np.testing.assert_allclose((left @ right).numpy(), full @ leading.T @ leading, atol=1e-6)
    assert left.shape[1] == 3


@pytest.mark.parametrize(("noise", "is_strong"), [(0.01, False), (30.0, True)])
def test_the_ridge_is_chosen_on_held_out_pairs(noise: float, is_strong: bool) -> None:
    random = generator(6)
    negative = torch.randn(1, PAIRS, HIDDEN, generator=random)
    planted_map = torch.randn(HIDDEN, 2, generator=random) @ torch.randn(2, HIDDEN, generator=random) / 4
    positive = negative + negative @ planted_map + noise * torch.randn(1, PAIRS, HIDDEN, generator=random)
    fitted = fit("least_squares", positive, negative, rank=2)
    (ridge,) = fitted.chosen["ridge"]
    scale = float(negative.square().sum()) / PAIRS
    assert (ridge >= 10 * scale) if is_strong else (ridge < 1e-2 * scale)
    if not is_strong:
        torch.testing.assert_close(fitted["left"][0] @ fitted["right"][0], planted_map, atol=0.02, rtol=0.02)


def test_a_random_map_has_the_same_spectrum_and_other_directions() -> None:
    positive, negative, _ = planted()
    fitted = fit("least_squares", positive, negative, rank=4, ridge=1.0)
    transform = registry.estimator_class("least_squares").transform()
    artifact = {**{name: tensor[0] for name, tensor in fitted.items()}, "offset": torch.arange(4.0)}
    random = transform.random(artifact, lambda name, tensor: random_direction(7, name, tensor))

    def whole(of: Any) -> Tensor:
        matrix: Tensor = of["left"] @ of["right"]
        return matrix

    torch.testing.assert_close(
        torch.linalg.svdvals(whole(random)), torch.linalg.svdvals(whole(artifact)), atol=1e-4, rtol=1e-4
    )
    assert float((random["offset"] @ random["right"]).norm()) == pytest.approx(
        float((artifact["offset"] @ artifact["right"]).norm()), rel=1e-4
    )
    cosine = cosine_similarity(whole(random).flatten(), whole(artifact).flatten(), dim=0)
    assert abs(float(cosine)) < 0.5


# Other uses of a direction --------------------------------------------------------------------------------------------


def applied(name: str, states: Tensor, strength: float, layer: int = 0, **parameters: Any) -> tuple[Tensor, Any]:
    """What an estimator's transform makes of states [n, hidden], and the fitted artifact."""
    positive, negative, _ = planted()
    fitted = fit(name, positive, negative, **parameters)
    artifact = {key: tensor[layer] for key, tensor in fitted.items()}
    return registry.estimator_class(name).transform().apply(states, artifact, strength), fitted


def test_projection_and_its_complement() -> None:
    positive, negative, _ = planted()
    states = negative[0]
    unit = normalize((positive - negative).mean(1)[0], dim=0)
    ablated, _ = applied("ablation", states, 1.0)
    kept, _ = applied("complement", states, 1.0)
    torch.testing.assert_close(ablated @ unit, torch.zeros(PAIRS), atol=1e-4, rtol=0)
    torch.testing.assert_close(kept, (states @ unit)[:, None] * unit)
    torch.testing.assert_close(ablated + kept, states)
    for name in ("ablation", "complement"):
        assert torch.equal(applied(name, states, 0.0)[0], states)


def test_a_rotation_keeps_the_norm_and_the_plane() -> None:
    positive, negative, _ = planted()
    states, vector = negative[0], (positive - negative).mean(1)[0]
    turned, _ = applied("rotation", states, 3.0)
    torch.testing.assert_close(turned.norm(dim=1), states.norm(dim=1))
    assert (cosine_similarity(turned, vector[None]) > cosine_similarity(states, vector[None])).all()
    for before, after in zip(states, turned, strict=True):
        plane = torch.stack([before, vector, after])
        assert float(torch.linalg.svdvals(plane)[2]) < 1e-4
    assert torch.equal(applied("rotation", states, 0.0)[0], states)
    assert not applied("rotation", torch.zeros(2, HIDDEN), 3.0)[0].any()


def test_a_condition_spares_what_is_as_it_should_be() -> None:
    random = generator(8)
    negative = torch.randn(LAYERS, PAIRS, HIDDEN, generator=random) * 0.1 + 1
    positive = negative + 3 * normalize(torch.randn(LAYERS, 1, HIDDEN, generator=random), dim=2)
    fitted = fit("conditional", positive, negative)
    vector = (positive - negative).mean(1)
    torch.testing.assert_close(fitted["vector"], vector)
    assert fitted.chosen["balanced_accuracy"] == [1.0, 1.0]
    transform = registry.estimator_class("conditional").transform()
    artifact = {name: tensor[1] for name, tensor in fitted.items()}
    torch.testing.assert_close(transform.apply(negative[1], artifact, 2.0), negative[1] + 2 * vector[1])
    torch.testing.assert_close(transform.apply(positive[1], artifact, 2.0), positive[1])
    random_artifact = transform.random(artifact, lambda name, tensor: random_direction(7, name, tensor))
    assert torch.equal(transform.apply(positive[1], random_artifact, 2.0), positive[1])
    assert float(random_artifact["vector"].norm()) == pytest.approx(float(vector[1].norm()), rel=1e-4)


def test_the_best_threshold_by_trying_all() -> None:
    random = generator(9)
    above, below = torch.randn(15, generator=random) + 0.7, torch.randn(20, generator=random)
    threshold, accuracy = best_threshold(above, below)

    def balanced(t: float) -> float:
        return float((above > t).double().mean() + (below <= t).double().mean()) / 2

    assert accuracy == pytest.approx(balanced(threshold))
    assert accuracy == pytest.approx(max(balanced(t) for t in torch.linspace(-4, 4, 4001).tolist()))


def test_a_direction_of_another_estimator() -> None:
    positive, negative, _ = planted()
    whitened = fit("whitened_difference", positive, negative)["vector"]
    for name in ("rotation", "conditional"):
        torch.testing.assert_close(fit(name, positive, negative, direction="whitened_difference")["vector"], whitened)


# All of them ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("logistic_probe", {"c": 0}, "c 0 must be above 0"),
        ("whitened_difference", {"shrinkage": 2}, "shrinkage 2 must be between 0 and 1"),
        ("lda", {"components": 0}, "components 0 must be at least 1"),
        ("lda", {"shrinkage": -1}, "shrinkage -1 must be between 0 and 1"),
        ("least_squares", {"ridge": -1}, "ridge -1 must be at least 0"),
        ("least_squares", {"rank": 0}, "rank 0 must be at least 1"),
        ("rotation", {"direction": "least_squares"}, r"'least_squares' gives no vector \(its transform is 'affine'\)"),
        ("rotation", {"direction": "nonsense"}, "there is no estimator 'nonsense'"),
        ("conditional", {"held_out": 1}, "held_out 1 must be between 0 and 1"),
        ("trained", {"target": "x"}, "target 'x' must be answer or positive"),
        ("trained", {"position": "first"}, "position 'first' must be one of prompt, last, all"),
        ("trained", {"budget": 0}, "must be above 0"),
        ("affine", {"rank": 0}, "rank 0 must be at least 1"),
    ],
)
def test_parameters_out_of_range(name: str, parameters: dict[str, Any], expected: str) -> None:
    with pytest.raises(EstimatorError, match=expected):
        registry.make_estimator(name, parameters)


@pytest.mark.parametrize("name", ["trained", "affine"])
def test_training_needs_the_model_two_pairs_and_answers(name: str) -> None:
    positive, negative, _ = planted()
    with pytest.raises(EstimatorError, match=f"'{name}' trains through the model: use it with `extract`"):
        fit(name, positive, negative)
    model, tokenizer = tiny.load("llama"), tiny.load_tokenizer("llama")
    pairs = [Pair("Which bird is it?", "Which bird?", answer=" A"), Pair("Who is it?", "Who?")]
    with pytest.raises(EstimatorError, match=r"1 of 2 pairs have no answer\. Give one to each"):
        extract(model, tokenizer, pairs, f"{name}:target=answer", [1])
    with pytest.raises(EstimatorError, match="holds pairs out: give two or more, got 1"):
        extract(model, tokenizer, pairs[:1], name, [1])


STATES_ONLY = [name for name in registry.names() if name not in ("trained", "affine")]


@pytest.mark.parametrize("name", STATES_ONLY)
@pytest.mark.parametrize("case", ["one pair", "no difference", "no variance"])
def test_degenerate_pairs_give_finite_tensors(name: str, case: str) -> None:
    n = 1 if case == "one pair" else 6
    negative = torch.randn(LAYERS, 1 if case == "no variance" else n, HIDDEN, generator=generator(2)).expand(-1, n, -1)
    positive = negative if case == "no difference" else negative + torch.arange(float(HIDDEN))
    estimator: Estimator = registry.make_estimator(name)
    fitted = estimator.fit_languages({code: states_of(positive, negative) for code in ("ko", "el")})
    for tensors in fitted.values():
        assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
