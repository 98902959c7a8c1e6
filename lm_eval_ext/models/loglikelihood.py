"""Log-likelihoods of continuations at the least cost: what a harness model is asked for in multiple choice.

What several requests have in common is computed once: the beginning that prompts share (few-shot examples, a template), a
prompt for all its continuations, a request that is asked again. The output head is computed only at positions that score
a token, and no log-softmax of the vocabulary is ever stored.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from transformers import DynamicCache

from lm_eval_ext.errors import ModelError
from lm_eval_ext.models.budget import Budget, RowCost, out_of_memory
from lm_eval_ext.models.head import ScoredPositions, Token, log_probabilities
from lm_eval_ext.models.keys_values import KeysValues, Span, can_be_shared
from lm_eval_ext.models.prefixes import shared_prefixes
from lm_eval_ext.models.products import fast_products
from lm_eval_ext.models.tree_model import SteeredTokens, TreeModel
from lm_eval_ext.models.trees import Packed, Tree, parts
from lm_eval_ext.steering.injection import Injector, OptionTokens, ScoredTokens, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

PaddingSide = Literal["left", "right"]

#: Option rows per forward for each prompt of a given batch size: options are short, their prompts' keys and values are not.
OPTIONS_PER_PROMPT = 4

#: Longest prompt that is run in one row with its options: masks grow with the square of a row (our default).
MAX_TREE_PROMPT = 512

log = logging.getLogger(__name__)


class Score(NamedTuple):
    """Of one continuation: the sum of its tokens' log-probabilities (natural logarithm), and whether each was the best."""

    log_likelihood: float
    is_greedy: bool

    @classmethod
    def of(cls, tokens: list[Token]) -> Score:
        """The score of a continuation from its tokens."""
        return cls(sum(log_probability for log_probability, _ in tokens), all(best for _, best in tokens))


class Request(NamedTuple):
    """Tokens of a prompt and of a continuation (both not empty), and the row of the steering table."""

    prompt: tuple[int, ...]
    continuation: tuple[int, ...]
    row: int


#: Tokens found so far of each request.
_Found = dict[Request, list[Token]]


