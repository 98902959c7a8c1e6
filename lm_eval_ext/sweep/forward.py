"""Forwards that share what steering leaves as it is: the layers below it, and with `last` all of the prompt but one token.

Nothing below a steered layer depends on the vector, so the residual stream is saved there once and each condition goes on
from it; with `last` the keys and values of the prompt's other tokens are shared above it too.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from lm_eval_ext.errors import ModelError
from lm_eval_ext.models.head import normaliser
from lm_eval_ext.steering.decoder import decoder_layers, residual, text_config
from lm_eval_ext.steering.injection import Injector, SteeringTable, Tokens
from lm_eval_ext.sweep.trees import Batch, Layout, Tree

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from lm_eval_ext.steering.plan import Position

#: Scored positions whose logits over the whole vocabulary are held at a time.
HEAD_POSITIONS = 256

#: How far a probe may be from the plain forward: rounding of half precision, not another mask.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_LOOSE = 0.5

#: For each continuation of a tree, its log-likelihood; or, without the normaliser, its logit.
Values = list[float]


@dataclass(frozen=True)
class Base:
    """What one unsteered forward leaves for the conditions.

    Attributes:
        batch: the trees.
        streams: residual stream [rows, columns, hidden] after each layer asked for.
        keys_values: keys and values of each layer over all prompt columns but the last, where asked for.
        values: the unsteered scores, tree by tree.
    """

    batch: Batch
    streams: dict[int, Tensor]
    keys_values: list[tuple[Tensor, Tensor]]
    values: list[Values]


@dataclass(frozen=True)
class _Steered:
    """Which columns of a forward are of the prompt, and which hold a prompt's last token; see `injection.Tokens`."""

    prompt: Tensor  # [rows or 1, columns]
    last: Tensor

    def mask(self, position: Position, offset: int, length: int) -> Tensor | bool:
        """See `injection.Tokens.mask`."""
        return True if position == "all" else self.prompt if position == "prompt" else self.last


