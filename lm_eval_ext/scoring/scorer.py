"""Log-likelihoods of continuations: what the harness requests for multiple choice.

What requests share is computed once: a common prefix of prompts (few-shot examples, a template), a prompt with several
continuations, equal requests. A prompt and its options form one token tree (`token_trees`), and several trees share a row of
the forward. Where prompts share a prefix, are long, or the model does not accept custom attention masks, options continue
from the prompt's keys and values instead. The LM head is computed only at positions that score a token, and the log-softmax
over the vocabulary is never stored.

How much of this a model allows is measured first (`sharing`), unless all that is asked costs less by itself.
"""

from __future__ import annotations

import logging
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache

from lm_eval_ext.errors import ModelError
from lm_eval_ext.scoring.batching import Budget, RowCost, by_cost, out_of_memory
from lm_eval_ext.scoring.kv_cache import KVCache, Span, cache_kinds, cache_name, forget_positions
from lm_eval_ext.scoring.lm_head import ScoredPositions, Token, log_probabilities
from lm_eval_ext.scoring.products import fast_products
from lm_eval_ext.scoring.requests import Request, Row, Score, rows_of, split_by_shared_prefix
from lm_eval_ext.scoring.sharing import Sharing, Verdict, check, cost, probe_cost, probe_length, rope_switch
from lm_eval_ext.scoring.token_trees import Packed, Tree, row_length
from lm_eval_ext.scoring.tree_attention import SteeredTokens, TreeModel
from lm_eval_ext.steering.decoder import text_config
from lm_eval_ext.steering.injection import Injector
from lm_eval_ext.steering.table import SteeringTable
from lm_eval_ext.steering.tokens import OptionTokens, ScoredTokens, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

PaddingSide = Literal["left", "right"]

#: Option rows per forward for each prompt of a batch size: options are few tokens, and their prompts are in the KV cache.
OPTIONS_PER_PROMPT = 4

#: Longest prompt that is run in one row with its options: masks grow with the square of the row's length (our default).
MAX_TREE_PROMPT = 512

log = logging.getLogger(__name__)


#: Most tokens of a continuation of the probe.
_PROBED_OPTION = 3

#: Scored tokens of each request.
_Scored = dict[Request, list[Token]]

#: What was measured of a model that is still in memory, for the next scorer of it: see `_settings`.
_MEASURED: WeakKeyDictionary[PreTrainedModel, tuple[tuple[object, ...], Verdict, PaddingSide]] = WeakKeyDictionary()


