"""The losses as pure functions of what a model says: no model, no data, no state.

Sources: Han, Agrawal and Briakou 2025 (arXiv 2510.26024) for the formulae of MIDALIGN and CLO; Liu and Niehues 2025
(mid-align) and Lee 2025 (CLO) for what those leave open. What neither says is called our default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch's own documentation gives it

if TYPE_CHECKING:
    from torch import Tensor

#: Which side is the query of the contrastive loss: English (`forward`, as the slide writes it), the other language
#: (`backward`), or the mean of the two.
Direction = Literal["forward", "backward", "both"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


class Likelihoods(NamedTuple):
    """Log-likelihoods of whole responses, log pi(y|x), one of each per tuple; every field has the shape [batch].

    Attributes:
        en_en: of the English response to the English prompt.
        xx_en: of the other language's response to the English prompt.
        xx_xx: of the other language's response to the prompt in that language.
        en_xx: of the English response to the prompt in the other language.
    """

    en_en: Tensor
    xx_en: Tensor
    xx_xx: Tensor
    en_xx: Tensor


class Margins(NamedTuple):
    """The two preference margins of CLO, z_en and z_xx, each [batch]."""

    en: Tensor
    xx: Tensor


def response_loss(log_probs: Tensor, count: Tensor | int | None = None) -> Tensor:
    """Instruction tuning on responses only: L = -(1/N) sum_t log p(y_t | x, y_<t), prompt tokens having no loss.

    The usual loss of supervised fine-tuning; that the prompt has none is the paper's term "response-only" (MIST).

    Args:
        log_probs: [tokens] log-probabilities of the response tokens of a batch, end-of-sequence included.
        count: N. Of this batch where not given; of all processes and accumulated batches, where they share one step, so
            that a token weighs the same however rows are split into batches (our default).

    Returns:
        A scalar, in nats per token.
    """
    number = torch.as_tensor(log_probs.numel() if count is None else count, device=log_probs.device)
    return -log_probs.sum() / number.clamp(min=1)


def contrastive_loss(source: Tensor, target: Tensor, temperature: float, direction: Direction) -> Tensor:
    """MIDALIGN's loss: translations are each other's nearest among all of the batch.

    L = -(1/B) sum_i log( exp(cos(s_i, t_i) / tau) / sum_b exp(cos(s_i, t_b) / tau) ), the InfoNCE loss of van den Oord et
    al. 2018. The paper's slide has no temperature (tau = 1); mid-align's code has tau = 0.1, which is our default. `forward`
    is the slide's direction, source to target; `both` averages it with the other one (our default).

    Args:
        source: [batch, hidden] pooled hidden states of the English sentences.
        target: [batch, hidden] those of their translations, in the same order.
        temperature: tau, greater than 0.
        direction: which side asks.

    Returns:
        A scalar; gradients reach both sides.

    Raises:
        ValueError: fewer than two pairs (there is nothing to contrast with), shapes that differ, or tau not above 0.
    """
    if source.shape != target.shape or source.dim() != 2:
        raise ValueError(
            f"both sides must have the same shape [batch, hidden], got {[*source.shape]} and {[*target.shape]}"
        )
    if len(source) < 2:
        raise ValueError(f"the contrastive loss needs at least two pairs in a batch, got {len(source)}")
    if not temperature > 0:
        raise ValueError(f"the temperature must be above 0, got {temperature}")
    similar = F.normalize(source, dim=-1) @ F.normalize(target, dim=-1).T / temperature
    translations = torch.arange(len(source), device=source.device)
    if direction == "forward":
        return F.cross_entropy(similar, translations)
    if direction == "backward":
        return F.cross_entropy(similar.T, translations)
    return (F.cross_entropy(similar, translations) + F.cross_entropy(similar.T, translations)) / 2


def preference_margins(policy: Likelihoods, reference: Likelihoods, beta: float) -> Margins:
    """CLO's margins: how much more than the reference the policy prefers to answer in the language of the prompt.

    z_xx = beta ( log pi(y_xx|x_xx)/ref(y_xx|x_xx) - log pi(y_en|x_xx)/ref(y_en|x_xx) )
    z_en = beta ( log pi(y_en|x_en)/ref(y_en|x_en) - log pi(y_xx|x_en)/ref(y_xx|x_en) )      (the paper, L_CL)

    Args:
        policy: of the model being trained, each [batch].
        reference: of the model before (here: with its adapter disabled), each [batch].
        beta: the strength of the preference; 0.1 is our default, the paper's is not known.
    """
    ratio = Likelihoods(*(new - old for new, old in zip(policy, reference, strict=True)))
    return Margins(en=beta * (ratio.en_en - ratio.xx_en), xx=beta * (ratio.xx_xx - ratio.en_xx))


def preference_loss(margins: Margins) -> Tensor:
    """CLO's two-way preference loss: L_CL = -E[log sigma(z_en)] - E[log sigma(z_xx)] (the paper). A scalar."""
    return -F.logsigmoid(margins.en).mean() - F.logsigmoid(margins.xx).mean()


def clo_loss(response: Tensor, preference: Tensor, weight: float) -> Tensor:
    """CLO's objective: lambda SFT + (1 - lambda) L_CL.

    As in the ancestor (Lee 2025), the SFT term is of target-language responses to target-language prompts only.

    Args:
        response: scalar `response_loss` of y_xx given x_xx.
        preference: scalar `preference_loss`.
        weight: lambda, from 0 to 1; 0.5 is our default, the paper's is not known.
    """
    return weight * response + (1 - weight) * preference