class TreeModel:
    """Runs trees through one model, from the first layer or from a saved residual stream.

    Args:
        model: a causal language model of transformers whose layers attend (no recurrent state).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._layers = list(decoder_layers(model))
        self._head = model.get_output_embeddings()
        self._text = text_config(model.config)
        self._returns_tuple = False
        self._buffer: Tensor | None = None

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.model.get_input_embeddings().weight.device
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def dtype(self) -> torch.dtype:
        """Of the residual stream."""
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    def bytes_per_token(self, n_layers: int) -> int:
        """Memory that a token of a base forward keeps: its residual at `n_layers` layers, its keys and values at all."""
        text = self._text
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        numbers = n_layers * text.hidden_size + 2 * len(self._layers) * heads * width
        return int(numbers * self.dtype.itemsize)

    def check(self, tree: Tree) -> str | None:
        """Why this architecture cannot be run by trees, found by comparing one tree with plain forwards; None if it can."""
        types = set(getattr(self._text, "layer_types", None) or ["full_attention"])
        if other := types - {"full_attention", "sliding_attention"}:
            return f"its layers are of the types {', '.join(sorted(other))}"
        if self._head is None or not isinstance(self._head, torch.nn.Linear):
            return "its output head is not one linear layer"
        try:
            (found,) = self.base(Batch([tree]), [], keep_past=False, normalise=[True]).values
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            return f"a forward with an attention mask of our own failed ({error})"
        expected = [self._plain(tree.prompt, [token for _, token in path]) for path in tree.targets]
        worst = max(abs(a - b) for a, b in zip(found, expected, strict=True))
        if worst > _TOLERANCE.get(self.dtype, _LOOSE):
            return f"its log-likelihoods differ by {worst:.2g} from those of plain forwards"
        return None

    def _plain(self, prompt: tuple[int, ...], continuation: list[int]) -> float:
        ids = torch.tensor([[*prompt, *continuation]], device=self._device)
        with torch.inference_mode():
            logits = self.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        wanted = torch.tensor(continuation, device=logits.device)
        return float(logits.log_softmax(-1).gather(1, wanted[:, None]).sum())

    def base(self, batch: Batch, layers: Sequence[int], *, keep_past: bool, normalise: Sequence[bool]) -> Base:
        """The unsteered forward.

        Args:
            batch: trees.
            layers: after which the residual stream is kept.
            keep_past: keep keys and values, for `ends`.
            normalise: for each tree, whether its values are log-likelihoods, or logits of one-token continuations.
        """
        streams: dict[int, Tensor] = {}

        def keep(layer: int) -> Any:
            def hook(module: Any, inputs: Any, output: Any) -> None:
                self._returns_tuple = isinstance(output, tuple)
                streams[layer] = residual(output)

            return hook

        cache = DynamicCache() if keep_past else None
        handles = [self._layers[layer].register_forward_hook(keep(layer)) for layer in layers]
        try:
            hidden = self._run(batch.whole, cache)
        finally:
            for handle in handles:
                handle.remove()
        keys_values = []
        if cache is not None:
            past = batch.width - 1
            keys_values = [(layer.keys[:, :, :past], layer.values[:, :, :past]) for layer in cache.layers]
        rows, columns = batch.scored
        return Base(batch, streams, keys_values, self._values(batch.trees, hidden[rows, columns], normalise))

    def whole(
        self,
        base: Base,
        layer: int,
        tables: Sequence[SteeringTable],
        languages: Sequence[str],
        normalise: Sequence[bool],
    ) -> list[list[Values]]:
        """Every token again above `layer`: for positions `prompt` and `all`.

        Args:
            base: with the residual stream after `layer`.
            layer: first steered layer.
            tables: one for each condition.
            languages: of the trees.
            normalise: as in `base`.

        Returns:
            Values by condition and tree.
        """
        copies, layout = len(tables), base.batch.whole
        prompt = torch.zeros(layout.ids.shape, dtype=torch.bool)
        prompt[:, : base.batch.width] = torch.arange(base.batch.width) >= base.batch.starts[:, None]
        last = torch.zeros_like(prompt)
        last[:, base.batch.width - 1] = True
        repeated = Layout(*(_stack(part, copies) for part in _parts(layout)))
        steered = _Steered(_stack(prompt, copies), _stack(last, copies))
        stream = _stack(base.streams[layer], copies)
        table, rows = _stacked(tables, languages)
        with _injecting(self.model, table, rows.flatten(), steered), self._resumed(layer, stream):
            hidden = self._run(repeated, None)
        row, column = (torch.tensor(index) for index in base.batch.scored)
        at = torch.arange(copies)[:, None] * len(base.batch.trees) + row
        taken = hidden[at.flatten(), column.repeat(copies)]
        return _by_condition(self._values([*base.batch.trees] * copies, taken, [*normalise] * copies), copies)

    def ends(
        self,
        base: Base,
        layer: int,
        tables: Sequence[SteeringTable],
        languages: Sequence[str],
        normalise: Sequence[bool],
    ) -> list[list[Values]]:
        """The prompts' last tokens and the nodes again above `layer`: for position `last`. See `whole`."""
        copies, block = len(tables), 1 + base.batch.nodes
        layout = base.batch.ends(copies)
        last = (torch.arange(copies * block) % block == 0)[None]
        stream = base.streams[layer][:, base.batch.width - 1 :].repeat(1, copies, 1)
        cache = DynamicCache()
        for index, (keys, values) in enumerate(base.keys_values):
            width = keys.shape[2] if index > layer else 0  # not asked for below
            cache.update(keys[:, :, :width], values[:, :, :width], index)
        table, rows = _stacked(tables, languages)
        by_token = rows.T.repeat_interleave(block, dim=1)
        with _injecting(self.model, table, by_token, _Steered(last, last)), self._resumed(layer, stream):
            hidden = self._run(layout, cache)
        row, column = (torch.tensor(index) for index in base.batch.scored)
        columns = torch.arange(copies)[:, None] * block + (column - base.batch.width + 1)
        taken = hidden[row.repeat(copies), columns.flatten()]
        return _by_condition(self._values([*base.batch.trees] * copies, taken, [*normalise] * copies), copies)

    def _run(self, layout: Layout, cache: Any) -> Tensor:
        """The residual stream that the output head would see, [rows, columns, hidden]."""
        found: list[Tensor] = []

        def stop(module: Any, inputs: tuple[Tensor, ...]) -> None:
            found.append(inputs[0])
            raise _Stop

        handle = self._head.register_forward_pre_hook(stop)
        try:
            with torch.inference_mode():
                self.model(
                    input_ids=layout.ids.to(self._device),
                    position_ids=layout.positions.to(self._device),
                    attention_mask=self._mask(layout),
                    past_key_values=cache,
                    use_cache=cache is not None,
                )
        except _Stop:
            pass
        finally:
            handle.remove()
        if not found:
            raise ModelError("the model's output head was not reached")
        return found[0]

    def _mask(self, layout: Layout) -> Any:
        """One mask, or one for each kind of attention where the layers differ."""
        types = set(getattr(self._text, "layer_types", None) or [])
        window = getattr(self._text, "sliding_window", None)
        full = layout.mask(self.dtype).to(self._device)
        if "sliding_attention" not in types and (types or window is None):
            return full
        # A window that nothing leaves hides nothing.
        near = window is None or int(layout.positions.max()) < window
        sliding = full if near else layout.mask(self.dtype, window).to(self._device)
        return sliding if len(types) < 2 else {"full_attention": full, "sliding_attention": sliding}

    @contextmanager
    def _resumed(self, layer: int, stream: Tensor) -> Iterator[None]:
        """Inside, the layers up to `layer` do nothing, and `layer` hands on `stream`."""

        def hand_on(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (hidden, None) if self._returns_tuple else hidden

        def resume(*args: Any, **kwargs: Any) -> Any:
            return hand_on(stream)

        before = [module.__dict__.get("forward") for module in self._layers[: layer + 1]]
        for module in self._layers[:layer]:
            module.forward = hand_on
        self._layers[layer].forward = resume
        try:
            yield
        finally:
            for module, forward in zip(self._layers, before, strict=False):
                del module.forward
                if forward is not None:  # accelerate sets one of its own
                    module.forward = forward

    def _values(self, trees: Sequence[Tree], hidden: Tensor, normalise: Sequence[bool]) -> list[Values]:
        """Scores of the continuations of every tree.

        Args:
            trees: in the order of the positions.
            hidden: [positions, hidden] at each scored position of each tree, before the output head.
            normalise: as in `base`.
        """
        place: list[int] = []
        token: list[int] = []
        wants: list[bool] = []
        at = 0
        for tree, normal in zip(trees, normalise, strict=True):
            where = {node: at + k for k, node in enumerate(tree.scored)}
            for path in tree.targets:
                place.extend(where[node] for node, _ in path)
                token.extend(wanted for _, wanted in path)
            wants.extend([normal] * len(tree.scored))
            at += len(tree.scored)
        places = torch.tensor(place, device=hidden.device)
        found = self._logits(hidden, places, torch.tensor(token, device=hidden.device))
        if any(wants):
            needed = torch.tensor([k for k, normal in enumerate(wants) if normal], device=hidden.device)
            total = torch.zeros(len(wants), dtype=torch.float32, device=hidden.device)
            total[needed] = self._normaliser(hidden[needed])
            found = found - total[places]
        numbers = iter(found.tolist())
        return [[sum(next(numbers) for _ in path) for path in tree.targets] for tree in trees]

    def _logits(self, hidden: Tensor, places: Tensor, tokens: Tensor) -> Tensor:
        """[targets] float32: only the columns of the head that are asked for."""
        weight, bias = self._head.weight, self._head.bias
        distinct, column = torch.unique(tokens, return_inverse=True)
        found = []
        with torch.inference_mode():
            for at in range(0, len(places), HEAD_POSITIONS):
                chunk = slice(at, at + HEAD_POSITIONS)
                states = hidden[places[chunk]].to(weight.device)
                dot = torch.einsum("ph,ph->p", states.float(), weight[distinct][column[chunk]].float())
                found.append(dot if bias is None else dot + bias[tokens[chunk]].float())
        return self._after_head(torch.cat(found))

    def _normaliser(self, hidden: Tensor) -> Tensor:
        """[positions] float32: log of the sum of the exponentials of all logits."""
        weight, bias = self._head.weight, self._head.bias
        if self._buffer is None:
            self._buffer = torch.empty(HEAD_POSITIONS, len(weight), dtype=weight.dtype, device=weight.device)
        found = []
        with torch.inference_mode():
            for at in range(0, len(hidden), HEAD_POSITIONS):
                states = hidden[at : at + HEAD_POSITIONS].to(weight.device, weight.dtype)
                logits = torch.mm(states, weight.T, out=self._buffer[: len(states)])  # a new one would be paged in
                found.append(normaliser(self._after_head(logits if bias is None else logits.add_(bias))))
        return torch.cat(found)

    def _after_head(self, logits: Tensor) -> Tensor:
        """What some families do to their logits; `check` finds those that do something else."""
        if scale := getattr(self._text, "logit_scale", None):  # Cohere
            logits = logits * scale
        if divisor := getattr(self._text, "logits_scaling", None):  # Granite
            logits = logits / divisor
        if cap := getattr(self._text, "final_logit_softcapping", None):  # Gemma 2
            logits = torch.tanh(logits / cap) * cap
        return logits


class _Stop(Exception):  # noqa: N818 - not an error: it ends a forward before the output head
    """Raised before the output head."""


def _parts(layout: Layout) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return layout.ids, layout.positions, layout.visible, layout.past_positions


def _stack(tensor: Tensor, copies: int) -> Tensor:
    """Conditions below each other: [copies x rows, ...]."""
    return tensor.repeat(copies, *[1] * (tensor.dim() - 1))


def _stacked(tables: Sequence[SteeringTable], languages: Sequence[str]) -> tuple[SteeringTable, Tensor]:
    """The tables of several conditions as one, and its rows [conditions, languages]."""
    places = dict.fromkeys(
        (layer, position) for table in tables for layer, at in table.additions.items() for position in at
    )
    rows, base = [], 1
    for table in tables:
        own = [table.row(language) for language in languages]
        rows.append([base + row - 1 if row else 0 for row in own])
        base += _height(table) - 1
    additions: dict[int, dict[Position, Tensor]] = {}
    for layer, position in places:
        parts = [table.additions.get(layer, {}).get(position) for table in tables]
        width = next(part.shape[1] for part in parts if part is not None)
        filled = [
            torch.zeros(_height(table) - 1, width) if part is None else part[1:]
            for table, part in zip(tables, parts, strict=True)
        ]
        additions.setdefault(layer, {})[position] = torch.cat([torch.zeros(1, width), *filled])
    return SteeringTable(additions=additions), torch.tensor(rows)


def _height(table: SteeringTable) -> int:
    return next(len(matrix) for at in table.additions.values() for matrix in at.values())


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
