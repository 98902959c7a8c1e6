"""Log-likelihoods of continuations at the least cost: what a harness model is asked for in multiple choice.

Continuations of one prompt share its forward pass; the output head is computed only at positions that score a token; no
log-softmax of the vocabulary is ever stored. A prompt with one continuation is one forward; a prompt with several has its
keys and values computed once and reused by each.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from transformers import DynamicCache

from lm_eval_ext.errors import ModelError
from lm_eval_ext.steering.injection import Injector, OptionTokens, ScoredTokens, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedModel

PaddingSide = Literal["left", "right"]

#: Most log-probabilities held at a time: 16 MiB in float32, which stays in a processor's cache.
MAX_LOG_PROBABILITIES = 4 * 1024 * 1024

#: Option rows per forward for each prompt of the batch size: options are short, their prompts' keys and values are not.
OPTIONS_PER_PROMPT = 4


class Score(NamedTuple):
    """Of one continuation: the sum of its tokens' log-probabilities (natural logarithm), and whether each was the best."""

    log_likelihood: float
    is_greedy: bool

    @classmethod
    def of(cls, tokens: list[tuple[float, bool]]) -> Score:
        """The score of a continuation from its tokens' (log-probability, is the best)."""
        return cls(sum(log_probability for log_probability, _ in tokens), all(best for _, best in tokens))


class Request(NamedTuple):
    """Tokens of a prompt and of a continuation (both not empty), and the row of the steering table."""

    prompt: tuple[int, ...]
    continuation: tuple[int, ...]
    row: int


@dataclass
class _Forward:
    """One row of a forward: its tokens, how many of them are the prompt, and the next tokens to score at its end."""

    request: Request
    tokens: tuple[int, ...]
    prompt_length: int
    targets: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def scored(self) -> int:
        """Positions at the end of the row whose logits are needed."""
        return max(map(len, self.targets))


