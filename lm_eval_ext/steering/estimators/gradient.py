"""Artifacts trained by gradient through the frozen model, steered as a plan would steer it.

What is minimised, on average over pairs, is one of

- `answer`: -log p(answer | negative text, steered), for pairs that have an answer;
- `positive`: KL(p(next token | positive text) || p(next token | negative text, steered)), for pairs without: the steered
  model answers as it does where the contrast is spelled out.

A share of the pairs is held out: training ends when their loss has not fallen for some epochs, and the best epoch is kept,
which may be the start (no change). Every trained tensor has a norm budget, held by projection after every step. Cost: a
forward and a backward per batch, epoch and layer; with `together` all layers are trained at once, for plans over that very
range of layers (`loc@10-14:1`).
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import kl_div

from lm_eval_ext.console import Progress
from lm_eval_ext.errors import EstimatorError, PlanError
from lm_eval_ext.steering.estimators.base import Estimator, Fitted, Origin, PairStates
from lm_eval_ext.steering.injection import Injector
from lm_eval_ext.steering.plan import DEFAULT_POSITION, VALID_POSITIONS, Position, parse_position
from lm_eval_ext.steering.pooling import encode
from lm_eval_ext.steering.table import Change, SteeringTable
from lm_eval_ext.steering.tokens import ScoredTokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from lm_eval_ext.steering.transforms.base import Artifact


@dataclass(frozen=True)
class Trained(Estimator):
    """An estimator that is trained by gradient. All numbers are our defaults.

    Attributes:
        target: `answer` or `positive` (see the module); `answer` where left out and every pair has one.
        position: the tokens that are steered in training, as in plans: `prompt`, `last`, `last3`, ...
        budget: most norm of a trained tensor, as a share of the layer's mean residual norm.
        held_out: share of the pairs that training is stopped by.
        rate: step size of Adam, as a share of the budget.
        epochs: most passes over the pairs.
        patience: epochs without a lower held-out loss after which training ends.
        batch_size: pairs per step.
        together: train all layers at once.
        seed: of the split and of the order.
    """

    target: str = ""
    position: Position = DEFAULT_POSITION
    budget: float = 0.2
    held_out: float = 0.25
    rate: float = 0.1
    epochs: int = 30
    patience: int = 3
    batch_size: int = 8
    together: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse parameters out of range."""
        if self.target not in ("", "answer", "positive"):
            raise ValueError(f"target {self.target!r} must be answer or positive")
        try:
            parse_position(self.position)
        except PlanError:
            raise ValueError(f"position {self.position!r} must be one of {VALID_POSITIONS}") from None
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out {self.held_out} must be between 0 and 1")
        if min(self.budget, self.rate, self.epochs, self.patience, self.batch_size) <= 0:
            raise ValueError("budget, rate, epochs, patience and batch_size must be above 0")

    @abstractmethod
    def start(self, width: int) -> dict[str, Tensor]:
        """The trained tensors of a layer at the start, where they change nothing; `width` is that of the residual stream."""

    @abstractmethod
    def artifact(self, tensors: dict[str, Tensor], norm: float) -> dict[str, Tensor]:
        """The artifact of a layer from the trained tensors and the layer's mean residual norm, differentiably."""

    def fit(self, states: PairStates) -> Fitted:
        """The tensors of the transform, for each layer. See `Estimator.fit`.

        Raises:
            EstimatorError: states without a model, fewer than two pairs, or pairs without answers where they are asked for.
        """
        norms = torch.zeros(states.n_layers)
        for batch in states:
            norms += batch.states.norm(dim=-1).sum(1)
        norms /= 2 * states.n_pairs
        if states.origin is None:
            raise EstimatorError(f"the estimator {self.name!r} trains through the model: use it with `extract`")
        if states.n_pairs < 2:
            raise EstimatorError(f"the estimator {self.name!r} holds pairs out: give two or more, got {states.n_pairs}")
        layers = states.origin.layers
        groups = [list(range(len(layers)))] if self.together else [[row] for row in range(len(layers))]
        fitted: dict[int, dict[str, Tensor]] = {}
        losses: list[tuple[float, float, int]] = []
        with (
            _Objective(states.origin, self._target(states.origin)) as objective,
            Progress(self.epochs * len(groups), f"Training ({self.name})", "epoch") as bar,
        ):
            for rows in groups:
                tensors, *of_group = self._train(
                    objective, [layers[row] for row in rows], norms[rows], states.hidden_size, bar.update
                )
                fitted |= dict(zip(rows, tensors, strict=True))
                losses += [tuple(of_group)] * len(rows)  # type: ignore[list-item]
        before, after, epoch = zip(*losses, strict=True)
        chosen = {"target": objective.target, "loss_before": before, "loss_after": after, "epoch": epoch}
        return Fitted(
            {name: torch.stack([fitted[row][name] for row in range(len(layers))]) for name in fitted[0]},
            {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()},
        )

    def _target(self, origin: Origin) -> str:
        lacking = sum(not pair.answer for pair in origin.pairs)
        if self.target == "answer" and lacking:
            raise EstimatorError(
                f"the estimator {self.name!r} with target=answer: {lacking} of {len(origin.pairs)} pairs have no answer. "
                "Give one to each (the column `answer` of a TSV file, lm_eval_ext.Pair(answer=...)), or use target=positive"
            )
        return self.target or ("positive" if lacking else "answer")

    def _train(
        self,
        objective: _Objective,
        layers: Sequence[int],
        norms: Tensor,
        width: int,
        progress: Callable[[int], object],
    ) -> tuple[list[dict[str, Tensor]], float, float, int]:
        """The artifact of each layer, the held-out loss before and after, and the epoch that is kept."""
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(objective.pairs), generator=generator)
        n_held_out = min(max(1, round(self.held_out * len(order))), len(order) - 1)
        held_out, training = order[:n_held_out].tolist(), order[n_held_out:]
        leaves = [{name: t.requires_grad_() for name, t in self.start(width).items()} for _ in layers]
        every = [leaf for of_layer in leaves for leaf in of_layer.values()]
        # Adam moves every entry by about its rate: this makes the norm of a step the rate's share of the budget.
        optimiser = torch.optim.Adam(
            [{"params": [leaf], "lr": self.rate * self.budget / leaf.numel() ** 0.5} for leaf in every]
        )

        def artifacts() -> dict[int, Artifact]:
            return {
                layer: self.artifact(of_layer, float(norm))
                for layer, of_layer, norm in zip(layers, leaves, norms, strict=True)
            }

        def evaluate() -> float:
            with torch.no_grad():
                batches = [held_out[k : k + self.batch_size] for k in range(0, n_held_out, self.batch_size)]
                return sum(float(objective.loss(b, self._steps(artifacts()))) * len(b) for b in batches) / n_held_out

        def copies() -> list[dict[str, Tensor]]:
            return [{name: tensor.detach().clone() for name, tensor in of.items()} for of in artifacts().values()]

        before = evaluate()
        best, best_epoch, kept = before, 0, copies()
        for epoch in range(1, self.epochs + 1):
            shuffled = training[torch.randperm(len(training), generator=generator)]
            for start in range(0, len(shuffled), self.batch_size):
                optimiser.zero_grad()
                batch = shuffled[start : start + self.batch_size].tolist()
                torch.autograd.backward(objective.loss(batch, self._steps(artifacts())))
                optimiser.step()
                self._project(every)
            loss = evaluate()
            progress(1)
            if loss < best:
                best, best_epoch, kept = loss, epoch, copies()
            elif epoch - best_epoch >= self.patience:
                progress(self.epochs - epoch)
                break
        return kept, before, best, best_epoch

    def _steps(self, artifacts: dict[int, Artifact]) -> SteeringTable:
        transform = self.transform()
        return SteeringTable(
            steps={
                layer: (Change(self.position, transform, {1: (artifact, 1.0)}),)
                for layer, artifact in artifacts.items()
            },
            height=2,
        )

    def _project(self, leaves: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for leaf in leaves:
                leaf.mul_((self.budget / leaf.norm().clamp_min(1e-12)).clamp_max(1.0))


class _Objective:
    """The loss of some pairs under steering; the model's parameters are frozen while it is open."""

    def __init__(self, origin: Origin, target: str) -> None:
        self.pairs = origin.pairs
        self.target = target
        self._model = origin.model
        tokenizer = origin.tokenizer
        self._prompts = [ids for ids, _ in encode(tokenizer, [pair.negative for pair in self.pairs])]
        self._device = self._model.get_input_embeddings().weight.device
        takes = inspect.signature(self._model.forward).parameters
        self._can_select = "logits_to_keep" in takes
        self._frozen: list[Any] = []
        if target == "answer":
            answers = tokenizer([pair.answer for pair in self.pairs], add_special_tokens=False)["input_ids"]
            self._answers: list[list[int]] = answers
        else:
            self._answers = [[] for _ in self.pairs]
            self._positive = [ids for ids, _ in encode(tokenizer, [pair.positive for pair in self.pairs])]
            self._wanted: dict[int, Tensor] = {}

    def __enter__(self) -> _Objective:
        self._frozen = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        return self

    def __exit__(self, *_: object) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(True)

    def loss(self, pairs: Sequence[int], table: SteeringTable) -> Tensor:
        """The mean loss of some pairs, in nats."""
        prompts = [self._prompts[pair] for pair in pairs]
        answers = [self._answers[pair] for pair in pairs]
        ends = torch.tensor([len(prompt) for prompt in prompts])
        injector = Injector(self._model, table)  # a new one each time: it keeps what it moved to the device
        try:
            with injector.batch([1] * len(pairs), ScoredTokens(torch.zeros_like(ends), ends)):
                rows = list(self._predictions([p + a for p, a in zip(prompts, answers, strict=True)], ends))
        finally:
            injector.remove()
        if self.target == "answer":
            losses = [
                -row[: len(answer)].gather(1, torch.tensor(answer, device=row.device)[:, None]).sum()
                for row, answer in zip(rows, answers, strict=True)
            ]
        else:
            losses = [
                kl_div(row[0], self._after_positive(pair).to(row.device), reduction="sum", log_target=True)
                for row, pair in zip(rows, pairs, strict=True)
            ]
        return torch.stack(losses).mean()

    def _after_positive(self, pair: int) -> Tensor:
        """Log-probabilities [vocabulary] of the token after the positive text; computed once."""
        if pair not in self._wanted:
            ids = self._positive[pair]
            with torch.no_grad():
                (row,) = self._predictions([ids], torch.tensor([len(ids)]))
            self._wanted[pair] = row[0].cpu()
        return self._wanted[pair]

    def _predictions(self, ids: list[list[int]], ends: Tensor) -> Iterator[Tensor]:
        """For each text the log-probabilities [tokens, vocabulary] after its prompt and after each later token."""
        width = max(map(len, ids))
        padded = torch.tensor([row + [0] * (width - len(row)) for row in ids], device=self._device)
        needed = sorted(
            {place for row, end in zip(ids, ends.tolist(), strict=True) for place in range(end - 1, len(row))}
        )
        options = {"logits_to_keep": torch.tensor(needed, device=self._device)} if self._can_select else {}
        logits = self._model(input_ids=padded, use_cache=False, **options).logits
        index = (
            {place: number for number, place in enumerate(needed)} if options else {place: place for place in needed}
        )
        for row, (of_text, end) in enumerate(zip(ids, ends.tolist(), strict=True)):
            places = [index[place] for place in range(end - 1, len(of_text))]
            yield logits[row, places].float().log_softmax(-1)
