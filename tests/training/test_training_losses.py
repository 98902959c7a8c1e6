"""The training losses: values worked out by hand, an independent implementation in float64, and gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from lm_eval_ext.training.losses import (
    DIRECTIONS,
    Direction,
    Likelihoods,
    Margins,
    clo_loss,
    contrastive_loss,
    preference_loss,
    preference_margins,
    response_loss,
)


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def likelihoods(seed: int, n: int = 3) -> Likelihoods:
    return Likelihoods(*(-numbers(seed + i, n).abs() * 9 for i in range(4)))


def test_response_loss_by_hand() -> None:
    log_probs = torch.tensor([0.5, 0.25, 0.125]).log()
    assert float(response_loss(log_probs)) == pytest.approx(2 * math.log(2))  # (1 + 2 + 3) / 3 halvings
    assert float(response_loss(log_probs, 6)) == pytest.approx(math.log(2))
    assert float(response_loss(log_probs, torch.tensor(6))) == pytest.approx(math.log(2))
    assert float(response_loss(torch.zeros(0))) == 0


def test_contrastive_loss_by_hand() -> None:
    source = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    target = torch.tensor([[5.0, 0.0], [1.0, 1.0]])
    # Cosines: [[1, c], [0, c]] with c = 1 / sqrt 2.
    c = 1 / math.sqrt(2)
    forward = -(1 - math.log(math.e + math.exp(c)) + c - math.log(1 + math.exp(c))) / 2
    backward = -(1 - math.log(math.e + 1) + c - math.log(2 * math.exp(c))) / 2
    assert float(contrastive_loss(source, target, 1.0, "forward")) == pytest.approx(forward)
    assert float(contrastive_loss(source, target, 1.0, "backward")) == pytest.approx(backward)
    assert float(contrastive_loss(source, target, 1.0, "both")) == pytest.approx((forward + backward) / 2)
    assert float(contrastive_loss(target, source, 1.0, "forward")) == pytest.approx(backward)


def test_preference_by_hand() -> None:
    policy = Likelihoods(*(torch.tensor([v]) for v in (-10.0, -30.0, -20.0, -24.0)))
    reference = Likelihoods(*(torch.tensor([v]) for v in (-12.0, -25.0, -21.0, -21.0)))
    margins = preference_margins(policy, reference, 0.1)
    assert float(margins.en) == pytest.approx(0.1 * (2 - -5))
    assert float(margins.xx) == pytest.approx(0.1 * (1 - -3))
    expected = -math.log(1 / (1 + math.exp(-0.7))) - math.log(1 / (1 + math.exp(-0.4)))
    assert float(preference_loss(margins)) == pytest.approx(expected)
    assert float(clo_loss(torch.tensor(3.0), torch.tensor(5.0), 0.25)) == pytest.approx(0.25 * 3 + 0.75 * 5)


def contrastive_in_numpy(source: Any, target: Any, temperature: float, direction: Direction) -> float:
    """One pair at a time, straight from the formula."""
    unit = [[row / np.sqrt((row * row).sum()) for row in np.asarray(side, np.float64)] for side in (source, target)]
    if direction == "both":
        return sum(contrastive_in_numpy(source, target, temperature, one) for one in DIRECTIONS[:2]) / 2
    ask, answer = unit if direction == "forward" else unit[::-1]
    total = 0.0
    for i, query in enumerate(ask):
        terms = [math.exp(float((query * other).sum()) / temperature) for other in answer]
        total -= math.log(terms[i] / sum(terms))
    return total / len(ask)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(2, 9),
    width=st.integers(1, 17),
    temperature=st.sampled_from([0.05, 0.1, 0.7, 1.0]),
    direction=st.sampled_from(DIRECTIONS),
)
def test_contrastive_loss_equals_an_independent_one(
    seed: int, batch: int, width: int, temperature: float, direction: Direction
) -> None:
    source, target = numbers(seed, batch, width), numbers(seed + 1, batch, width)
    expected = contrastive_in_numpy(source.numpy(), target.numpy(), temperature, direction)
    assert float(contrastive_loss(source, target, temperature, direction)) == pytest.approx(expected, rel=1e-10)
    single = contrastive_loss(source.float(), target.float(), temperature, direction)
    assert float(single) == pytest.approx(expected, rel=2e-4, abs=2e-5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 6), beta=st.sampled_from([0.0, 0.05, 0.1, 2.0]))
def test_preference_loss_equals_an_independent_one(seed: int, n: int, beta: float) -> None:
    policy, reference = likelihoods(seed, n), likelihoods(seed + 7, n)
    p, r = ({name: side.numpy().astype(np.float64) for name, side in x._asdict().items()} for x in (policy, reference))
    z_en = beta * ((p["en_en"] - r["en_en"]) - (p["xx_en"] - r["xx_en"]))
    z_xx = beta * ((p["xx_xx"] - r["xx_xx"]) - (p["en_xx"] - r["en_xx"]))
    expected = float(np.logaddexp(0, -z_en).mean() + np.logaddexp(0, -z_xx).mean())
    assert float(preference_loss(preference_margins(policy, reference, beta))) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradients_of_the_contrastive_loss(direction: Direction) -> None:
    sides = [numbers(seed, 4, 3).requires_grad_() for seed in (1, 2)]
    assert gradcheck(lambda s, t: contrastive_loss(s, t, 0.1, direction), sides)
    contrastive_loss(*sides, 0.1, direction).backward()
    assert all(float(side.grad.abs().min(dim=0).values.sum()) > 0 for side in sides)  # type: ignore[union-attr]


def test_gradients_of_the_other_losses() -> None:
    reference = likelihoods(3)
    policy = [side.requires_grad_() for side in likelihoods(9)]

    def objective(log_probs: torch.Tensor, *sides: torch.Tensor) -> torch.Tensor:
        preference = preference_loss(preference_margins(Likelihoods(*sides), reference, 0.1))
        return clo_loss(response_loss(log_probs), preference, 0.3)

    assert gradcheck(objective, (numbers(5, 7).requires_grad_(), *policy))


def test_a_beta_of_zero_has_no_preference_gradient() -> None:
    policy = Likelihoods(*(side.requires_grad_() for side in likelihoods(9)))
    loss = preference_loss(preference_margins(policy, likelihoods(3), 0.0))
    loss.backward()
    assert loss.item() == pytest.approx(2 * math.log(2))
    assert all(not side.grad.any() for side in policy)  # type: ignore[union-attr]


def test_the_preference_loss_falls_as_a_margin_grows() -> None:
    values = [float(preference_loss(Margins(torch.tensor([z]), torch.tensor([0.0])))) for z in (-50.0, -1.0, 0.0, 50.0)]
    assert values == sorted(values, reverse=True)
    assert all(map(math.isfinite, values))


@pytest.mark.parametrize(
    ("source", "target", "temperature", "message"),
    [
        (torch.ones(1, 3), torch.ones(1, 3), 0.1, "at least two pairs"),
        (torch.ones(2, 3), torch.ones(3, 3), 0.1, "same shape"),
        (torch.ones(2, 3, 4), torch.ones(2, 3, 4), 0.1, "same shape"),
        (torch.ones(2, 3), torch.ones(2, 3), 0.0, "above 0"),
        (torch.ones(2, 3), torch.ones(2, 3), float("nan"), "above 0"),
    ],
)
def test_what_cannot_be_contrasted(
    source: torch.Tensor, target: torch.Tensor, temperature: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        contrastive_loss(source, target, temperature, "both")
