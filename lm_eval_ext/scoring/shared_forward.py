"""Forwards of many steering conditions that share what steering does not change.

Nothing below a steered layer depends on the vector, so the residual stream is saved there once and each condition continues
from it. At the position `last` the keys and values of the prompt's other tokens are shared above the layer too.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from lm_eval_ext.scoring.batching import out_of_memory
from lm_eval_ext.scoring.kv_cache import kv_bytes_per_token
from lm_eval_ext.scoring.requests import Request
from lm_eval_ext.scoring.scorer import Scorer
from lm_eval_ext.scoring.token_trees import Aligned, Batch, Layout, Packed, Tree
from lm_eval_ext.scoring.tree_attention import SteeredTokens, TreeModel
from lm_eval_ext.steering.decoder import decoder_layers, residual
from lm_eval_ext.steering.injection import Injector
from lm_eval_ext.steering.table import SteeringTable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from lm_eval_ext.steering.tokens import Tokens

#: Most tokens of the copies of a prompt's end side by side: each is masked against all others.
MAX_SIDE_BY_SIDE = 128

#: For each continuation of a tree, its log-likelihood; or, without the logsumexp, its logit.
Values = list[float]


@dataclass(frozen=True)
class Base:
    """What the steered conditions reuse of one unsteered forward.

    Attributes:
        batch: the trees.
        streams: residual stream [rows, columns, hidden] after each requested layer.
        keys_values: keys and values of each layer over all prompt columns but the last, of aligned trees.
        values: the unsteered scores, tree by tree.
    """

    batch: Batch
    streams: dict[int, Tensor]
    keys_values: list[tuple[Tensor, Tensor]]
    values: list[Values]


class SweepModel(TreeModel):
    """Runs trees from the first layer, or continues from a saved residual stream."""

    HEAD_POSITIONS = 256, 512  # more than in `TreeModel`: nothing else uses the memory

    _returns_tuple = False

    def __init__(self, model: PreTrainedModel, softmax_dtype: torch.dtype = torch.float32) -> None:
        super().__init__(model, softmax_dtype)
        self._layers = list(decoder_layers(model))

    def check(self, trees: Sequence[Tree]) -> str:
        """The reason why conditions on these trees cannot share forwards with this model; empty if they can.

        Besides what rows may share, it is tried whether layers go on from a saved residual stream: layers that reuse keys
        and values of one that is then not run cannot.
        """
        longest = max(trees, key=len)
        requests = [
            Request(tree.prompt, tuple(token for _, token in path), 0) for tree in trees for path in tree.targets
        ]
        scorer = Scorer(self.model, Injector(self.model, SteeringTable()), max_length=len(longest) + len(requests))
        if reason := scorer.why_no_trees(requests):
            return reason
        verdict = scorer.check(requests)
        two = sorted(trees, key=len)[:: max(1, len(trees) - 1)][:2]
        try:
            difference = self._resumed_difference([*two, two[0]])
        except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
            if out_of_memory(error):
                raise
            return f"its layers cannot go on from a saved residual stream ({type(error).__name__}: {error})"
        if not difference <= verdict.tolerance:
            return (
                f"going on from a saved residual stream changes the log-probability of a token by {difference:.2g} nats, "
                f"rounding by {verdict.noise:.1g}"
            )
        return ""

    def _resumed_difference(self, trees: Sequence[Tree]) -> float:
        """Largest difference of a log-likelihood where layers go on from the stream after another, unsteered."""
        n_layers = len(self._layers)
        layers = sorted({0, n_layers // 2, max(0, n_layers - 2)})
        flags, languages = [True] * len(trees), [""] * len(trees)
        packed = TreeModel.score(self, Packed(trees))
        expected = [sum(value for value, _ in path) for by_tree in packed for path in by_tree]
        largest = 0.0
        for form in (Packed, Aligned):
            base = self.base(form(trees), layers, flags)
            # The ends of a prompt under many conditions lie side by side in a row.
            block = 1 + max(len(tree.tokens) for tree in trees)
            run, copies = (self.ends, max(1, MAX_SIDE_BY_SIDE // block)) if form is Aligned else (self.whole, 1)
            none = [SteeringTable()] * copies
            resumed = (values for layer in layers for values in run(base, layer, none, languages, flags))
            for values in (base.values, *resumed):
                actual = torch.tensor([value for by_tree in values for value in by_tree], dtype=torch.float64)
                largest = max(largest, float((actual - torch.tensor(expected, dtype=torch.float64)).abs().max()))
        return largest

    def bytes_per_token(self, n_layers: int) -> int:
        """Memory kept per token of a base forward: the residual at `n_layers` layers, keys and values at all layers."""
        itemsize = self.dtype.itemsize
        return n_layers * int(self._text.hidden_size) * itemsize + kv_bytes_per_token(self.model.config, itemsize)

    def base(self, batch: Batch, layers: Sequence[int], normalise: Sequence[bool]) -> Base:
        """The unsteered forward.

        Args:
            batch: trees; for aligned ones keys and values are kept too, for `ends`.
            layers: after which the residual stream is kept.
            normalise: for each tree, whether its values are log-likelihoods, or logits of one-token continuations.
        """
        streams: dict[int, Tensor] = {}

        def keep(layer: int) -> Any:
            def hook(module: Any, inputs: Any, output: Any) -> None:
                self._returns_tuple = isinstance(output, tuple)
                streams[layer] = residual(output)

            return hook

        past = batch.width - 1 if isinstance(batch, Aligned) else None
        cache = None if past is None else DynamicCache()
        handles = [self._layers[layer].register_forward_hook(keep(layer)) for layer in layers]
        try:
            hidden = self.hidden(batch.whole, cache)
        finally:
            for handle in handles:
                handle.remove()
        keys_values = []
        if cache is not None:
            keys_values = [(layer.keys[:, :, :past], layer.values[:, :, :past]) for layer in cache.layers]
        rows, columns = batch.scored
        return Base(batch, streams, keys_values, self.values(batch.trees, hidden[rows, columns], normalise))

    def whole(
        self,
        base: Base,
        layer: int,
        tables: Sequence[SteeringTable],
        languages: Sequence[str],
        normalise: Sequence[bool],
    ) -> list[list[Values]]:
        """All tokens above `layer` again, for any position.

        Args:
            base: an unsteered forward with the residual stream after `layer`.
            layer: first steered layer.
            tables: one for each condition.
            languages: of the trees.
            normalise: as in `base`.

        Returns:
            values by condition and tree.
        """
        copies, batch = len(tables), base.batch
        repeated = Layout(*(_stack(part, copies) for part in batch.whole))
        steered = SteeredTokens(*(_stack(part, copies) for part in batch.spans))
        stream = _stack(base.streams[layer], copies)
        table, rows = SteeringTable.stack(tables, languages)
        by_token = rows[:, batch.owner].flatten(0, 1)
        with _injecting(self.model, table, by_token, steered), self._resumed(layer, stream):
            hidden = self.hidden(repeated)
        row, column = (torch.tensor(index) for index in batch.scored)
        rows_of_copies = torch.arange(copies)[:, None] * len(batch.whole.ids) + row
        scored = hidden[rows_of_copies.flatten(), column.repeat(copies)]
        return _by_condition(self.values([*batch.trees] * copies, scored, [*normalise] * copies), copies)

    def ends(
        self,
        base: Base,
        layer: int,
        tables: Sequence[SteeringTable],
        languages: Sequence[str],
        normalise: Sequence[bool],
    ) -> list[list[Values]]:
        """The prompts' last tokens and the nodes above `layer` again, for position `last`. See `whole`."""
        batch = base.batch
        assert isinstance(batch, Aligned)
        copies, block = len(tables), 1 + batch.nodes
        layout = batch.ends(copies)
        column = (torch.arange(copies * block) % block)[None]
        prompt_end = torch.tensor([[1 + tree.lead] for tree in batch.trees])
        last = SteeredTokens(column, torch.zeros_like(column), prompt_end)
        stream = base.streams[layer][:, batch.width - 1 :].repeat(1, copies, 1)
        cache = DynamicCache()
        for index, (keys, values) in enumerate(base.keys_values):
            width = keys.shape[2] if index > layer else 0  # layers up to `layer` are not run
            cache.update(keys[:, :, :width], values[:, :, :width], index)
        table, rows = SteeringTable.stack(tables, languages)
        by_token = rows.T.repeat_interleave(block, dim=1)
        with _injecting(self.model, table, by_token, last), self._resumed(layer, stream):
            hidden = self.hidden(layout, cache)
        row, column = (torch.tensor(index) for index in batch.scored)
        columns = torch.arange(copies)[:, None] * block + (column - batch.width + 1)
        scored = hidden[row.repeat(copies), columns.flatten()]
        return _by_condition(self.values([*batch.trees] * copies, scored, [*normalise] * copies), copies)

    @contextmanager
    def _resumed(self, layer: int, stream: Tensor) -> Iterator[None]:
        """A context in which the layers below `layer` return their input, and `layer` returns `stream`."""

        def skip(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (hidden, None) if self._returns_tuple else hidden

        def resume(*args: Any, **kwargs: Any) -> Any:
            return skip(stream)

        replaced = [module.__dict__.get("forward") for module in self._layers[: layer + 1]]
        for module in self._layers[:layer]:
            module.forward = skip
        self._layers[layer].forward = resume
        try:
            yield
        finally:
            for module, forward in zip(self._layers, replaced, strict=False):
                del module.forward
                if forward is not None:  # accelerate sets one of its own
                    module.forward = forward

    def values(self, trees: Sequence[Tree], hidden: Tensor, normalise: Sequence[bool]) -> list[Values]:
        """Scores of the continuations of every tree.

        Args:
            trees: in the order of the positions.
            hidden: [positions, hidden] at each scored position of each tree, before the LM head.
            normalise: as in `base`.
        """
        is_normalised = torch.tensor([flag for tree, flag in zip(trees, normalise, strict=True) for _ in tree.scored])
        values: dict[bool, Iterator[Values]] = {}
        for flag in set(normalise):
            selected = [tree for tree, normalised in zip(trees, normalise, strict=True) if normalised is flag]
            states = hidden[(is_normalised == flag).to(hidden.device)]
            values[flag] = iter(self._likelihoods(selected, states) if flag else self._options(selected, states))
        return [next(values[flag]) for flag in normalise]

    def _likelihoods(self, trees: Sequence[Tree], hidden: Tensor) -> list[Values]:
        scored = self.tokens(trees, hidden, greedy=False)
        return [[sum(value for value, _ in path) for path in by_tree] for by_tree in scored]

    def _options(self, trees: Sequence[Tree], hidden: Tensor) -> list[Values]:
        """Logits of one-token continuations, of the needed columns of the LM head only."""
        weight, bias = self._head.weight, self._head.bias
        tokens = [path[0].token for tree in trees for path in tree.targets]
        distinct, column = torch.unique(torch.tensor(tokens, device=weight.device), return_inverse=True)
        row = torch.tensor([index for index, tree in enumerate(trees) for _ in tree.targets], device=weight.device)
        with torch.inference_mode():
            states = hidden.to(weight.device).float()
            logits = states @ weight[distinct].float().T
            if bias is not None:
                logits = logits + bias[distinct].float()
            values = iter(self._after_head(logits)[row, column].tolist())
        return [[next(values) for _ in tree.targets] for tree in trees]


def _stack(tensor: Tensor, copies: int) -> Tensor:
    """[copies * rows, ...], one copy per condition."""
    return tensor.repeat(copies, *[1] * (tensor.dim() - 1))


@contextmanager
def _injecting(model: PreTrainedModel, table: SteeringTable, rows: Tensor, tokens: Tokens) -> Iterator[None]:
    injector = Injector(model, table)
    try:
        with injector.batch(rows, tokens):
            yield
    finally:
        injector.remove()


def _by_condition(values: list[Values], copies: int) -> list[list[Values]]:
    each = len(values) // copies
    return [values[copy * each : (copy + 1) * each] for copy in range(copies)]
