"""Runs of the harness under several plans on the same questions, which share what steering does not change.

The requests of all runs are scored together by the engine of the sweep. Each run is then one of the harness, answered from
these scores, and writes what a run of its own writes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lm_eval_ext.fingerprints import weights_fingerprint
from lm_eval_ext.models.precision import name_of
from lm_eval_ext.models.speed import weights
from lm_eval_ext.scoring.batching import Budget
from lm_eval_ext.scoring.requests import Request, Score
from lm_eval_ext.scoring.shared_forward import SweepModel, Values
from lm_eval_ext.scoring.token_trees import Packed
from lm_eval_ext.steering.decoder import layer_count
from lm_eval_ext.steering.plan import Plan
from lm_eval_ext.steering.table import SteeringTable
from lm_eval_ext.sweep.engine import MAX_TOKENS, SharedEngine, operations
from lm_eval_ext.sweep.grid import Condition
from lm_eval_ext.sweep.settings import GIB
from lm_eval_ext.sweep.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from torch import Tensor

    from lm_eval_ext.backends.base import SteeredBackend
    from lm_eval_ext.scoring.token_trees import Tree
    from lm_eval_ext.steering.vectors import VectorSet
    from lm_eval_ext.sweep.questions import Questions, ScoredTree

#: Bytes that are kept of unsteered forwards (our default).
_MEMORY = 2 * GIB


class _WithGreedy(SweepModel):
    """Values are pairs: the log-likelihood of a continuation, and 1 where greedy decoding would produce it."""

    def _likelihoods(self, trees: Sequence[Tree], hidden: Tensor) -> list[Values]:
        return [
            [value for path in by_tree for value in map(float, Score.of(path))]
            for by_tree in self.tokens(trees, hidden)
        ]


class SharedRuns:
    """Runs of one model on the same questions.

    Args:
        model: a steered model of the harness, without a plan.
        questions: of all runs.
    """

    def __init__(self, model: SteeredBackend, questions: Questions) -> None:
        self.model = model
        self._scores: dict[str, dict[Request, Score]] = {}
        self._requests = model.encode(questions.instances)
        self._trees = questions.trees(self._requests, model.max_length, likelihoods=True)
        self._n_layers = layer_count(model.model.config)

    def operations(self, plans: Iterable[str]) -> float:
        """Floating-point operations of scoring all questions under some plans together.

        Two for each weight and token: of the decoder layers that a plan changes, and of the LM head.
        """
        return self._operations(self._trees, plans)

    def text_operations(self, tokens: int) -> float:
        """Floating-point operations of forwards of so many tokens without the LM head."""
        return 2.0 * weights(self.model.model)[0] * tokens

    def speed(self, n_trees: int = 16) -> float:
        """Floating-point operations a second that some of the prompts, unsteered, reach here; measured in seconds."""
        sample = self._trees[:: max(1, len(self._trees) // n_trees)][:n_trees]
        model = _WithGreedy(self.model.model)
        model.base(Packed([sample[0].tree]), [], [True])  # the first forward prepares the weights for the processor
        started = time.perf_counter()
        model.base(Packed([tree.tree for tree in sample]), [], [True] * len(sample))
        return self._operations(sample, [""]) / (time.perf_counter() - started)

    def _operations(self, trees: Sequence[ScoredTree], plans: Iterable[str]) -> float:
        conditions = [Condition(Plan.parse(plan)) for plan in plans]
        return operations(self.model.model, self._n_layers, trees, conditions)

    def score_ahead(
        self,
        vectors: VectorSet,
        plans: Sequence[str],
        cells: Path,
        progress: Callable[[int], object] = lambda done: None,
    ) -> None:
        """Score all questions under all plans; a model that cannot run token trees scores them run by run.

        Args:
            vectors: for the plans.
            plans: empty for the unsteered model.
            cells: folder of what is computed, from which an interrupted call goes on.
            progress: called with the number of cells (a prompt under a plan) that each step adds.

        Raises:
            ResultsError: `cells` is of another model, vector file or dtype, or cannot be written.
        """
        model = _WithGreedy(self.model.model)
        identity = {
            "model": weights_fingerprint(self.model.model),
            "vector file": vectors.digest[:16],
            "dtype": name_of(self.model.model.dtype),
            "values": "log-likelihood, greedy",
        }
        store = Store(cells, identity)
        try:
            conditions = [Condition(Plan.parse(plan)) for plan in plans]
            missing = any(store.get(one.name, tree.key) is None for one in conditions for tree in self._trees)
            # A plain model checks: its values are one number for each continuation.
            if missing and SweepModel(self.model.model).check([tree.tree for tree in self._trees]):
                return
            tokens = MAX_TOKENS.get(self.model.device.type, MAX_TOKENS["cuda"])
            engine = SharedEngine(model, vectors, self._n_layers, Budget(tokens, _MEMORY))
            engine.run(self._trees, conditions, store, progress)
            for condition in conditions:
                table = SteeringTable.build(condition.plan, vectors, self._n_layers)
                self._scores[condition.name] = self._by_request(condition, table, store)
        finally:
            store.close()

    def _by_request(self, condition: Condition, table: SteeringTable, store: Store) -> dict[Request, Score]:
        known: dict[Request, Score] = {}
        for tree in self._trees:
            values = store.get(condition.name, tree.key) or []
            row = table.row(tree.language) if condition.plan else 0
            for indices, value, greedy in zip(tree.requests, values[::2], values[1::2], strict=True):
                for index in indices:
                    known[self._requests[index]._replace(row=row)] = Score(value, bool(greedy))
        return known

    def n_cells(self, plans: Sequence[str]) -> int:
        """Prompts times plans."""
        return len(self._trees) * len(plans)

    def steer(self, plan: str, vectors: VectorSet | None) -> None:
        """Let the model run under a plan, with the scores that are known of it; `vectors` may be None without a plan."""
        parsed = Plan.parse(plan)
        self.model.steer(parsed, vectors, self._scores.get(str(parsed)))