class Scorer:
    """Scores requests with one model.

    Args:
        model: a causal language model of transformers, possibly wrapped by PEFT.
        injector: the model's steering hooks.
        max_length: most tokens of a forward; longer prompts lose their beginning, as in the harness.
        padding_side: of rows that are complete in one forward; `right` needs no mask. Prompts whose keys and values are
            shared are padded on the left whatever this says: padding after them would lie inside a sliding window.
        softmax_dtype: dtype of the log-softmax; float32 unless the user asks for another.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        injector: Injector,
        *,
        max_length: int,
        padding_side: PaddingSide = "right",
        softmax_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model = model
        self.injector = injector
        self.max_length = max_length
        self.padding_side = padding_side
        self.softmax_dtype = softmax_dtype
        self._head = _ScoredPositions(model)

    def score(
        self,
        requests: Sequence[Request],
        batch_size: int,
        progress: Callable[[dict[Request, Score]], object] = lambda done: None,
    ) -> list[Score]:
        """The score of every request, in order. Equal requests are computed once.

        Args:
            requests: what to score.
            batch_size: prompts per forward.
            progress: called with the scores of the distinct requests just finished.

        Raises:
            ModelError: a continuation longer than the model's context.
        """
        scores: dict[Request, Score] = {}
        singles, shared = self._split(dict.fromkeys(requests))
        with torch.inference_mode():
            for batch in _batches(singles, batch_size):
                done = self._score_rows(batch)
                scores.update(done)
                progress(done)
            for group in _batches(shared, batch_size):
                done = self._score_shared(group, batch_size)
                scores.update(done)
                progress(done)
        return [scores[request] for request in requests]

    def _split(self, requests: dict[Request, None]) -> tuple[list[_Forward], list[_Forward]]:
        """Rows that are complete in one forward, and prompts whose keys and values several continuations share."""
        by_prompt: dict[tuple[tuple[int, ...], int], list[Request]] = defaultdict(list)
        for request in requests:
            by_prompt[request.prompt, request.row].append(request)
        singles: list[_Forward] = []
        shared: list[_Forward] = []
        for (prompt, _), group in by_prompt.items():
            longest = max(len(request.continuation) for request in group)
            fits = len(prompt) + longest - 1 <= self.max_length
            several = len({request.continuation[:-1] for request in group}) > 1
            if several and fits and self._shares_prompts:
                shared.append(_Forward(group[0], prompt, len(prompt), [r.continuation for r in group]))
            else:
                singles.extend(self._rows(group))
        return singles, shared

    @cached_property
    def _shares_prompts(self) -> bool:
        """Whether the keys and values of one prompt can be handed to several rows: a recurrent layer's state cannot."""
        token = torch.zeros(1, 1, dtype=torch.long, device=self._device)
        with torch.inference_mode():
            cache = getattr(self.model(input_ids=token, use_cache=True), "past_key_values", None)
        return type(cache) is DynamicCache and all(
            hasattr(layer, "batch_select_indices") for layer in getattr(cache, "layers", [])
        )

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.model.get_input_embeddings().weight.device
        return torch.device("cpu") if device.type == "meta" else device  # offloaded: accelerate moves the input

    def _rows(self, group: list[Request]) -> list[_Forward]:
        """A row for each distinct prompt plus continuation but its last token; too long, it loses its beginning."""
        rows: dict[tuple[int, ...], _Forward] = {}
        for request in group:
            begun = request.continuation[:-1]
            if len(begun) >= self.max_length:
                raise ModelError(
                    f"a continuation of {len(request.continuation)} tokens does not fit the model's {self.max_length}; "
                    "raise max_length= or drop the document"
                )
            if begun not in rows:
                tokens = (request.prompt + begun)[-self.max_length :]
                rows[begun] = _Forward(request, tokens, len(tokens) - len(begun))
            rows[begun].targets.append(request.continuation)
        return list(rows.values())

    def _score_rows(self, rows: list[_Forward]) -> dict[Request, Score]:
        # Padding before the prompt would get into a recurrent state.
        side: PaddingSide = "left" if self.padding_side == "left" and self._shares_prompts else "right"
        found, _ = self._run_prompts(rows, side)
        return {
            row.request._replace(continuation=target): Score.of(tokens)
            for row, targets in zip(rows, found, strict=True)
            for target, tokens in zip(row.targets, targets, strict=True)
        }

    def _score_shared(self, group: list[_Forward], batch_size: int) -> dict[Request, Score]:
        """First tokens from the prompts' forward, the others from short forwards over the prompts' keys and values."""
        first = [_Forward(f.request, f.tokens, f.prompt_length, [(target[0],) for target in f.targets]) for f in group]
        found, cache = self._run_prompts(first, "left", use_cache=True)
        scores: dict[Request, Score] = {}
        begun: dict[tuple[int, tuple[int, ...]], list[Request]] = defaultdict(list)
        for prompt, (row, targets) in enumerate(zip(group, found, strict=True)):
            for target, tokens in zip(row.targets, targets, strict=True):
                request = row.request._replace(continuation=target)
                scores[request] = Score.of(tokens)
                if len(target) > 1:
                    begun[prompt, target[:-1]].append(request)
        pending = sorted(begun.items(), key=lambda item: len(item[0][1]))
        limit = batch_size * OPTIONS_PER_PROMPT
        for at in range(0, len(pending), limit):
            chunk = pending[at : at + limit]
            is_last = at + limit >= len(pending)
            rows = [
                _Forward(requests[0], tokens, 0, [request.continuation[1:] for request in requests])
                for (_, tokens), requests in chunk
            ]
            prompts = [prompt for (prompt, _), _ in chunk]
            continued = self._run_options(rows, cache.take(prompts, is_last))
            for (_, requests), targets in zip(chunk, continued, strict=True):
                for request, tokens in zip(requests, targets, strict=True):
                    rest = Score.of(tokens)
                    first_token = scores[request]
                    scores[request] = Score(
                        first_token.log_likelihood + rest.log_likelihood, first_token.is_greedy and rest.is_greedy
                    )
        return scores

    def _run_prompts(
        self, rows: list[_Forward], padding_side: PaddingSide, *, use_cache: bool = False
    ) -> tuple[list[_Targets], _PromptCache]:
        lengths = torch.tensor([len(row.tokens) for row in rows])
        width = int(lengths.max())
        left = padding_side == "left"
        start = width - lengths if left else torch.zeros_like(lengths)
        ids = self._pad([row.tokens for row in rows], width, left=left)
        ends = start + torch.tensor([row.prompt_length for row in rows])
        inputs: dict[str, Tensor] = {}
        if left and int(start.max()) > 0:
            mask = torch.arange(width)[None, :] >= start[:, None]
            inputs = {"attention_mask": mask.long(), "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}
        tokens = ScoredTokens(start, ends)
        positions = [(i, int(start[i] + lengths[i]), row.scored) for i, row in enumerate(rows)]
        found, cache = self._forward(rows, ids, positions, tokens, inputs, use_cache=use_cache)
        return found, _PromptCache(cache, start, width)

    def _run_options(self, rows: list[_Forward], cache: _Taken) -> list[_Targets]:
        width = max(len(row.tokens) for row in rows)
        ids = self._pad([row.tokens for row in rows], width, left=False)
        lengths = torch.tensor([len(row.tokens) for row in rows])
        steps = torch.arange(width)[None, :]
        past = torch.arange(cache.width)[None, :] >= cache.start[:, None]
        inputs = {
            "attention_mask": torch.cat([past, steps < lengths[:, None]], dim=1).long(),
            "position_ids": (cache.width - cache.start)[:, None] + steps,
        }
        positions = [(i, len(row.tokens), row.scored) for i, row in enumerate(rows)]
        found, _ = self._forward(rows, ids, positions, OptionTokens(), inputs, past=cache.cache)
        return found

    def _forward(
        self,
        rows: list[_Forward],
        ids: Tensor,
        positions: list[tuple[int, int, int]],
        tokens: Tokens,
        inputs: dict[str, Tensor],
        *,
        use_cache: bool = False,
        past: Any = None,
    ) -> tuple[list[_Targets], Any]:
        """One forward of the model and the log-probabilities of the rows' targets."""
        arguments = {name: value.to(self._device) for name, value in inputs.items()}
        if past is not None:
            arguments["past_key_values"] = past
        steering = self.injector.batch([row.request.row for row in rows], tokens)
        with steering, self._head.at(positions, ids.shape[1]):
            output = self.model(input_ids=ids.to(self._device), use_cache=use_cache or past is not None, **arguments)
            logits = self._head.scored(output.logits)
        return self._log_probabilities(logits, rows), getattr(output, "past_key_values", None)

    def _log_probabilities(self, logits: Tensor, rows: list[_Forward]) -> list[_Targets]:
        """Log-probabilities of the rows' targets from the logits of their scored positions, [positions, vocabulary].

        The same log-softmax as the harness, so that float32 values agree, over slices, so that its result is never held
        for all positions. A token is the best if the harness's argmax would choose it: the first of equals, which takes a
        search only where the token has the highest logit.
        """
        at_position: list[int] = []
        token: list[int] = []
        base = 0
        for row in rows:
            for target in row.targets:
                at_position.extend(range(base + row.scored - len(target), base + row.scored))
                token.extend(target)
            base += row.scored
        position = torch.tensor(at_position, device=logits.device)
        wanted = torch.tensor(token, device=logits.device)
        values = torch.empty(len(token), dtype=self.softmax_dtype, device=logits.device)
        step = max(1, MAX_LOG_PROBABILITIES // logits.shape[1])
        for at in range(0, logits.shape[0], step):
            log_probabilities = logits[at : at + step].log_softmax(-1, dtype=self.softmax_dtype)
            inside = [k for k, p in enumerate(at_position) if at <= p < at + step]
            values[inside] = log_probabilities[position[inside] - at, wanted[inside]]
        highest = logits[position, wanted] == logits.amax(-1)[position]
        table = torch.stack([values.float(), highest.float()]).tolist()
        if candidates := [k for k, is_highest in enumerate(table[1]) if is_highest]:
            first = logits[position[candidates]].argmax(-1) == wanted[candidates]
            for k, is_first in zip(candidates, first.tolist(), strict=True):
                table[1][k] = is_first
        pairs = iter(zip(table[0], map(bool, table[1]), strict=True))
        return [[list(islice(pairs, len(target))) for target in row.targets] for row in rows]

    def _pad(self, tokens: list[tuple[int, ...]], width: int, *, left: bool) -> Tensor:
        # Token 0, as in the harness: a tokenizer's padding token may lie outside the model's vocabulary.
        ids = torch.zeros(len(tokens), width, dtype=torch.long)
        for row, sequence in enumerate(tokens):
            columns = slice(width - len(sequence), width) if left else slice(0, len(sequence))
            ids[row, columns] = torch.tensor(sequence)
        return ids


#: For each target of a row: (log-probability, is the best) of each of its tokens.
_Targets = list[list[tuple[float, bool]]]


@dataclass
class _Taken:
    cache: Any
    start: Tensor
    width: int


@dataclass
class _PromptCache:
    """Keys and values of a batch of left-padded prompts; `start` is where each prompt begins."""

    cache: Any
    start: Tensor
    width: int

    def take(self, rows: list[int], is_last: bool) -> _Taken:
        """The keys and values of these rows (repeats allowed), copied unless this is the last use."""
        cache = self.cache if is_last else copy.deepcopy(self.cache)
        cache.batch_select_indices(torch.tensor(rows))
        return _Taken(cache, self.start[rows], self.width)


class _ScoredPositions:
    """Lets the output head see only the positions that score a token.

    A pre-hook on the head gathers them from [batch, length, hidden] into [1, positions, hidden], so that whatever the
    model does to its logits afterwards (soft-capping, scaling) still happens. Where the head is no module, or is not
    called, all logits are computed and the same positions gathered afterwards.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._index: Tensor | None = None
        if (head := model.get_output_embeddings()) is not None:
            head.register_forward_pre_hook(self._gather)

    @contextmanager
    def at(self, positions: list[tuple[int, int, int]], width: int) -> Iterator[None]:
        """Inside, the head computes the last `n` positions before `end` of row `i`, for each (i, end, n)."""
        self._index = torch.tensor([i * width + end - n + k for i, end, n in positions for k in range(n)])
        try:
            yield
        finally:
            self._index = None

    def _gather(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._index is None:
            return None
        return (self._take(inputs[0])[None], *inputs[1:])

    def scored(self, logits: Tensor) -> Tensor:
        """The logits [positions, vocabulary] of a forward that ran inside `at`; to be called there."""
        return logits[0] if self._index is None else self._take(logits)

    def _take(self, states: Tensor) -> Tensor:
        index, self._index = self._index, None
        assert index is not None
        return states.flatten(0, 1)[index.to(states.device)]


def _batches(rows: list[_Forward], size: int) -> Iterator[list[_Forward]]:
    """Rows of similar length together, the longest first: what runs out of memory does so at once."""
    ordered = sorted(rows, key=lambda row: (-len(row.tokens), row.tokens))
    for at in range(0, len(ordered), size):
        yield ordered[at : at + size]
