"""Running token trees through a model: hidden states with a custom attention mask, scores by the LM head in slices."""

from __future__ import annotations

import inspect
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

import torch

from lm_eval_ext.errors import ModelError
from lm_eval_ext.scoring.kv_cache import cache_name
from lm_eval_ext.scoring.lm_head import Token, as_tokens, scores
from lm_eval_ext.scoring.products import fast_products, linear
from lm_eval_ext.steering.decoder import text_config
from lm_eval_ext.steering.tokens import mask_between

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from lm_eval_ext.scoring.token_trees import Batch, Layout, Tree
    from lm_eval_ext.steering.plan import Position


class SteeredTokens:
    """Which tokens of a batch are steered; see `tokens.Tokens`.

    Args:
        index: [rows or 1, columns] index of each token.
        start, end: the same: index of the first token of its prompt, and of the first after it.
    """

    def __init__(self, index: Tensor, start: Tensor, end: Tensor) -> None:
        self._spans = index, start, end

    def mask(self, position: Position, offset: int, length: int) -> Tensor | bool:
        """See `tokens.Tokens.mask`."""
        return position == "all" or mask_between(position, *self._spans)


class TreeModel:
    """Runs trees through one model.

    Args:
        model: a causal language model of transformers with attention layers only (no recurrent state).
        softmax_dtype: dtype of the log-softmax.
    """

    #: Scored positions whose logits over the whole vocabulary are held at a time, on a CPU and on anything else.
    HEAD_POSITIONS = 128, 512

    def __init__(self, model: PreTrainedModel, softmax_dtype: torch.dtype = torch.float32) -> None:
        self.model = model
        self._softmax_dtype = softmax_dtype
        self._head = model.get_output_embeddings()
        self._text = text_config(model.config)
        self._cache_name = cache_name(model)
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

    def score(self, batch: Batch) -> list[list[list[Token]]]:
        """The tokens of every continuation of every tree."""
        rows, columns = batch.scored
        return self.tokens(batch.trees, self.hidden(batch.whole)[rows, columns])

    def hidden(self, layout: Layout, cache: Any = None) -> Tensor:
        """[rows, columns, hidden], the input of the LM head; the forward ends before it."""
        head_inputs: list[Tensor] = []

        def stop(module: Any, inputs: tuple[Tensor, ...]) -> None:
            head_inputs.append(inputs[0])
            raise _Stop

        handle = self._head.register_forward_pre_hook(stop, prepend=True)
        try:
            with torch.inference_mode(), fast_products(self.model.get_input_embeddings().weight):
                self.model(
                    input_ids=layout.ids.to(self._device, non_blocking=True),
                    position_ids=layout.positions.to(self._device, non_blocking=True),
                    attention_mask=self._mask(layout),
                    **({"use_cache": False} if cache is None else {self._cache_name: cache, "use_cache": True}),
                )
        except _Stop:
            pass
        finally:
            handle.remove()
        if not head_inputs:
            raise ModelError("the forward ended before the model's LM head")
        return head_inputs[0]

    def _mask(self, layout: Layout) -> Any:
        """One mask, or one for each type of attention where the layers differ."""
        types = set(getattr(self._text, "layer_types", None) or [])
        window = getattr(self._text, "sliding_window", None)
        full = layout.mask(self.dtype).to(self._device)
        if "sliding_attention" not in types and (types or window is None):
            return full
        is_inside = window is None or int(layout.positions.max()) < window  # the window masks nothing
        sliding = full if is_inside else layout.mask(self.dtype, window).to(self._device)
        return sliding if len(types) < 2 else {"full_attention": full, "sliding_attention": sliding}

    def tokens(self, trees: Sequence[Tree], hidden: Tensor, *, greedy: bool = True) -> list[list[list[Token]]]:
        """Log-probabilities of the tokens of every continuation of every tree; synchronises with the device once.

        Args:
            trees: in the order of the positions.
            hidden: [positions, hidden] at each scored position of each tree, before the LM head.
            greedy: whether to compute if each token is the most likely one; else all are False.
        """
        targets: list[tuple[int, int]] = []
        first = 0
        for tree in trees:
            place_of = {node: first + k for k, node in enumerate(tree.scored)}
            targets.extend((place_of[node], token_id) for path in tree.targets for node, token_id in path)
            first += len(tree.scored)
        order = sorted(range(len(targets)), key=targets.__getitem__)
        place, token = torch.tensor([targets[k] for k in order]).T.to(hidden.device, non_blocking=True)
        n_positions = self.HEAD_POSITIONS[hidden.device.type != "cpu"]
        places = [targets[k][0] for k in order]
        parts = []
        with torch.inference_mode():
            for first in range(0, len(hidden), n_positions):
                part = slice(bisect_left(places, first), bisect_left(places, first + n_positions))
                logits = self._logits(hidden[first : first + n_positions], n_positions)
                parts.append(scores(logits, place[part] - first, token[part], self._softmax_dtype, greedy=greedy))
        scored = dict(zip(order, as_tokens(parts), strict=True))
        number = iter(range(len(targets)))
        return [[[scored[next(number)] for _ in path] for path in tree.targets] for tree in trees]

    def _logits(self, hidden: Tensor, n_positions: int) -> Tensor:
        """[positions, vocabulary] of at most `n_positions` states, in a reused buffer."""
        weight, bias = self._head.weight, self._head.bias
        if self._buffer is None:
            self._buffer = torch.empty(n_positions, len(weight), dtype=weight.dtype, device=weight.device)
        states = hidden.to(weight.device, weight.dtype)
        return self._after_head(linear(states, weight, bias, self._buffer[: len(states)]))

    def _after_head(self, logits: Tensor) -> Tensor:
        """The scaling and soft-capping that some families apply to their logits; `sharing.check` detects anything else."""
        if scale := getattr(self._text, "logit_scale", None):  # Cohere
            logits = logits * scale
        if divisor := getattr(self._text, "logits_scaling", None):  # Granite
            logits = logits / divisor
        if cap := getattr(self._text, "final_logit_softcapping", None):  # Gemma 2
            logits = torch.tanh(logits / cap) * cap
        return logits


def cannot_run_trees(model: PreTrainedModel) -> str:
    """The reason why a model cannot run trees, as far as its config and signature say; empty where they say nothing."""
    text = text_config(model.config)
    types = set(getattr(text, "layer_types", None) or ["full_attention"])
    if other := types - {"full_attention", "sliding_attention"}:
        return f"its layers are of the types {', '.join(sorted(other))}"
    if not isinstance(model.get_output_embeddings(), torch.nn.Linear):
        return "its LM head is not one linear layer"
    base = getattr(model, "get_base_model", lambda: model)()  # of PEFT
    if "position_ids" not in inspect.signature(base.forward).parameters or getattr(text, "alibi", False):
        return "it computes positions itself"
    return ""


class _Stop(Exception):  # noqa: N818 - not an error: it ends a forward before the LM head
    """Raised before the LM head."""