class Scorer:
    """Scores requests with one model.

    Args:
        model: a causal language model of transformers, possibly wrapped by PEFT.
        injector: the model's steering hooks.
        max_length: most tokens of a forward; longer prompts are truncated from the left, as in the harness.
        padding_side: of rows without a KV cache; `right` needs no mask.
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
        self._cache_name = cache_name(model)
        self._switch = rope_switch(model)
        self.verdict: Verdict | None = None
        self._alone = 0
        measured = _MEASURED.get(model)
        if measured is not None and measured[0] == self._settings(padding_side):
            _, self.verdict, self.padding_side = measured

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
            ModelError: a continuation longer than the model's context; out of memory even with one prompt.
        """
        scores: dict[Request, Score] = {}
        forget_positions(self.model)
        distinct = list(dict.fromkeys(requests))
        try:
            with torch.inference_mode():
                for group, sharing in self._groups(distinct):
                    for scored in self._scored(group, sharing, batch_size):
                        finished = {request: Score.of(tokens) for request, tokens in scored.items()}
                        scores.update(finished)
                        progress(finished)
        except Exception as error:
            if not out_of_memory(error):
                raise
            longest = max(min(len(request.prompt), self.max_length) for request in distinct)
            raise ModelError(
                f"out of memory even with one prompt (the longest has {longest} tokens): set max_length=, a smaller dtype= "
                "or another device="
            ) from error
        return [scores[request] for request in requests]

    @cached_property
    def _cost_from_memory(self) -> RowCost:
        return RowCost.from_memory(self.model, self._max_rows)

    # What rows may share ------------------------------------------------------------------------------------------------

    def _groups(self, requests: list[Request]) -> Iterator[tuple[list[Request], Sharing]]:
        """The requests, and what their rows may share: nothing beyond the length at which rotary frequencies change."""
        switch = self._switch
        if switch is None:
            yield requests, self._sharing(requests)
            return
        beyond = {request for request in requests if min(_length(request), self.max_length) > switch}
        self._reset_rope()
        within = [request for request in requests if request not in beyond]
        yield within, self._sharing(within)
        if beyond:
            log.info(
                "%d of %d requests are longer than %d tokens, where the rotary frequencies of this model begin to depend on "
                "the longest row of a batch: each is scored in a forward of its own",
                *(len(beyond), len(requests), switch),
            )
            for request in beyond:
                yield [request], Sharing.ALONE
                self._reset_rope()

    def _reset_rope(self) -> None:
        """A forward of one token puts frequencies back that grew with a longer sequence."""
        if self._switch is not None:
            self.model(input_ids=self._to_device(torch.zeros(1, 1, dtype=torch.long)), use_cache=False)

    def _sharing(self, requests: list[Request]) -> Sharing:
        """What the rows of these requests may share; nothing is measured where all so far take less alone than that."""
        rows = {(request.prompt, request.continuation[:-1], request.row) for request in requests}
        if len(rows) < 2:
            return Sharing.ALONE
        if self.verdict is None:
            self._alone += cost(min(len(prompt) + len(fed), self.max_length) for prompt, fed, _ in rows)
            if self._alone <= probe_cost(self._probed_length(requests)):
                log.info("Scoring one row per forward: for %d rows that is quicker than to measure more", len(rows))
                return Sharing.ALONE
        return self.check(requests).sharing

    def why_no_trees(self, requests: Sequence[Request]) -> str:
        """The reason why these requests cannot be scored as trees; empty if they can."""
        if self._switch is not None and max(map(_length, requests)) > self._switch:
            return f"its rotary frequencies depend on the longest row of a forward beyond {self._switch} tokens"
        return self.check(requests).reason

    def can_continue_rows(self, prompts: Sequence[tuple[int, ...]], new_tokens: int) -> bool:
        """Whether rows of several lengths may share a forward and continue from keys and values that were moved.

        Args:
            prompts: tokens of prompts.
            new_tokens: most that is appended to each.
        """
        longest = max(map(len, prompts), default=0) + new_tokens
        if not longest or longest > min(self.max_length, self._switch or self.max_length):
            return False
        requests = [Request(prompt, (prompt[-1],) * new_tokens, 0) for prompt in dict.fromkeys(prompts) if prompt]
        return self.check(requests).sharing >= Sharing.CACHE

    def check(self, requests: Sequence[Request]) -> Verdict:
        """What rows as long as those of these requests may share; measured once for each length."""
        length = self._probed_length(requests)
        if self.verdict is None or length > self.verdict.length:
            tokens = [token for request in requests for token in (*request.prompt, *request.continuation)]
            settings = self._settings(self.padding_side)
            with torch.inference_mode():
                self.verdict = self._measured(tokens, length)
            _MEASURED[self.model] = (settings, self.verdict, self.padding_side)
        return self.verdict

    def _probed_length(self, requests: Sequence[Request]) -> int:
        by_prompt: dict[tuple[int, ...], int] = {}
        for request in requests:
            by_prompt[request.prompt] = by_prompt.get(request.prompt, 0) + len(request.continuation) - 1
        longest = max(row_length(len(prompt), nodes) for prompt, nodes in by_prompt.items())
        positions = getattr(text_config(self.model.config), "max_position_embeddings", None) or self.max_length
        limit = min(self.max_length, self._switch or self.max_length, positions) - _PROBED_OPTION
        return max(1, probe_length(self.model.config, longest, limit))

    def _settings(self, padding_side: PaddingSide) -> tuple[object, ...]:
        """All but the weights that a verdict depends on. A module that was replaced, such as by an adapter, is another."""
        modules = tuple(id(module) for module in self.model.modules())
        implementation = getattr(self.model.config, "_attn_implementation", None)
        dtypes = tuple(dict.fromkeys((parameter.dtype, parameter.device) for parameter in self.model.parameters()))
        config = repr(self.model.config)
        return (modules, implementation, dtypes, config, padding_side, self.max_length, self.softmax_dtype)

    def _measured(self, tokens: list[int], length: int) -> Verdict:
        injector, self.injector = self.injector, Injector(self.model, SteeringTable())
        try:
            verdict = check(self.model, self._probe, tokens, length)
            if verdict.sharing == Sharing.ALONE and self.padding_side == "left":
                log.info("Rows are padded on the right: padding on the left changes the results of this model")
                self.padding_side = "right"
                verdict = check(self.model, self._probe, tokens, length)
        finally:
            self.injector = injector
        level = logging.WARNING if verdict.sharing == Sharing.ALONE else logging.INFO
        log.log(level, "Scoring with %s", verdict)
        return verdict

    def _probe(self, requests: Sequence[Request], sharing: Sharing) -> _Scored:
        scored: _Scored = {}
        rows = len(requests) if sharing else 1
        for part in self._scored(list(requests), sharing, rows, probing=True):
            scored.update(part)
        return scored

    # Forwards ---------------------------------------------------------------------------------------------------------

    def _scored(
        self, requests: list[Request], sharing: Sharing, batch_size: int | None, *, probing: bool = False
    ) -> Iterator[_Scored]:
        """Every request, batch by batch. A probe of trees runs all prompts as trees."""
        if not requests:
            return
        if sharing == Sharing.ALONE:
            batch_size = 1
        cost = self._cost_from_memory if batch_size is None else RowCost(batch_size)
        prompts = rows_of(requests, self.max_length, shares=sharing >= Sharing.CACHE)
        as_trees = probing and sharing == Sharing.TREES
        alone, shared = prompts, list[tuple[Row, list[Row]]]()
        if sharing >= Sharing.CACHE and not as_trees:
            alone, shared = split_by_shared_prefix(prompts, self.injector.table.n_last)
        if sharing >= Sharing.TREES:
            together, apart = list[Row](), list[Row]()
            for row in alone:
                is_tree = row.branches and (as_trees or len(row.tokens) <= MAX_TREE_PROMPT)
                (together if is_tree else apart).append(row)
            if together:
                yield from self._run_trees(self._tree_model, together, cost)
            alone = apart

        def prompt_cost(row: Row) -> float:
            options = max((len(branch) for branch in row.branches), default=0)
            return cost(row.length + options, row.scored, row.past)

        run = partial(self._run_prompts, before=None, cost=cost)
        for _, scored in self._budget.run(alone, by_cost(prompt_cost), run):
            yield scored
        prefixes = self._budget.run(
            shared,
            by_cost(lambda group: cost(len(group[0].tokens), 0)),
            lambda groups: self._forward([row for row, _ in groups], None, keep=True)[1],
        )
        for groups, past in prefixes:
            for parent, (prefix, members) in enumerate(groups):
                for member in members:
                    member.past, member.parent = len(prefix.tokens), parent
            followers = [member for _, members in groups for member in members]
            run = partial(self._run_prompts, before=past, cost=cost)
            for _, scored in self._budget.run(followers, by_cost(prompt_cost), run):
                yield scored

    def _run_trees(self, model: TreeModel, prompts: list[Row], cost: RowCost) -> Iterator[_Scored]:
        """Prompts with all their options, several in a row."""

        def run(items: list[tuple[int, list[Request], Tree]]) -> _Scored:
            batch = Packed([tree for *_, tree in items])
            rows = torch.tensor([row for row, *_ in items])[batch.owner]
            with self.injector.batch(rows, SteeredTokens(*batch.spans)):
                scores = model.score(batch)
            return {
                request: tokens
                for (_, requests, _), by_tree in zip(items, scores, strict=True)
                for request, tokens in zip(requests, by_tree, strict=True)
            }

        items = [(prompt.row, *tree) for prompt in prompts for tree in prompt.trees()]
        for _, scored in self._budget.run(items, by_cost(lambda item: cost(len(item[-1]), 0)), run):
            yield scored

    def _run_prompts(self, rows: list[Row], before: KVCache | None, cost: RowCost) -> _Scored:
        """Scored tokens of all requests: first tokens from the prompts' forward, the others from the options'."""
        scored, kv_cache = self._forward(rows, before, keep=any(row.branches for row in rows))
        options = [
            Row(
                *(row.row, row.tokens + branch, row.prompt_length),
                targets=[(request, request.continuation[1:]) for request in requests],
                past=len(row.tokens),
                parent=parent,
            )
            for parent, row in enumerate(rows)
            for branch, requests in row.branches.items()
        ]

        def option_cost(row: Row) -> float:
            return cost(row.length, row.scored, row.past, OPTIONS_PER_PROMPT)

        for _, (rest, _) in self._budget.run(options, by_cost(option_cost), lambda rows: self._forward(rows, kv_cache)):
            for request, tokens in rest.items():
                scored[request] = scored[request] + tokens
        return scored

    def _forward(
        self, rows: list[Row], before: KVCache | None, *, keep: bool = False
    ) -> tuple[_Scored, KVCache | None]:
        """One forward: the scored tokens of the rows' targets, and the KV cache if it is to be kept."""
        past = None if before is None else before.take([row.parent for row in rows])
        lengths = torch.tensor([row.length for row in rows])
        width = int(lengths.max())
        # Padding on the left would enter a recurrent state, and would lie between a KV cache and what continues it.
        left = self.padding_side == "left" and past is None and len(rows) > 1 and self._has_plain_cache
        start = width - lengths if left else torch.zeros_like(lengths)
        ids = torch.zeros(len(rows), width, dtype=torch.long)  # token 0 pads, as in the harness
        for number, row in enumerate(rows):
            first = int(start[number])
            ids[number, first : first + row.length] = torch.tensor(row.tokens[row.past :])
        arguments: dict[str, Any] = {"use_cache": keep or past is not None}
        if arguments["use_cache"]:
            arguments[self._cache_name] = DynamicCache() if past is None else past.cache
        before_width, before_lengths = (0, torch.zeros_like(lengths)) if past is None else (past.width, past.lengths)
        padding = before_width - before_lengths + start
        if int(padding.max()):
            seen = torch.arange(before_width + width)[None, :] >= padding[:, None]
            positions = (torch.arange(width)[None, :] - start[:, None]).clamp(min=0)
            positions = before_lengths[:, None] + torch.minimum(positions, lengths[:, None] - 1)
            arguments |= {"attention_mask": self._to_device(seen.long()), "position_ids": self._to_device(positions)}
        prompt_end = start + torch.tensor([row.prompt_length - row.past for row in rows])
        prompt_start = start - torch.tensor([row.past for row in rows])
        tokens: Tokens = ScoredTokens(prompt_start, prompt_end) if int(prompt_end.max()) > 0 else OptionTokens()
        steering = self.injector.batch([row.row for row in rows], tokens)
        scored = [(i, int(start[i]) + row.length, row.scored) for i, row in enumerate(rows)]
        products = fast_products(self.model.get_input_embeddings().weight)
        with steering, products, self._head.only(scored, width):
            output = self.model(input_ids=self._to_device(ids), **arguments)
            logits = self._head.scored(output.logits)
        kv_cache = None
        if keep:
            ends = before_width + start + lengths
            spans = [Span(*span) for span in zip(padding.tolist(), ends.tolist(), strict=True)]
            kv_cache = KVCache(arguments[self._cache_name], spans)
        return self._tokens(logits, rows), kv_cache

    @cached_property
    def _has_plain_cache(self) -> bool:
        return not cache_kinds(self.model)

    @cached_property
    def _tree_model(self) -> TreeModel:
        return TreeModel(self.model, self.softmax_dtype)

    def _to_device(self, tensor: Tensor) -> Tensor:
        device = self.model.get_input_embeddings().weight.device
        # Offloaded weights are on the meta device: accelerate moves the input.
        return tensor if device.type == "meta" else tensor.to(device, non_blocking=True)

    def _tokens(self, logits: Tensor, rows: list[Row]) -> _Scored:
        """Log-probabilities of the rows' targets from the logits of their scored positions, [positions, vocabulary]."""
        places: list[int] = []
        token_ids: list[int] = []
        base = 0
        for row in rows:
            for _, target in row.targets:
                places.extend(range(base + row.scored - len(target), base + row.scored))
                token_ids.extend(target)
            base += row.scored
        tokens = iter(log_probabilities(logits, places, token_ids, self.softmax_dtype))
        return {request: list(islice(tokens, len(target))) for row in rows for request, target in row.targets}


def _length(request: Request) -> int:
    """Tokens of a request's row."""
    return len(request.prompt) + len(request.continuation) - 1
