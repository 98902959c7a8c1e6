"""Every condition on every tree: in which order, in how much memory, and kept as it goes."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Protocol

from lm_eval_ext.scoring.requests import Request
from lm_eval_ext.scoring.scorer import Scorer
from lm_eval_ext.scoring.token_trees import Aligned, Batch, Packed
from lm_eval_ext.steering.injection import Injector
from lm_eval_ext.steering.table import SteeringTable
from lm_eval_ext.sweep.grid import UNSTEERED, Condition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from transformers import PreTrainedModel

    from lm_eval_ext.scoring.batching import Budget
    from lm_eval_ext.scoring.shared_forward import SweepModel, Values
    from lm_eval_ext.steering.vectors import VectorSet
    from lm_eval_ext.sweep.questions import ScoredTree
    from lm_eval_ext.sweep.store import Store

#: Tokens of one forward, and what a batch of unsteered prompts may keep for its conditions (our defaults).
MAX_TOKENS = {"cpu": 4096, "cuda": 32768}
MEMORY_GIB = 2.0

#: Share of a forward's tokens that a batch takes: aligned prompts are padded, and what follows is few tokens of each.
_SHARE: dict[type[Batch], float] = {Packed: 1, Aligned: 0.25}

#: Copies of a prompt's end side by side hold at most so many tokens: each of them is masked against all.
_MAX_SIDE_BY_SIDE = 128

#: Fewer tokens than these do not keep a processor busy: ends of prompts are then joined over layers.
_ENOUGH_TOKENS = 256


class Engine(Protocol):
    """Computes the missing cells of some trees."""

    def run(
        self,
        trees: Sequence[ScoredTree],
        conditions: Sequence[Condition],
        store: Store,
        progress: Callable[[int], object],
    ) -> None:
        """Compute what `store` lacks; `progress` is told the number of cells that each step adds."""


class SharedEngine:
    """Shares what conditions have in common (see `forward`).

    Args:
        model: runs the trees.
        vectors: for the plans.
        n_layers: of the model.
        budget: halved when memory runs out.
    """

    def __init__(self, model: SweepModel, vectors: VectorSet, n_layers: int, budget: Budget) -> None:
        self._model = model
        self._n_layers = n_layers
        self._budget = budget
        self._table = _tables(vectors, n_layers)

    def run(
        self,
        trees: Sequence[ScoredTree],
        conditions: Sequence[Condition],
        store: Store,
        progress: Callable[[int], object],
    ) -> None:
        """See `Engine.run`."""
        for form, own in _by_form(conditions).items():
            pending = [tree for tree in trees if _missing([tree], own, store)]
            batch = partial(self._batch, form, conditions=own, store=store, progress=progress)
            for _ in self._budget.run(pending, partial(_divide, form), batch):
                pass

    def _batch(
        self,
        form: type[Batch],
        trees: Sequence[ScoredTree],
        conditions: Sequence[Condition],
        store: Store,
        progress: Callable[[int], object],
    ) -> None:
        for cells in self._cells(form, trees, _missing(trees, conditions, store)):
            progress(sum(store.get(condition, tree) is None for condition, tree, _ in cells))
            store.write(cells)

    def _cells(
        self, form: type[Batch], trees: Sequence[ScoredTree], conditions: Sequence[Condition]
    ) -> Iterator[list[tuple[str, str, Values]]]:
        batch = form([tree.tree for tree in trees])
        normalise = [tree.normalised for tree in trees]
        languages = [tree.language for tree in trees]
        by_layer: dict[int, list[Condition]] = defaultdict(list)
        for condition in conditions:
            if condition.name != UNSTEERED:
                by_layer[condition.first_layer(self._n_layers)].append(condition)
        for layers in self._layers_at_a_time(batch, sorted(by_layer)):
            base = self._model.base(batch, layers, normalise)
            yield [(UNSTEERED, tree.key, values) for tree, values in zip(trees, base.values, strict=True)]
            run = self._model.ends if form is Aligned else self._model.whole
            for layer, chunk in self._chunks(batch, {layer: by_layer[layer] for layer in layers}):
                tables = [self._table(condition.name) for condition in chunk]
                found = run(base, layer, tables, languages, normalise)
                yield [
                    (condition.name, tree.key, values)
                    for condition, by_tree in zip(chunk, found, strict=True)
                    for tree, values in zip(trees, by_tree, strict=True)
                ]

    def _layers_at_a_time(self, batch: Batch, layers: list[int]) -> Iterator[list[int]]:
        """Layers whose residual streams fit the budget together: all of them, or as many as do."""
        if not layers:
            yield []
            return
        tokens = batch.whole.ids.numel()
        for_past, for_layer = self._model.bytes_per_token(0), self._model.bytes_per_token(1)
        each = max(1, (for_layer - for_past) * tokens)
        room = max(1, (self._budget.memory - for_past * tokens) // each)
        for at in range(0, len(layers), room):
            yield layers[at : at + room]

    def _chunks(self, batch: Batch, conditions: dict[int, list[Condition]]) -> Iterator[tuple[int, list[Condition]]]:
        """Conditions of one forward, and the layer to go on from, given those of each first steered layer, in order.

        Those that recompute whole prompts go with others of the same layer. Ends of prompts are few tokens: conditions of
        several layers make one forward from the lowest on, up to their own layer the same as the unsteered one.
        """
        size, enough = self._budget.tokens // batch.whole.ids.numel(), 0
        if isinstance(batch, Aligned):
            block = 1 + batch.nodes
            tokens = len(batch.trees) * block
            size, enough = min(self._budget.tokens // tokens, _MAX_SIDE_BY_SIDE // block), _ENOUGH_TOKENS // tokens
        start, chunk = 0, list[Condition]()
        for layer, own in conditions.items():
            for condition in own:
                if chunk and (len(chunk) >= size or (layer > start and len(chunk) >= enough)):
                    yield start, chunk
                    chunk = []
                start = start if chunk else layer
                chunk.append(condition)
        if chunk:
            yield start, chunk


class SeparateEngine:
    """One condition at a time, for architectures that cannot be run by trees: what `steered-hf` does, in one process.

    Args:
        model, vectors, n_layers: as for `SharedEngine`.
        max_length: most tokens of a forward.
    """

    def __init__(self, model: PreTrainedModel, vectors: VectorSet, n_layers: int, *, max_length: int) -> None:
        self._model = model
        self._table = _tables(vectors, n_layers)
        self._max_length = max_length

    def run(
        self,
        trees: Sequence[ScoredTree],
        conditions: Sequence[Condition],
        store: Store,
        progress: Callable[[int], object],
    ) -> None:
        """See `Engine.run`."""
        for condition in conditions:
            pending = [tree for tree in trees if store.get(condition.name, tree.key) is None]
            table = self._table(condition.name) if condition.plan else SteeringTable()
            injector = Injector(self._model, table)
            scorer = Scorer(self._model, injector, max_length=self._max_length)
            try:
                for at in range(0, len(pending), _KEPT_TOGETHER):
                    part = pending[at : at + _KEPT_TOGETHER]
                    store.write(_score(scorer, part, condition.name, table))
                    progress(len(part))
            finally:
                injector.remove()


#: Trees of a transaction where conditions run one by one.
_KEPT_TOGETHER = 64


def _score(
    scorer: Scorer, trees: Sequence[ScoredTree], condition: str, table: SteeringTable
) -> Iterator[tuple[str, str, Values]]:
    requests = [
        Request(tree.tree.prompt, tuple(token for _, token in path), table.row(tree.language))
        for tree in trees
        for path in tree.tree.targets
    ]
    values = iter(score.log_likelihood for score in scorer.score(requests))
    for tree in trees:
        yield condition, tree.key, [next(values) for _ in tree.tree.targets]


def _divide(form: type[Batch], trees: list[ScoredTree], budget: Budget) -> list[list[ScoredTree]]:
    batches = form.divide([tree.tree for tree in trees], int(budget.tokens * _SHARE[form]))
    return [[trees[index] for index in batch] for batch in batches]


def _by_form(conditions: Sequence[Condition]) -> dict[type[Batch], list[Condition]]:
    """Conditions that steer nothing but last tokens need aligned batches; the unsteered one goes with any."""
    found: dict[type[Batch], list[Condition]] = defaultdict(list)
    for condition in sorted(conditions, key=lambda condition: condition.name == UNSTEERED):
        form = Aligned if condition.is_last_only else Packed
        found[next(iter(found), Packed) if condition.name == UNSTEERED else form].append(condition)
    return found


def _missing(trees: Sequence[ScoredTree], conditions: Sequence[Condition], store: Store) -> list[Condition]:
    return [condition for condition in conditions if any(store.get(condition.name, tree.key) is None for tree in trees)]


def _tables(vectors: VectorSet, n_layers: int) -> Callable[[str], SteeringTable]:
    from lm_eval_ext.steering.plan import Plan

    @lru_cache(maxsize=512)
    def table(plan: str) -> SteeringTable:
        return SteeringTable.build(Plan.parse(plan), vectors, n_layers)

    return table
