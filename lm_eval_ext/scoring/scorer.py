"""Log-likelihoods of continuations at the least cost: what a harness model is asked for in multiple choice.

What several requests have in common is computed once: the beginning that prompts share (few-shot examples, a template), a
prompt for all its continuations, a request that is asked again. A prompt and its options are one row (`trees`), several in
a row of the forward; where prompts share a beginning, are long, or the model takes no masks of ours, options go on from the
prompt's keys and values. The output head is computed only at positions that score a token, and no log-softmax of the
vocabulary is ever stored.
"""

from __future__ import annotations

import logging
from functools import cache, cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import DynamicCache

from lm_eval_ext.errors import ModelError
from lm_eval_ext.scoring.batching import Budget, RowCost, by_cost, out_of_memory
from lm_eval_ext.scoring.kv_cache import KVCache, Span, can_be_shared
from lm_eval_ext.scoring.lm_head import ScoredPositions, Token, log_probabilities
from lm_eval_ext.scoring.products import fast_products
from lm_eval_ext.scoring.requests import Request, Row, Score, rows_of, shared_beginnings
from lm_eval_ext.scoring.token_trees import Packed, Tree
from lm_eval_ext.scoring.tree_attention import SteeredTokens, TreeModel
from lm_eval_ext.steering.tokens import OptionTokens, ScoredTokens, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from lm_eval_ext.steering.injection import Injector

PaddingSide = Literal["left", "right"]

#: Option rows per forward for each prompt of a given batch size: options are short, their prompts' keys and values are not.
OPTIONS_PER_PROMPT = 4

#: Longest prompt that is run in one row with its options: masks grow with the square of a row (our default).
MAX_TREE_PROMPT = 512

log = logging.getLogger(__name__)


#: Tokens found so far of each request.
_Found = dict[Request, list[Token]]


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
        self._shares = cache(partial(can_be_shared, model))
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
        prompts = rows_of(dict.fromkeys(requests), self.max_length, self._shares)
        try:
            with torch.inference_mode():
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

    def _tree_model(self, prompts: list[Row]) -> TreeModel | None:
        """For prompts with all their options in one row; None if the model cannot, asked once with one of `prompts`."""
        if not self._asked_for_trees:
            model = TreeModel(self.model, self.softmax_dtype)
            _, sample = next(min(prompts, key=lambda row: len(row.tokens)).trees())
            reason = model.check(sample)
            if reason is None:
                self._trees = model
            else:
                log.info("Options are scored after their prompts, not together with them: %s", reason)
            self._asked_for_trees = True
        return self._trees

    # Forwards ---------------------------------------------------------------------------------------------------------

    def _run(self, prompts: list[Row], cost: RowCost) -> Iterator[_Found]:
        """Every prompt, batch by batch."""
        alone, shared = shared_beginnings(prompts, self._shares)
        together, apart = list[Row](), list[Row]()
        for row in alone:
            (together if row.branches and len(row.tokens) <= MAX_TREE_PROMPT else apart).append(row)
        if together and (trees := self._tree_model(together)):
            yield from self._run_trees(trees, together, cost)
            alone = apart

        def prompt_cost(row: Row) -> float:
            options = max((len(begun) for begun in row.branches), default=0)
            return cost(row.length + options, row.scored, row.past)

        run = partial(self._run_prompts, before=None, cost=cost)
        for _, found in self._budget.run(alone, by_cost(prompt_cost), run):
            yield found
        beginnings = self._budget.run(
            shared,
            by_cost(lambda group: cost(len(group[0].tokens), 0)),
            lambda groups: self._forward([row for row, _ in groups], None, keep=True)[1],
        )
        for groups, past in beginnings:
            for parent, (beginning, members) in enumerate(groups):
                for member in members:
                    member.past, member.parent = len(beginning.tokens), parent
            followers = [member for _, members in groups for member in members]
            run = partial(self._run_prompts, before=past, cost=cost)
            for _, found in self._budget.run(followers, by_cost(prompt_cost), run):
                yield found

    def _run_trees(self, model: TreeModel, prompts: list[Row], cost: RowCost) -> Iterator[_Found]:
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
        for _, found in self._budget.run(items, by_cost(lambda item: cost(len(item[-1]), 0)), run):
            yield found

    def _run_prompts(self, rows: list[Row], before: KVCache | None, cost: RowCost) -> _Found:
        """Scores of all requests of some prompts; first tokens from the prompts' forward, the others from short ones."""
        found, kept = self._forward(rows, before, keep=any(row.branches for row in rows))
        options = [
            Row(row.row, row.tokens + begun, len(row.tokens), [(r, r.continuation[1:]) for r in requests], at, parent)
            for parent, row in enumerate(rows)
            for at in [len(row.tokens)]
            for begun, requests in row.branches.items()
        ]

        def option_cost(row: Row) -> float:
            return cost(row.length, row.scored, row.past, OPTIONS_PER_PROMPT)

        for _, (rest, _) in self._budget.run(options, by_cost(option_cost), lambda rows: self._forward(rows, kept)):
            for request, tokens in rest.items():
                found[request] = found[request] + tokens
        return found

    def _forward(self, rows: list[Row], before: KVCache | None, *, keep: bool = False) -> tuple[_Found, KVCache | None]:
        """One forward: what it says of the rows' targets, and its keys and values if they are to be kept."""
        past = None if before is None else before.take([row.parent for row in rows])
        lengths = torch.tensor([row.length for row in rows])
        width = int(lengths.max())
        # Padding before the prompt would get into a recurrent state, and lie between a past and its continuation.
        left = self.padding_side == "left" and past is None and self._shares()
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
        products = fast_products(self.model.get_input_embeddings().weight)
        with steering, products, self._head.only(scored, width):
            output = self.model(input_ids=self._to_device(ids), **arguments)
            logits = self._head.scored(output.logits)
        kept = None
        if keep:
            ends = before_width + start + lengths
            spans = [Span(*span) for span in zip(padding.tolist(), ends.tolist(), strict=True)]
            kept = KVCache(arguments["past_key_values"], spans)
        return self._tokens(logits, rows), kept

    def _to_device(self, tensor: Tensor) -> Tensor:
        device = self.model.get_input_embeddings().weight.device
        # Offloaded weights are on no device: accelerate moves the input.
        return tensor if device.type == "meta" else tensor.to(device, non_blocking=True)

    def _tokens(self, logits: Tensor, rows: list[Row]) -> _Found:
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
