"""The scores of some questions under any plans: computed once, kept in a folder, shared by sweeps and `tune`."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from lm_eval_ext.console import Progress
from lm_eval_ext.models.speed import operations_seconds
from lm_eval_ext.scoring.batching import divide_by_cost
from lm_eval_ext.sweep.settings import GIB
from lm_eval_ext.sweep.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from rich.console import Console

    from lm_eval_ext.backends.base import SteeredBackend
    from lm_eval_ext.steering.vectors import VectorSet
    from lm_eval_ext.sweep.engine import Engine
    from lm_eval_ext.sweep.grid import Condition
    from lm_eval_ext.sweep.processes import Processes
    from lm_eval_ext.sweep.questions import Questions, ScoredTree


class Cells:
    """The cells of some questions: each is a prompt with its options (a token tree) under one plan.

    Args:
        model: of the questions, without a plan.
        questions: to score.
        vectors: of the plans.
        folder: keeps what is computed; an interrupted run goes on from there.
        processes: of the launch; each computes its share.
        console: for notes.
        likelihoods: normalise over the vocabulary even where only differences between options matter.
        max_tokens: of one forward; by the device where left out.
        memory: bytes for what is kept of unsteered forwards, which conditions share.
        engine: `hf`, or `vllm` for a model that runs there, one condition at a time.

    Raises:
        ResultsError: the folder holds cells of another model, vector file or dtype.
        ModelError: an option that does not fit the model's context.
    """

    def __init__(
        self,
        model: SteeredBackend,
        questions: Questions,
        vectors: VectorSet,
        folder: Path,
        processes: Processes,
        console: Console,
        *,
        likelihoods: bool = False,
        max_tokens: int | None = None,
        memory: int = 2 * GIB,
        engine: str = "hf",
    ) -> None:
        self.questions = questions
        self._model, self._vectors = model, vectors
        self._processes, self._console = processes, console
        self._max_tokens, self._memory, self._engine_name = max_tokens, memory, engine
        self.trees = questions.trees(model.encode(questions.instances), model.max_length, likelihoods=likelihoods)
        if questions.n_truncated:
            console.print(
                f"note: {questions.n_truncated} prompts are truncated from the left: they are longer than the model's "
                f"{model.max_length} tokens",
                style="yellow",
            )
        self.store = Store(folder, self._identity(), processes.rank)
        stored = self.store.trees()
        if stored and processes.is_first:
            requested = {tree.key for tree in self.trees}
            console.print(
                f"{folder}: {len(stored & requested)} of {len(requested)} prompts were begun by earlier runs"
                + (f", {len(stored - requested)} others are not used now" if stored - requested else "")
            )

    def compute(self, conditions: Sequence[Condition], title: str, trees: Sequence[ScoredTree] | None = None) -> None:
        """Compute the missing cells of some conditions, with a progress bar.

        Args:
            conditions: the plans.
            title: of the progress bar.
            trees: of some questions; all if None.
        """
        processes, store = self._processes, self.store
        wanted = self.trees if trees is None else trees
        ordered = sorted(wanted, key=lambda tree: (-len(tree.tree), tree.key))
        shares = divide_by_cost([len(tree.tree) for tree in ordered], processes.count)
        share = [ordered[index] for index in shares[processes.rank]]
        done = sum(store.get(condition.name, tree.key) is not None for condition in conditions for tree in share)
        total = len(share) * len(conditions)
        seconds = self._seconds(share, conditions) if total else None
        if seconds is not None:
            seconds *= (total - done) / total
        with Progress(total, title, "cell", initial=done, seconds=seconds, hidden=not processes.is_first) as bar:
            self._engine.run(share, conditions, store, bar.update)
        processes.wait()
        if processes.count > 1:
            store.refresh()

    def items(self, conditions: Sequence[Condition]) -> pd.DataFrame:
        """One row per condition and question (`sweep.summary.items`)."""
        from lm_eval_ext.sweep.summary import items

        with Progress(len(conditions), "Scoring", "condition") as bar:
            return items(self.questions, self.trees, conditions, self.store, bar.update)

    @cached_property
    def _engine(self) -> Engine:
        from lm_eval_ext.scoring.batching import Budget
        from lm_eval_ext.scoring.shared_forward import SweepModel
        from lm_eval_ext.sweep.engine import MAX_TOKENS, BackendEngine, SeparateEngine, SharedEngine

        model, n_layers = self._model, self._vectors.model.n_layers
        if self._engine_name == "vllm":
            return BackendEngine(model, self._vectors, n_layers)
        trees = SweepModel(model.model)
        if reason := trees.check([tree.tree for tree in self.trees]):
            self._console.print(f"note: {reason}; every condition is computed in full", style="yellow")
            return SeparateEngine(model.model, self._vectors, n_layers, max_length=model.max_length)
        tokens = self._max_tokens or MAX_TOKENS.get(model.device.type, MAX_TOKENS["cuda"])
        return SharedEngine(trees, self._vectors, n_layers, Budget(tokens, self._memory))

    def _seconds(self, trees: Sequence[ScoredTree], conditions: Sequence[Condition]) -> float | None:
        """Estimated time of some trees under some conditions; None of an engine whose model is elsewhere."""
        if self._engine_name == "vllm":
            return None
        from lm_eval_ext.sweep.engine import operations

        model, n_layers = self._model.model, self._vectors.model.n_layers
        return operations_seconds(model, operations(model, n_layers, trees, conditions))

    def _identity(self) -> dict[str, str]:
        weights = self._model.weights_identity()
        return {"model": weights["model"], "vector file": self._vectors.digest[:16], "dtype": weights["dtype"]}