@dataclass
class _Row:
    """One row of a forward.

    Attributes:
        row: of the steering table.
        tokens: all of them, those of a past included.
        prompt_length: how many of the tokens are the prompt.
        targets: the next tokens to score at the row's end, and for whom.
        past: how many of the tokens were run before.
        parent: in which row of the forward before.
        branches: what goes on from this row: tokens, and the requests whose remaining tokens they lead to.
    """

    row: int
    tokens: tuple[int, ...]
    prompt_length: int
    targets: list[tuple[Request, tuple[int, ...]]] = field(default_factory=list)
    past: int = 0
    parent: int = 0
    branches: dict[tuple[int, ...], list[Request]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens to run."""
        return len(self.tokens) - self.past

    @property
    def scored(self) -> int:
        """Positions at the end of the row whose logits are needed."""
        return max((len(target) for _, target in self.targets), default=0)

    def trees(self) -> Iterator[tuple[list[Request], Tree]]:
        """The prompt with its branches, as trees."""
        by_continuation = {request.continuation: request for request, _ in self.targets}
        for part in parts(self.tokens, list(by_continuation)):
            yield [by_continuation[continuation] for continuation in part], Tree.grow(self.tokens, part)


class Scorer:
    """Scores requests with one model.

    Args:
        model: a causal language model of transformers, possibly wrapped by PEFT.
        injector: the model's steering hooks.
        max_length: most tokens of a forward; longer prompts lose their beginning, as in the harness.
        padding_side: of rows that go on from nothing; `right` needs no mask.
        softmax_dtype: dtype of the log-softmax; float32 unless the user asks for another.
        max_rows: most prompts per forward where the batch size is automatic; None for as many as fit.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        injector: Injector,
        *,
        max_length: int,
        padding_side: PaddingSide = "right",
        softmax_dtype: torch.dtype = torch.float32,
        max_rows: int | None = None,
    ) -> None:
        self.model = model
        self.injector = injector
        self.max_length = max_length
        self.padding_side = padding_side
        self.softmax_dtype = softmax_dtype
        self._max_rows = max_rows
        self._budget = Budget()
        self._head = ScoredPositions(model)
        self._asked_for_trees = False
        self._trees: TreeModel | None = None

    def score(
        self,
        requests: Sequence[Request],
        batch_size: int | None = None,
        progress: Callable[[dict[Request, Score]], object] = lambda done: None,
    ) -> list[Score]:
        """The score of every request, in order. Equal requests are computed once.

        Args:
            requests: what to score.
            batch_size: prompts per forward; None for what the free memory allows. Either is halved when memory runs out.
            progress: called with the scores of the distinct requests just finished.

        Raises:
            ModelError: a continuation longer than the model's context; not memory enough for one prompt alone.
        """
        scores: dict[Request, Score] = {}
        cost = self._cost_from_memory if batch_size is None else RowCost(batch_size)
        prompts = self._prompts(dict.fromkeys(requests))
        try:
            with torch.inference_mode(), fast_products(self.model.get_input_embeddings().weight):
                for found in self._run(prompts, cost):
                    done = {request: Score.of(tokens) for request, tokens in found.items()}
                    scores.update(done)
                    progress(done)
        except Exception as error:
            if not out_of_memory(error):
                raise
            longest = max(len(prompt.tokens) for prompt in prompts)
            raise ModelError(
                f"there is not memory enough for one prompt alone (the longest has {longest} tokens): set max_length=, a "
                "smaller dtype= or another device="
            ) from error
        return [scores[request] for request in requests]

    @cached_property
    def _cost_from_memory(self) -> RowCost:
        return RowCost.from_memory(self.model, self._max_rows)

    @cached_property
    def _shares(self) -> bool:
        return can_be_shared(self.model)

    def _tree_model(self, prompts: list[_Row]) -> TreeModel | None:
        """For prompts with all their options in one row; None if the model cannot, asked once with one of `prompts`."""
        if not self._asked_for_trees:
            model = TreeModel(self.model, self.softmax_dtype)
            reason = model.check(min((tree for row in prompts for _, tree in row.trees()), key=len))
            if reason is None:
                self._trees = model
            else:
                log.info("Options are scored after their prompts, not together with them: %s", reason)
            self._asked_for_trees = True
        return self._trees

    # What to run ------------------------------------------------------------------------------------------------------

    def _prompts(self, requests: dict[Request, None]) -> list[_Row]:
        """A row for each distinct prompt and what its continuations begin with, or for the prompt if they differ there."""
        by_prompt: dict[tuple[tuple[int, ...], int], list[Request]] = defaultdict(list)
        for request in requests:
            by_prompt[request.prompt, request.row].append(request)
        rows: list[_Row] = []
        for (prompt, row), group in by_prompt.items():
            fits = len(prompt) + max(len(request.continuation) for request in group) - 1 <= self.max_length
            if len({request.continuation[:-1] for request in group}) > 1 and fits and self._shares:
                branches: dict[tuple[int, ...], list[Request]] = defaultdict(list)
                for request in group:
                    if len(request.continuation) > 1:
                        branches[request.continuation[:-1]].append(request)
                first = [(request, request.continuation[:1]) for request in group]
                rows.append(_Row(row, prompt, len(prompt), first, branches=branches))
            else:
                rows.extend(self._whole(group))
        if cut := sum(len(row.tokens) < len(r.prompt) + len(c) - 1 for row in rows for r, c in row.targets):
            log.warning(
                "%d of %d requests are longer than the model's %d tokens: their prompts lose their beginning",
                *(cut, len(requests), self.max_length),
            )
        return rows

    def _whole(self, group: list[Request]) -> list[_Row]:
        """A row for each distinct prompt plus continuation but its last token; too long, it loses its beginning."""
        rows: dict[tuple[int, ...], _Row] = {}
        for request in group:
            begun = request.continuation[:-1]
            if len(begun) >= self.max_length:
                raise ModelError(
                    f"a continuation of {len(request.continuation)} tokens does not fit the model's {self.max_length}; "
                    "raise max_length= or drop the document"
                )
            if begun not in rows:
                tokens = (request.prompt + begun)[-self.max_length :]
                rows[begun] = _Row(request.row, tokens, len(tokens) - len(begun))
            rows[begun].targets.append((request, request.continuation))
        return list(rows.values())

    def _prefixes(self, prompts: list[_Row]) -> tuple[list[_Row], list[tuple[_Row, list[_Row]]]]:
        """The prompts that share no beginning worth while, and shared beginnings with their prompts."""
        alone: list[_Row] = []
        shared: list[tuple[_Row, list[_Row]]] = []
        by_row: dict[int, list[_Row]] = defaultdict(list)
        for prompt in prompts:
            by_row[prompt.row].append(prompt)
        for row, group in by_row.items():
            # Never a prompt's last token: it is scored, and steered by `last`.
            for members, length in shared_prefixes([prompt.tokens[: prompt.prompt_length - 1] for prompt in group]):
                found = [group[index] for index in members]
                if length and self._shares:
                    shared.append((_Row(row, found[0].tokens[:length], length + 1), found))
                else:
                    alone.extend(found)
        return alone, shared

    # Forwards ---------------------------------------------------------------------------------------------------------

    def _run(self, prompts: list[_Row], cost: RowCost) -> Iterator[_Found]:
        """Every prompt, batch by batch."""
        alone, shared = self._prefixes(prompts)
        together = [row for row in alone if row.branches and len(row.tokens) <= MAX_TREE_PROMPT]
        if together and (trees := self._tree_model(together)):
            yield from self._run_trees(trees, together, cost)
            alone = [row for row in alone if not row.branches or len(row.tokens) > MAX_TREE_PROMPT]

        def prompt_cost(row: _Row) -> float:
            options = max((len(begun) for begun in row.branches), default=0)
            return cost(row.length + options, row.scored, row.past)

        run = partial(self._run_prompts, before=None, cost=cost)
        for _, found in self._budget.run(alone, prompt_cost, run):
            yield found
        beginnings = self._budget.run(
            shared,
            lambda group: cost(len(group[0].tokens), 0),
            lambda groups: self._forward([row for row, _ in groups], None, keep=True)[1],
        )
        for groups, past in beginnings:
            for parent, (beginning, members) in enumerate(groups):
                for member in members:
                    member.past, member.parent = len(beginning.tokens), parent
            followers = [member for _, members in groups for member in members]
            run = partial(self._run_prompts, before=past, cost=cost)
            for _, found in self._budget.run(followers, prompt_cost, run):
                yield found

    def _run_trees(self, model: TreeModel, prompts: list[_Row], cost: RowCost) -> Iterator[_Found]:
        """Prompts with all their options, several in a row."""

        def run(items: list[tuple[int, list[Request], Tree]]) -> _Found:
            batch = Packed([tree for *_, tree in items])
            rows = torch.tensor([row for row, *_ in items])[batch.owner]
            with self.injector.batch(rows, SteeredTokens(batch.prompt, batch.last)):
                scores = model.score(batch)
            return {
                request: tokens
                for (_, requests, _), by_tree in zip(items, scores, strict=True)
                for request, tokens in zip(requests, by_tree, strict=True)
            }

        items = [(prompt.row, *tree) for prompt in prompts for tree in prompt.trees()]
        for _, found in self._budget.run(items, lambda item: cost(len(item[-1]), 0), run):
            yield found

    def _run_prompts(self, rows: list[_Row], before: KeysValues | None, cost: RowCost) -> _Found:
        """Scores of all requests of some prompts; first tokens from the prompts' forward, the others from short ones."""
        found, kept = self._forward(rows, before, keep=any(row.branches for row in rows))
        options = [
            _Row(row.row, row.tokens + begun, len(row.tokens), [(r, r.continuation[1:]) for r in requests], at, parent)
            for parent, row in enumerate(rows)
            for at in [len(row.tokens)]
            for begun, requests in row.branches.items()
        ]

        def option_cost(row: _Row) -> float:
            return cost(row.length, row.scored, row.past, OPTIONS_PER_PROMPT)

        for _, (rest, _) in self._budget.run(options, option_cost, lambda rows: self._forward(rows, kept)):
            for request, tokens in rest.items():
                found[request] = found[request] + tokens
        return found

    def _forward(
        self, rows: list[_Row], before: KeysValues | None, *, keep: bool = False
    ) -> tuple[_Found, KeysValues | None]:
        """One forward: what it says of the rows' targets, and its keys and values if they are to be kept."""
        past = None if before is None else before.take([row.parent for row in rows])
        lengths = torch.tensor([row.length for row in rows])
        width = int(lengths.max())
        # Padding before the prompt would get into a recurrent state, and lie between a past and its continuation.
        left = self.padding_side == "left" and past is None and self._shares
        start = width - lengths if left else torch.zeros_like(lengths)
        ids = torch.zeros(len(rows), width, dtype=torch.long)  # token 0 pads, as in the harness
        for number, row in enumerate(rows):
            at = int(start[number])
            ids[number, at : at + row.length] = torch.tensor(row.tokens[row.past :])
        arguments: dict[str, Any] = {"use_cache": keep or past is not None}
        if arguments["use_cache"]:
            arguments["past_key_values"] = DynamicCache() if past is None else past.cache
        before_width, before_lengths = (0, torch.zeros_like(lengths)) if past is None else (past.width, past.lengths)
        padding = before_width - before_lengths + start
        if int(padding.max()):
            seen = torch.arange(before_width + width)[None, :] >= padding[:, None]
            positions = (torch.arange(width)[None, :] - start[:, None]).clamp(min=0)
            positions = before_lengths[:, None] + torch.minimum(positions, lengths[:, None] - 1)
            arguments |= {"attention_mask": self._to_device(seen.long()), "position_ids": self._to_device(positions)}
        prompt_end = start + torch.tensor([row.prompt_length - row.past for row in rows])
        tokens: Tokens = ScoredTokens(start, prompt_end) if int(prompt_end.max()) > 0 else OptionTokens()
        steering = self.injector.batch([row.row for row in rows], tokens)
        scored = [(i, int(start[i]) + row.length, row.scored) for i, row in enumerate(rows)]
        with steering, self._head.at(scored, width):
            output = self.model(input_ids=self._to_device(ids), **arguments)
            logits = self._head.scored(output.logits)
        kept = None
        if keep:
            ends = before_width + start + lengths
            spans = [Span(*span) for span in zip(padding.tolist(), ends.tolist(), strict=True)]
            kept = KeysValues(arguments["past_key_values"], spans)
        return self._tokens(logits, rows), kept

    def _to_device(self, tensor: Tensor) -> Tensor:
        device = self.model.get_input_embeddings().weight.device
        # Offloaded weights are on no device: accelerate moves the input.
        return tensor if device.type == "meta" else tensor.to(device, non_blocking=True)

    def _tokens(self, logits: Tensor, rows: list[_Row]) -> _Found:
        """Log-probabilities of the rows' targets from the logits of their scored positions, [positions, vocabulary]."""
        place: list[int] = []
        token: list[int] = []
        base = 0
        for row in rows:
            for _, target in row.targets:
                place.extend(range(base + row.scored - len(target), base + row.scored))
                token.extend(target)
            base += row.scored
        found = iter(log_probabilities(logits, place, token, self.softmax_dtype))
        return {request: list(islice(found, len(target))) for row in rows for request, target in row.targets}
