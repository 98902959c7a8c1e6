"""Runs every condition on every tree within a memory budget, and stores results as they are computed."""

from __future__ import annotations

import math
from collections import defaultdict
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Protocol

import torch

from lm_eval_ext.models.speed import weights
from lm_eval_ext.scoring.requests import Request, not_a_number
from lm_eval_ext.scoring.scorer import Scorer
from lm_eval_ext.scoring.shared_forward import MAX_SIDE_BY_SIDE
from lm_eval_ext.scoring.token_trees import Aligned, Batch, Packed
from lm_eval_ext.steering.injection import Injector
from lm_eval_ext.steering.table import SteeringTable
from lm_eval_ext.sweep.grid import UNSTEERED, Condition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from transformers import PreTrainedModel

    from lm_eval_ext.backends.base import SteeredBackend
    from lm_eval_ext.scoring.batching import Budget
    from lm_eval_ext.scoring.shared_forward import SweepModel, Values
    from lm_eval_ext.steering.vectors import VectorSet
    from lm_eval_ext.sweep.questions import ScoredTree
    from lm_eval_ext.sweep.store import Store

#: Tokens of one forward, and memory that a batch of unsteered prompts may keep for its conditions (our defaults).
MAX_TOKENS = {"cpu": 4096, "cuda": 32768}
MEMORY_GIB = 2.0

#: Share of a forward's tokens that a batch uses: aligned prompts are padded, and their steered ends are few tokens each.
_SHARE: dict[type[Batch], float] = {Packed: 1, Aligned: 0.25}

#: Fewer tokens do not keep a processor busy: the ends of prompts of several first layers are then run together.
_ENOUGH_TOKENS = 256


def operations(
    model: PreTrainedModel, n_layers: int, trees: Sequence[ScoredTree], conditions: Sequence[Condition]
) -> float:
    """Floating-point operations of scoring trees under conditions together: two for each weight and token.

    The unsteered model is run in any case; a condition adds the layers above its first, and the LM head.
    """
    body, head = weights(model)
    steered = [condition for condition in conditions if condition.name != UNSTEERED]
    share = 1 + sum(1 - (1 + condition.first_layer(n_layers)) / n_layers for condition in steered)
    tokens = sum(len(tree.tree) for tree in trees)
    scored = sum(len(tree.tree.scored) for tree in trees)
    return 2.0 * (share * body * tokens + (1 + len(steered)) * head * scored)


class Engine(Protocol):
    """Computes the missing cells of some trees."""

    def run(
        self,
        trees: Sequence[ScoredTree],
        conditions: Sequence[Condition],
        store: Store,
        progress: Callable[[int], object],
    ) -> None:
        """Compute what `store` lacks; `progress` is called with the number of cells that each step adds."""


class SharedEngine:
    """Computes what conditions share once (see `scoring.shared_forward`).

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
        for form, of_form in _by_form(conditions).items():
            pending = [tree for tree in trees if _missing([tree], of_form, store)]
            batch = partial(self._batch, form, conditions=of_form, store=store, progress=progress)
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
            _check_finite(cells, trees, self._model.dtype)
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
                values_by_condition = run(base, layer, tables, languages, normalise)
                yield [
                    (condition.name, tree.key, values)
                    for condition, by_tree in zip(chunk, values_by_condition, strict=True)
                    for tree, values in zip(trees, by_tree, strict=True)
                ]

    def _layers_at_a_time(self, batch: Batch, layers: list[int]) -> Iterator[list[int]]:
        """Layers whose residual streams fit the budget together: all of them, or as many as do."""
        if not layers:
            yield []
            return
        tokens = batch.whole.ids.numel()
        kv_bytes, with_layer = self._model.bytes_per_token(0), self._model.bytes_per_token(1)
        layer_bytes = max(1, (with_layer - kv_bytes) * tokens)
        n_fitting = max(1, (self._budget.memory - kv_bytes * tokens) // layer_bytes)
        for start in range(0, len(layers), n_fitting):
            yield layers[start : start + n_fitting]

    def _chunks(self, batch: Batch, conditions: dict[int, list[Condition]]) -> Iterator[tuple[int, list[Condition]]]:
        """The conditions of each forward, with the layer that it continues from.

        Conditions that recompute whole prompts share a forward with others of the same first layer. Ends of prompts are few
        tokens, so that conditions of several first layers share a forward that continues from the lowest of them.

        Args:
            batch: the trees.
            conditions: by their first steered layer, in ascending order.
        """
        size, enough = self._budget.tokens // batch.whole.ids.numel(), 0
        if isinstance(batch, Aligned):
            block = 1 + batch.nodes
            tokens = len(batch.trees) * block
            size, enough = min(self._budget.tokens // tokens, MAX_SIDE_BY_SIDE // block), _ENOUGH_TOKENS // tokens
        start, chunk = 0, list[Condition]()
        for layer, of_layer in conditions.items():
            for condition in of_layer:
                if chunk and (len(chunk) >= size or (layer > start and len(chunk) >= enough)):
                    yield start, chunk
                    chunk = []
                start = start if chunk else layer
                chunk.append(condition)
        if chunk:
            yield start, chunk


class SeparateEngine:
    """One condition at a time, as `steered-hf` computes it; for architectures that cannot run trees.

    Args:
        model, vectors, n_layers: as for `SharedEngine`.
        max_length: most tokens of a forward.
    """

    def __init__(self, model: PreTrainedModel, vectors: VectorSet, n_layers: int, *, max_length: int) -> None:
        self._model = model
        self._table = _tables(vectors, n_layers)
        self._scorer = Scorer(
            model, Injector(model, SteeringTable()), max_length=max_length
        )  # learns what may be shared

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
            self._scorer.injector = injector
            try:
                parts = _parts(pending, _TREES_PER_TRANSACTION)
                _write(self._scorer, parts, condition.name, table, store, self._model.dtype, progress)
            finally:
                injector.remove()


def _check_finite(cells: Sequence[tuple[str, str, Values]], trees: Sequence[ScoredTree], dtype: torch.dtype) -> None:
    """Refuse cells of NaN, of which an option would be chosen all the same.

    Raises:
        ModelError: there is one; cells stored before are kept.
    """
    for condition, key, values in cells:
        if any(map(math.isnan, values)):
            tasks = dict.fromkeys(task for tree in trees if tree.key == key for task in tree.tasks)
            plan = f", plan {condition}" if condition else ""
            raise not_a_number(f"task {', '.join(tasks) or '?'}{plan}", dtype, condition)


class BackendEngine:
    """One condition at a time, as requests of an engine that runs on; for vLLM.

    Args:
        model: of the harness; its plan is changed.
        vectors, n_layers: as for `SharedEngine`.
    """

    def __init__(self, model: SteeredBackend, vectors: VectorSet, n_layers: int) -> None:
        self._model = model
        self._vectors = vectors
        self._table = _tables(vectors, n_layers)

    def run(
        self,
        trees: Sequence[ScoredTree],
        conditions: Sequence[Condition],
        store: Store,
        progress: Callable[[int], object],
    ) -> None:
        """See `Engine.run`."""
        dtype = getattr(torch, self._model.weights_identity()["dtype"])
        for condition in conditions:
            pending = [tree for tree in trees if store.get(condition.name, tree.key) is None]
            if not pending:
                continue
            table = self._table(condition.name) if condition.plan else SteeringTable()
            self._model.steer(condition.plan, self._vectors)
            parts = _parts(pending, _TREES_PER_CALL)
            _write(self._model, parts, condition.name, table, store, dtype, progress)


#: Trees of one call of an engine that batches them itself.
_TREES_PER_CALL = 2048

#: Trees of one transaction of the store, where conditions run one by one.
_TREES_PER_TRANSACTION = 64


def _parts(trees: Sequence[ScoredTree], size: int) -> Iterator[Sequence[ScoredTree]]:
    for start in range(0, len(trees), size):
        yield trees[start : start + size]


def _write(
    scorer: Scorer | SteeredBackend,
    parts: Iterable[Sequence[ScoredTree]],
    condition: str,
    table: SteeringTable,
    store: Store,
    dtype: torch.dtype,
    progress: Callable[[int], object],
) -> None:
    """Score trees under one condition, and store each part in one transaction."""
    for part in parts:
        cells = list(_score(scorer, part, condition, table))
        _check_finite(cells, part, dtype)
        store.write(cells)
        progress(len(part))


def _score(
    scorer: Scorer | SteeredBackend, trees: Sequence[ScoredTree], condition: str, table: SteeringTable
) -> Iterator[tuple[str, str, Values]]:
    requests = [
        Request(tree.tree.prompt, tuple(token for _, token in path), table.row(tree.language), tree.tree.lead)
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
    """Conditions by form of batch: aligned for those that steer last tokens only; the unsteered one joins either."""
    by_form: dict[type[Batch], list[Condition]] = defaultdict(list)
    for condition in sorted(conditions, key=lambda condition: condition.name == UNSTEERED):
        form = Aligned if condition.is_last_only else Packed
        by_form[next(iter(by_form), Packed) if condition.name == UNSTEERED else form].append(condition)
    return by_form


def _missing(trees: Sequence[ScoredTree], conditions: Sequence[Condition], store: Store) -> list[Condition]:
    return [condition for condition in conditions if any(store.get(condition.name, tree.key) is None for tree in trees)]


def _tables(vectors: VectorSet, n_layers: int) -> Callable[[str], SteeringTable]:
    from lm_eval_ext.steering.plan import Plan

    @lru_cache(maxsize=512)
    def table(plan: str) -> SteeringTable:
        return SteeringTable.build(Plan.parse(plan), vectors, n_layers)

    return table
